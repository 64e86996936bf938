"""How much of prompts a step reads, so that nobody waits long for it to end. Imports no torch."""

from __future__ import annotations

from ziphius.engine.settings import EngineSettings

_LEAST = 64  # tokens, however slow: what is read in one pass shares the reading of the weights
_FIRST = 256  # before anything was measured


class Reading:
    """Keeps steps that read prompts near `step_seconds`."""

    def __init__(self, settings: EngineSettings) -> None:
        self._wanted, self._most = settings.step_seconds, settings.max_batch_tokens
        self._tokens = float(_FIRST)

    def tokens(self) -> int | None:
        """Tokens of prompts for the next step; None for as many as fit."""
        return None if self._wanted is None else int(self._tokens)

    def note(self, tokens: int, seconds: float) -> None:
        """A step that read prompts took so long with so many tokens, those of answers included.

        Half the way to the number at this speed, and at most twice as many: a step that the machine held up for once
        counts little, and one with few tokens, which costs more for each, is no measure of a large one.
        """
        if self._wanted is None:
            return
        fitting = tokens * self._wanted / max(seconds, 1e-6)
        if fitting > self._tokens and tokens < self._tokens / 2:
            return
        fitting = min(max(fitting, self._tokens / 2), 2 * self._tokens)
        self._tokens = min(max((self._tokens + fitting) / 2, _LEAST), self._most)
