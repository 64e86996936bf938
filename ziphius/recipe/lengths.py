"""Samples and prompts in tokens against the room there is: known once the tokenizer is, before any training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from ziphius.recipe.schema import RecipeError
from ziphius.text.packing import Sample

LOOKED_AT, PATIENCE_S = 200, 2.0  # prompts of a task that are measured, and seconds after which no further ones are


def fitting(
    samples: Sequence[Sample], seq_len: int, key: str, place: Callable[[int], str] | None = None
) -> tuple[list[Sample], str | None]:
    """The samples that a row of `seq_len` tokens holds, whole, and a sentence where some were left out.

    `place(index)`: where a sample stands, for those that come from a file. Raises RecipeError where more than half of
    them are left out.
    """
    kept = [sample for sample in samples if len(sample[0]) <= seq_len]
    if len(kept) == len(samples):
        return kept, None
    longest = max(len(tokens) for tokens, _ in samples)
    left_out = f"{len(samples) - len(kept)} of {len(samples)} samples are longer than {key} = {seq_len} tokens"
    if place is not None:
        left_out += f" (the first: {place(next(i for i, (tokens, _) in enumerate(samples) if len(tokens) > seq_len))})"
    if 2 * len(kept) < len(samples):
        raise RecipeError(f"{left_out} (the longest has {longest}); raise it to that, or give shorter samples")
    return kept, f"{left_out} and are left out; {key} = {longest} would hold all"


def check_prompts(prompts: Iterable[Sequence[int]], max_new_tokens: int, limit: int, key: str, task: str) -> None:
    """Raise RecipeError where a prompt and `max_new_tokens` after it exceed the `limit` of the network.

    Prompts that take long to draw are not all looked at.
    """
    longest, end = 0, time.monotonic() + PATIENCE_S
    for prompt in prompts:
        longest = max(longest, len(prompt))
        if time.monotonic() > end:
            break
    if longest + max_new_tokens > limit:
        raise RecipeError(
            f"{key} is {max_new_tokens} and prompts of tasks.{task} take up to {longest} tokens, but the model reaches "
            f"{limit}; lower it to {max(1, limit - longest)}, or raise model.overrides.max_position_embeddings"
        )
