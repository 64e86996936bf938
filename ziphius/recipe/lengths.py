"""Samples and prompts in tokens against the room there is: known once the tokenizer is, before any training."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from ziphius.recipe.schema import RecipeError
from ziphius.text.packing import Sample

LOOKED_AT, PATIENCE_S = 200, 2.0  # prompts of a task that are measured, and seconds after which no further ones are


class Fitted:
    """Which samples a row of `seq_len` tokens holds, and what becomes of the others: left out whole, or cut."""

    def __init__(self, seq_len: int, too_long: Literal["drop", "cut"], key: str) -> None:
        """`key`: what `seq_len` is called in messages."""
        self.seq_len, self.too_long, self.key = seq_len, too_long, key
        self.counts = Counter(samples=0, sample_tokens=0, too_long=0, cut=0, longest=0)
        self._shortest_left_out = 0
        self._first = ""

    def keep(self, sample: Sample, at: Callable[[], str]) -> bool:
        """Whether a sample is trained on, whole or cut; counts it. `at()` says where it stands."""
        tokens, weights = sample
        size = len(tokens)
        self.counts["longest"] = max(size, self.counts["longest"])
        if size > self.seq_len:
            self._first = self._first or at()
            if self.too_long == "drop" or not any(weights[1 : self.seq_len]):  # cut, it would hold nothing to learn
                self.counts["too_long"] += 1
                self._shortest_left_out = min(size, self._shortest_left_out or size)
                return False
            self.counts["cut"] += 1
        self.counts["samples"] += 1
        self.counts["sample_tokens"] += min(size, self.seq_len)
        return True

    def cut(self, sample: Sample) -> Sample:
        """As much of a sample as a row holds."""
        return sample[0][: self.seq_len], sample[1][: self.seq_len]

    def say(self) -> list[str]:
        """A sentence where samples did not fit."""
        left_out, cut = self.counts["too_long"], self.counts["cut"]
        if not left_out + cut:
            return []
        total = self.counts["samples"] + left_out
        first = f" (the first: {self._first})" * bool(self._first)
        done = " and ".join(f"{n} are {what}" for n, what in ((left_out, "left out"), (cut, "cut")) if n)
        return [
            f"{left_out + cut} of {total} samples are longer than {self.key} = {self.seq_len} tokens{first}: {done}; "
            f"{self.key} = {self.counts['longest']} would hold all"
        ]

    def refusal(self) -> str:
        """What to change, where no sample is kept."""
        if not self._shortest_left_out:
            return "nothing is left to learn from"
        return f"none fits: raise {self.key} to {self._shortest_left_out} at least, or give shorter samples"


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
