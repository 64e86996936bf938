"""The end of a growing text that a stop string may yet swallow."""

from __future__ import annotations

from collections.abc import Sequence

from ziphius.text.detokenise import held_back


class StopTail:
    """Lets a text through, but for the beginning of a stop string at its end. The engine says when one is complete."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str, stop: str | None = None) -> str:
        """What may be shown; with `stop`, the text before it, and nothing is held any more."""
        text = self._held + text
        if stop is not None and stop in text:
            self._held = ""
            return text[: text.index(stop)]
        shown = len(text) - held_back(text, self._stops)
        self._held = text[shown:]
        return text[:shown]

    def finish(self, text: str = "") -> str:
        """What was held back, and `text`, at the end."""
        held, self._held = self._held, ""
        return held + text
