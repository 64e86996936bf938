"""A source of batches made beforehand."""

from __future__ import annotations

from ziphius.train.trainer import StepData


class Fixed:
    """Step `n` brings `steps[n]` (lists of micro-batches), over and over; `before(n)` is called first."""

    def __init__(self, steps, before=None, metrics=None):
        self.steps, self.before, self.metrics = steps, before, metrics or {}

    def next_step(self, step):
        if self.before is not None:
            self.before(step)
        return StepData(self.steps[step % len(self.steps)], dict(self.metrics))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass
