"""Small networks of every architecture that GGUF files are written of, and the way into a file and back."""

from __future__ import annotations

import torch

from ziphius.checkpoint.gguf import GGUFFile, describe, write_folder
from ziphius.model.llama.config import LlamaConfig
from ziphius.model.presets import ladder
from ziphius.model.qwen.config import Qwen2Config, Qwen3Config, Qwen3MoeConfig
from ziphius.model.scaling import LinearScaling, Llama3Scaling, YarnScaling
from ziphius.model.transformer import Transformer

SIZES = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
LLAMA3 = Llama3Scaling(
    factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)  # fmt: skip
MLA_YARN = YarnScaling(factor=8, original_max_position_embeddings=64, mscale=0.707, mscale_all_dim=0.707)
SOFTMAX = {"model_type": "deepseek_v2", "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False}
NETWORKS = {
    "llama": LlamaConfig(**SIZES),
    "llama, as 3.2": LlamaConfig(**SIZES, rope_theta=500000.0, rope_scaling=LLAMA3, tie_word_embeddings=True),
    "llama, stretched": LlamaConfig(**SIZES, rope_scaling=LinearScaling(factor=4.0), rms_norm_eps=1e-5),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen2, YaRN": Qwen2Config(**SIZES, rope_scaling=YarnScaling(factor=4, original_max_position_embeddings=64)),
    "qwen3": Qwen3Config(**SIZES | {"head_dim": 32}),
    "qwen3_moe": Qwen3MoeConfig(**SIZES, **EXPERTS),
    "V3": ladder(2, vocab_size=64, q_lora_rank=24, n_group=4, topk_group=2, rope_scaling=MLA_YARN),
    "V3, all dense, tied": ladder(2, vocab_size=64, n_routed_experts=None, tie_word_embeddings=True),
    "V2-Lite": ladder(2, vocab_size=64, **SOFTMAX, n_shared_experts=2, routed_scaling_factor=16.0),
}


def imported(file, folder, dtype="auto"):
    with GGUFFile(file) as opened:
        write_folder(opened, describe(opened), folder, dtype)
    return folder


def token_ids(config):
    """The keys of the special tokens, which come with a tokenizer."""
    ids = {"tokenizer.ggml.model": "none"}
    for name, token in (("bos", config.bos_token_id), ("eos", config.eos_token_id)):
        ids[f"tokenizer.ggml.{name}_token_id"] = token
    return ids


def make(config, scale=0.2):
    """A network with random weights everywhere, norms and selection bias too: 0.5 ± `scale`."""
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.normal_(0.5, scale, generator=generator)
    return model
