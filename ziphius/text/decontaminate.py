"""Keeping evaluation questions out of training: documents that overlap with them are dropped, and counted."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ziphius.text.corpora import Source

# A word: a run of letters, digits and underscores; one Chinese or Japanese character; or one mark. Marks stay because
# "2+3" and "2*3" are different questions.
WORD = re.compile(r"[぀-ヿ一-龥]|[^\W぀-ヿ一-龥]+|[^\w\s]")
HOPELESS = 10_000  # documents dropped in a row before a source is given up


class Decontaminator:
    """Finds documents that share a run of words with an evaluation text.

    Source: the 13-gram filter of the GPT-3 report (arXiv 2005.14165, appendix C). Case and whitespace do not count. A
    document is contaminated when it holds `n` words in a row of an evaluation text, or the whole of an evaluation text
    shorter than that. Runs that are mostly marks (rules, table borders) say nothing and are left out.

    Checking a document of W words is W look-ups in a dictionary of first words, and a few in a set of runs.
    """

    def __init__(self, evaluation_texts: Iterable[str], n: int = 13) -> None:
        """ValueError: `n` below 1, or no evaluation text with a word in it."""
        if n < 1:
            raise ValueError(f"n {n} is not a number of words: give 1 or more (13 is usual)")
        self.n = n
        self.checked: Counter[str] = Counter()  # documents, by source
        self.dropped: Counter[str] = Counter()
        self._runs: set[tuple[str, ...]] = set()
        self._lengths: dict[str, tuple[int, ...]] = {}  # first word → lengths of the runs that begin with it
        for text in evaluation_texts:
            words = _words(text)
            runs = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
            self._runs.update([run for run in runs if _telling(run)] or ([tuple(words)] if words else []))
        if not self._runs:
            raise ValueError("no evaluation text has a word in it: give the questions, or do not decontaminate")
        lengths: dict[str, set[int]] = {}
        for run in self._runs:
            lengths.setdefault(run[0], set()).add(len(run))
        self._lengths = {word: tuple(sorted(found)) for word, found in lengths.items()}

    def is_contaminated(self, text: str) -> bool:
        """Whether a text overlaps with an evaluation text."""
        words = _words(text)
        return any(
            tuple(words[start : start + length]) in self._runs
            for start, word in enumerate(words)
            for length in self._lengths.get(word, ())
        )

    def keep(self, text: str, source: str) -> bool:
        """Whether a training document may be used; counts it under `source`."""
        self.checked[source] += 1
        if not self.is_contaminated(text):
            return True
        self.dropped[source] += 1
        return False


class Decontaminated:
    """A source without the documents that a decontaminator drops. The counts are part of the state."""

    def __init__(self, source: Source, decontaminator: Decontaminator, name: str) -> None:
        """`name` is the one that the decontaminator counts under."""
        self.source = source
        self.decontaminator = decontaminator
        self.name = name

    @property
    def epochs(self) -> int:
        return self.source.epochs

    @property
    def passes(self) -> float:
        return self.source.passes

    def unchanged(self, state: dict[str, Any]) -> bool:
        return self.source.unchanged(state["source"])

    def next_document(self) -> str:
        """The next document that may be used; ValueError when 10,000 in a row may not."""
        for _ in range(HOPELESS):
            document = self.source.next_document()
            if self.decontaminator.keep(document, self.name):
                return document
        raise ValueError(
            f"source {self.name!r}: {HOPELESS} documents in a row overlap with the evaluation; is it the evaluation?"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "source": self.source.state_dict(),
            "checked": self.decontaminator.checked[self.name],
            "dropped": self.decontaminator.dropped[self.name],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.decontaminator.checked[self.name] = state["checked"]
        self.decontaminator.dropped[self.name] = state["dropped"]


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _telling(run: tuple[str, ...]) -> bool:
    return 2 * sum(word[0].isalnum() for word in run) >= len(run)
