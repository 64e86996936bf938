"""Token ids to text as they come: no character is shown before all of its bytes are there."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from ziphius.text.tokenizer import Tokenizer


class Detokeniser:
    """The text of a stream of token ids; all pieces together equal `tokenizer.decode` of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete; bytes of an unfinished character are kept for the next call."""
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def finish(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Watches a growing text for the first of some strings, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """What of the text so far may be shown; once `found` is set, what came before it and then nothing."""
        if self.found is not None:
            return ""
        text = self._held + text
        places = [(place, -len(stop), stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            place, _, self.found = min(places)
            self._held = ""
            return text[:place]
        shown = len(text) - held_back(text, self._stops)
        self._held = text[shown:]
        return text[:shown]

    def look_on(self) -> None:
        """Search behind what was found, as where it came too early to count."""
        self.found = None

    def finish(self) -> str:
        """What was held back at the end of the text."""
        held, self._held = self._held, ""
        return held


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `stops`."""
    return max((_overlap(text, stop) for stop in stops), default=0)


def _overlap(text: str, stop: str) -> int:
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
