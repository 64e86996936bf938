"""Which updates are left out, and when a stage that goes wrong must stop.

All of it follows from gradient norms and losses that are the same on every rank, so all ranks decide alike; and it is
part of the saved state, so a resumed stage decides as the unbroken one would have.
"""

from __future__ import annotations

import math
from collections import Counter
from statistics import fmean, median

SPIKE_HISTORY, SPIKE_FIRST = 32, 16  # recent gradient norms, and how many of them a judgement needs
WINDOW = 50  # updates over which the share of those left out is taken
IN_A_ROW = 10  # losses or gradients that are not finite, one after the other: more of the same will follow
LOSS_WINDOW = 20  # losses that make one judgement
LOSS_FACTOR = 1.5  # on the loss of guessing blindly, or on the first loss where that is higher

MADE, SPIKE, NOT_FINITE = "made", "a spike of the gradient", "not finite"


class Diverged(ValueError):
    """The stage has stopped because its training went wrong; the message says what, where and the mend."""


class Guard:
    """Judges the updates of one stage.

    `spike_factor`: an update is left out where its gradient norm is above this times the median of the recent ones.
    Norms of spikes count among those, so a lasting rise is accepted after half of `SPIKE_HISTORY` updates.
    `max_skipped`: the stage has diverged when more than this share of the last `WINDOW` updates was left out.
    `guessing`: loss of a blind guess (ln of the vocabulary), None where the loss is no cross-entropy. The stage has
    also diverged when its mean loss over `LOSS_WINDOW` updates is above `LOSS_FACTOR` times the greater of it and the
    first loss, which no update has touched yet.
    """

    def __init__(self, spike_factor: float, max_skipped: float, guessing: float | None) -> None:
        self.spike_factor, self.max_skipped, self.guessing = spike_factor, max_skipped, guessing
        self.grad_norms: list[float] = []
        self.outcomes: list[str] = []
        self.losses: list[float] = []
        self.first_loss: float | None = None

    def admits(self, norm: float, loss: float) -> bool:
        """Whether the update with this gradient norm and mean loss may be made; remembers both."""
        finite = math.isfinite(norm) and math.isfinite(loss)
        outcome = NOT_FINITE if not finite else SPIKE if self._is_spike(norm) else MADE
        self.outcomes = [*self.outcomes, outcome][-WINDOW:]
        if finite:
            self.grad_norms = [*self.grad_norms, norm][-SPIKE_HISTORY:]
            self.losses = [*self.losses, loss][-LOSS_WINDOW:]
            self.first_loss = loss if self.first_loss is None else self.first_loss
        return outcome == MADE

    def _is_spike(self, norm: float) -> bool:
        return len(self.grad_norms) >= SPIKE_FIRST and norm > self.spike_factor * median(self.grad_norms)

    def complaint(self, finished: bool) -> str | None:
        """What shows that training has diverged, None where nothing does. A `finished` stage is judged by what it has,
        however short it was."""
        counts = Counter(self.outcomes)
        skipped, seen = counts[SPIKE] + counts[NOT_FINITE], len(self.outcomes)
        in_a_row = self.outcomes[-IN_A_ROW:].count(NOT_FINITE) == IN_A_ROW
        if in_a_row or skipped > self.max_skipped * (seen if finished else WINDOW):
            reasons = [f"{counts[kind]} {kind}" for kind in (NOT_FINITE, SPIKE) if counts[kind]]
            return f"{skipped} of the last {seen} updates had to be left out ({', '.join(reasons)})"
        if self.guessing is None or self.first_loss is None or len(self.losses) < LOSS_WINDOW:
            return None
        now, limit = fmean(self.losses), LOSS_FACTOR * max(self.guessing, self.first_loss)
        if now > limit:
            guess = f"a blind guess costs {self.guessing:.1f}"
            return f"the loss is {now:.1f} over the last {LOSS_WINDOW} updates and {guess}"
        return None

    def state_dict(self) -> dict[str, list | float | None]:
        names = ("grad_norms", "outcomes", "losses", "first_loss")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, list | float | None]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
