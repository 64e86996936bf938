"""What a step has to do with constraints, whose processes work beside it: it asks before the network reads, and hears
after.

A sample whose constraint is late sits steps out, so that nobody else waits; its tokens are those it would have got.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from contextlib import suppress

from ziphius.engine.grammar.matcher import GrammarError, Matcher, gather, listen
from ziphius.engine.sequence import Sequence

_PATIENCE_S = 0.02  # of a step, with those that were never late
_SHORT_PATIENCE_S = 0.002  # with the others
_REST_S = 0.02  # where nothing else is to be done


class Forms:
    """Knows who is late."""

    def __init__(self) -> None:
        self._late: list[Sequence] = []

    def ask(self, sequence: Sequence) -> None:
        """Have its constraint look at what a step will draw."""
        if sequence.course is not None:
            sequence.course.ask(sequence.drafts)

    def hear(self, sequences: Seq[Sequence]) -> None:
        """Mark those that are late, or have come to their end with the token before."""
        bound = [(s, s.course) for s in sequences if s.course is not None and s.course.matcher is not None]
        if not bound:
            return
        gather(_matchers([s for s, _ in bound if not s.was_late]), _PATIENCE_S)
        gather(_matchers([s for s, _ in bound]), _SHORT_PATIENCE_S)
        for sequence, course in bound:
            try:
                sequence.late = course.waits
            except GrammarError as error:
                sequence.break_off(str(error))
                sequence.refused = True
                continue
            if sequence.late:
                sequence.was_late = True
                self._late.append(sequence)
            elif course.finished:
                sequence.finish_reason = "stop"
            else:
                sequence.end_at_limit()

    def rouse(self) -> None:
        """See who need be late no longer: their constraint has spoken, or has failed, which the step will hear."""
        if self._late:
            gather(_matchers(self._late), 0.0)
            for sequence in self._late:
                with suppress(GrammarError):
                    sequence.late = False
                    sequence.late = sequence.course is not None and sequence.course.waits
            self._late = [s for s in self._late if s.late and s.finish_reason is None]

    def rest(self) -> None:
        """Where nobody can go on, wait a moment for one of those who are late."""
        listen(_matchers(self._late), _REST_S)


def _matchers(sequences: Seq[Sequence]) -> list[Matcher]:
    return [s.course.matcher for s in sequences if s.course is not None and s.course.matcher is not None]
