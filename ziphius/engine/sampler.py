"""Sampling a batch of answers with the trainer's own modules, from the latent cache.

B rows, T time, W vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ziphius import ops
from ziphius.engine.cache import LatentMemory
from ziphius.engine.forward import next_logits, step_hidden
from ziphius.engine.settings import SamplingSettings
from ziphius.model.transformer import Transformer
from ziphius.ops.backend import compute_dtype
from ziphius.ops.paged import Placement

_BLOCK = 16  # tokens of a block of the cache


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
    rows = len(prompts) * samples
    memory, prompt_tables, tables = _lay_out(model, prompts, samples, settings.max_new_tokens)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=tables.device)
    hidden = _read_prompts(model, prompts, lengths, prompt_tables, memory)
    for prompt, length in enumerate(lengths.tolist()):  # the samples' own copy of a block the prompt leaves half full
        if length % _BLOCK:
            for row in range(prompt * samples, (prompt + 1) * samples):
                block = length // _BLOCK
                memory.copy_block(int(prompt_tables[prompt, block]), int(tables[row, block]))

    completions = [Completion() for _ in range(rows)]
    hidden = hidden[lengths.cumsum(0) - 1].repeat_interleave(samples, dim=0)
    positions = lengths.repeat_interleave(samples)
    alive = torch.arange(rows, device=tables.device)
    for step in range(settings.max_new_tokens):
        chosen, logprobs = draw(next_logits(model, hidden), settings, generator)
        ended = []
        owners = alive.tolist()
        for owner, token, logprob in zip(owners, chosen.tolist(), logprobs.tolist(), strict=True):
            completion = completions[owner]
            completion.tokens.append(token)
            completion.logprobs.append(logprob)
            completion.finished = token == stop_id
            ended.append(completion.finished)
        going = [i for i, over in enumerate(ended) if not over]
        if not going or step + 1 == settings.max_new_tokens:
            break
        if len(going) < len(ended):
            kept = torch.tensor(going, device=alive.device)
            alive, chosen = alive[kept], chosen[kept]
        placement = Placement.of(alive.int(), positions[alive] + step, tables, _BLOCK)
        hidden = step_hidden(model, chosen, placement, memory)
    return completions


def _lay_out(
    model: Transformer, prompts: Sequence[Sequence[int]], samples: int, room: int
) -> tuple[LatentMemory, Tensor, Tensor]:
    """Memory with the block tables of the prompts and of their samples, which share the blocks that a prompt fills."""
    device = model.lm_head.weight.device
    free = itertools.count()
    prompt_rows, sample_rows = [], []
    for prompt in prompts:
        full, blocks = len(prompt) // _BLOCK, -(-len(prompt) // _BLOCK)
        row = list(itertools.islice(free, blocks))
        prompt_rows.append(row)
        for _ in range(samples):
            own = -(-(len(prompt) + room) // _BLOCK) - full
            sample_rows.append(row[:full] + list(itertools.islice(free, own)))
    memory = LatentMemory(model.config, next(free), _BLOCK, compute_dtype(model.lm_head.weight), device)
    return memory, _table(prompt_rows, device), _table(sample_rows, device)


def _table(rows: list[list[int]], device: torch.device) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int32, device=device)


def _read_prompts(
    model: Transformer, prompts: Sequence[Sequence[int]], lengths: Tensor, tables: Tensor, memory: LatentMemory
) -> Tensor:
    """Hidden states of all prompts' tokens, one after the other."""
    device = tables.device
    rows = torch.arange(len(prompts), dtype=torch.int32, device=device).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(len(prompt), device=device) for prompt in prompts])
    tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    return step_hidden(model, tokens, Placement.of(rows, positions, tables, _BLOCK), memory)


def draw(logits_BW: Tensor, settings: SamplingSettings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token per row [B] and its log-probability [B] at the temperature (at 1 for greedy decoding).

    The log-probability is that of the whole distribution, before top-p cuts its tail.
    """
    place = torch.rand(len(logits_BW), generator=generator, device=logits_BW.device)
    if settings.temperature == 0 or settings.top_p == 1:
        return ops.draw_tokens(logits_BW, settings.temperature, place)
    logprobs = torch.log_softmax(logits_BW / settings.temperature, dim=-1)
    chosen, _ = ops.draw_tokens(_nucleus(logprobs, settings.top_p), 1.0, place)
    return chosen, logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)


def _nucleus(logprobs_BW: Tensor, top_p: float) -> Tensor:
    """Leave the fewest likeliest tokens whose probabilities reach `top_p` (Holtzman et al. 2020, arXiv 1904.09751)."""
    ordered, order = logprobs_BW.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    cut = torch.zeros_like(before, dtype=torch.bool).scatter_(1, order, before >= top_p)
    return logprobs_BW.masked_fill(cut, float("-inf"))
