"""Sampling a batch of answers with the trainer's own modules, from the latent cache.

B rows, T time, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ziphius.engine.cache import SlabCache
from ziphius.engine.settings import SamplingSettings
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import compute_dtype

_COMPACT_BELOW = 0.75  # finished rows are dropped once fewer than this share still decode
_ROUND = 16  # rows and prompt lengths are kept at multiples of this: few shapes, few kernels to compile


@dataclass
class Completion:
    """Sampled tokens, the stop token included, each with its log-probability at the sampling temperature.

    `finished` is false where the length limit cut the answer off.
    """

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False


@torch.no_grad()
def sample(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generator: torch.Generator,
    *,
    stop_id: int,
    samples: int = 1,
    max_rows: int = 256,
) -> list[list[Completion]]:
    """`samples` completions of every prompt (token ids), in the prompts' order.

    A prompt is read once for all of its samples. Runs in the caller's autocast. Raises ValueError for an empty prompt
    or one that leaves no room in `max_position_embeddings`.
    """
    limit = model.config.max_position_embeddings
    for number, prompt in enumerate(prompts):
        if not prompt or len(prompt) + settings.max_new_tokens > limit:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens and may grow by {settings.max_new_tokens}; "
                f"it must hold at least one and the sum at most {limit} (max_position_embeddings)"
            )
    per_batch = max(1, max_rows // samples)
    results: list[list[Completion]] = []
    for start in range(0, len(prompts), per_batch):
        part = prompts[start : start + per_batch]
        rows = _decode(model, part, settings, generator, stop_id, samples)
        results += [rows[i * samples : (i + 1) * samples] for i in range(len(part))]
    return results


def _decode(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
    generator: torch.Generator,
    stop_id: int,
    samples: int,
) -> list[Completion]:
    device = model.lm_head.weight.device
    longest = -(-max(map(len, prompts)) // _ROUND) * _ROUND
    tokens = torch.tensor([[prompt[0]] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
    dtype = compute_dtype(model.lm_head.weight)
    cache = SlabCache(model.config, padding, longest + settings.max_new_tokens, dtype)
    logits = _next_logits(model, tokens, cache)
    spread = torch.arange(len(prompts), device=device).repeat_interleave(samples)
    cache.select(spread)
    logits = logits.index_select(0, spread)

    completions = [Completion() for _ in range(len(prompts) * samples)]
    owners = list(range(len(completions)))  # completion of each row; -1 once it is finished
    for step in range(settings.max_new_tokens):
        chosen, logprobs = draw(logits, settings, generator)
        for row, (token, logprob) in enumerate(zip(chosen.tolist(), logprobs.tolist(), strict=True)):
            if owners[row] >= 0:
                completion = completions[owners[row]]
                completion.tokens.append(token)
                completion.logprobs.append(logprob)
                if token == stop_id:
                    completion.finished = True
                    owners[row] = -1
        alive = [row for row, owner in enumerate(owners) if owner >= 0]
        if not alive or step + 1 == settings.max_new_tokens:
            break
        if len(alive) < _COMPACT_BELOW * len(owners) and len(owners) > _ROUND:
            finished = [row for row, owner in enumerate(owners) if owner < 0]
            rows = sorted(alive + finished[: -len(alive) % _ROUND])
            kept = torch.tensor(rows, device=device)
            cache.select(kept)
            chosen = chosen.index_select(0, kept)
            owners = [owners[row] for row in rows]
        logits = _next_logits(model, chosen.unsqueeze(1), cache)
    return completions


def _next_logits(model: Transformer, tokens_BT: Tensor, cache: SlabCache) -> Tensor:
    """fp32 logits [B, W] after the last of `tokens_BT`, whose entries join the cache."""
    positions = cache.advance(tokens_BT.shape[1])
    hidden = model.hidden(tokens_BT, positions, cache=cache)
    return model.lm_head(hidden[:, -1]).float()


def draw(logits_BW: Tensor, settings: SamplingSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token per row [B] and its log-probability [B] at the temperature (at 1 for greedy decoding).

    The log-probability is that of the whole distribution, before top-p cuts its tail.
    """
    if settings.temperature == 0:
        logprobs = torch.log_softmax(logits_BW, dim=-1)
        chosen = logits_BW.argmax(-1)
    else:
        logprobs = torch.log_softmax(logits_BW / settings.temperature, dim=-1)
        kept = logprobs if settings.top_p == 1 else _nucleus(logprobs, settings.top_p)
        mass = kept.exp().cumsum(-1)
        below_all = mass[:, -1:] * (1 - 2**-20)  # rounding must not reach a token behind the last with any mass
        place = torch.rand(len(mass), 1, generator=generator, device=mass.device) * below_all
        chosen = torch.searchsorted(mass, place, right=True).squeeze(1)
    return chosen, logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)


def _nucleus(logprobs_BW: Tensor, top_p: float) -> Tensor:
    """Leave the fewest likeliest tokens whose probabilities reach `top_p` (Holtzman et al. 2020, arXiv 1904.09751)."""
    ordered, order = logprobs_BW.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    cut = torch.zeros_like(before, dtype=torch.bool).scatter_(1, order, before >= top_p)
    return logprobs_BW.masked_fill(cut, float("-inf"))
