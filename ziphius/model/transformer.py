"""The network: a stack of blocks of any family, and the multi-token-prediction modules (V3 §2).

B batch, T time, D model, W vocabulary. `state_dict()` follows the published names; `checkpoint.names` holds the
small table of what differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ziphius.model.cache import StepCache
from ziphius.model.config import ModelConfig
from ziphius.model.deepseek.attention import LatentAttention
from ziphius.model.deepseek.config import DeepSeekConfig
from ziphius.model.experts import MLP, MoE, RouterStats
from ziphius.model.grouped.attention import GroupedAttention
from ziphius.model.grouped.config import GroupedConfig
from ziphius.model.layers import Linear, RMSNorm
from ziphius.model.mtp import MTPModule
from ziphius.model.rope import rope_table


@dataclass
class ModelOutput:
    """logits [B, T, W]; hidden [B, T, D] after the final norm."""

    logits: Tensor
    hidden: Tensor


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = attention_of(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: MoE | MLP
        if config.routing is not None and config.is_moe_layer(layer):
            self.mlp = MoE(config.hidden_size, config.routing)
        else:
            self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        segments_BT: Tensor | None = None,
        cache: StepCache | None = None,
        stats: RouterStats | None = None,
    ) -> Tensor:
        normed = self.input_layernorm(x_BTD)
        if cache is None:
            attended = self.self_attn(normed, cos, sin, segments_BT)
        else:
            attended = self.self_attn.cached(normed, cos, sin, cache, self.layer)
        x_BTD, normed = self.post_attention_layernorm.after(x_BTD, attended)
        mixed = self.mlp(normed, stats) if isinstance(self.mlp, MoE) else self.mlp(normed)
        return x_BTD + mixed


def attention_of(config: ModelConfig) -> LatentAttention | GroupedAttention:
    """A layer's attention, by the family of `config`."""
    if isinstance(config, DeepSeekConfig):
        return LatentAttention(config)
    assert isinstance(config, GroupedConfig)
    return GroupedAttention(config)


class Stack(nn.Module):
    """Embedding, blocks and final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A network with its head and its multi-token-prediction modules.

    >>> model = Transformer(ladder(4))
    >>> model.init_weights(torch.Generator().manual_seed(0))
    >>> model(torch.zeros(1, 8, dtype=torch.int64)).logits.shape
    torch.Size([1, 8, 1024])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        first = config.num_hidden_layers
        modules = range(first, first + config.num_nextn_predict_layers)
        self.mtp = nn.ModuleList(MTPModule(config, Block(config, layer)) for layer in modules)
        self._rope: tuple[Tensor, Tensor] | None = None

    def forward(self, tokens_BT: Tensor) -> ModelOutput:
        """Logits of every position for int64 `tokens_BT`."""
        hidden = self.hidden(tokens_BT)
        return ModelOutput(self.lm_head(hidden), hidden)

    def hidden(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        cache: StepCache | None = None,
        stats: RouterStats | None = None,
    ) -> Tensor:
        """The final hidden states [B, T, D], after the last norm.

        `segments_BT` keeps packed samples apart. `cache` switches to the decoding form and needs `positions_BT`; its
        placement, not the shape [B, T], then says which sequence a token belongs to.
        """
        cos, sin = self.rope(positions_BT, tokens_BT.shape[1])
        x_BTD = self.model.embed_tokens(tokens_BT)
        for block in self.model.layers:
            x_BTD = block(x_BTD, cos, sin, segments_BT, cache, stats)
        return self.model.norm(x_BTD)

    def mtp_hidden(
        self,
        hidden_BTD: Tensor,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        stats: RouterStats | None = None,
    ) -> list[Tensor]:
        """Hidden states of each prediction depth k = 1…D, [B, T−k, D] (V3 equations 21–23).

        Entry k−1 at position t predicts token t+k+1 through the shared head.
        """
        outputs = []
        for depth, module in enumerate(self.mtp, start=1):
            length = tokens_BT.shape[1] - depth
            positions = None if positions_BT is None else positions_BT[:, :length]
            cos, sin = self.rope(positions, length)
            segments = None if segments_BT is None else segments_BT[:, :length]
            embedded = self.model.embed_tokens(tokens_BT[:, depth:])
            hidden_BTD = module(hidden_BTD[:, :length], embedded, cos, sin, segments, stats=stats)
            outputs.append(hidden_BTD)
        return outputs

    def rope(self, positions_BT: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [B or 1, T, R/2] at the given positions (0…length−1 when there are none)."""
        needed = length if positions_BT is None else self.config.max_position_embeddings
        device = self.model.embed_tokens.weight.device
        if self._rope is None or self._rope[0].shape[0] < needed or self._rope[0].device != device:
            self._rope = rope_table(self.config, max(needed, min(self.config.max_position_embeddings, 4096)), device)
        cos, sin = self._rope
        if positions_BT is None:
            return cos[:length].unsqueeze(0), sin[:length].unsqueeze(0)
        return cos[positions_BT], sin[positions_BT]

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Every matrix from a normal of std `initializer_range` (V3 §4.2), norms at one, biases at zero."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:
                parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
            else:
                parameter.normal_(0.0, self.config.initializer_range, generator=generator)
        for name, buffer in self.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.zero_()
