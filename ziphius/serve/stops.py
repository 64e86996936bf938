"""The end of a growing text that a stop string may yet swallow."""

from __future__ import annotations

from collections.abc import Sequence


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
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self, text: str = "") -> str:
        """What was held back, and `text`, at the end."""
        held, self._held = self._held, ""
        return held + text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
