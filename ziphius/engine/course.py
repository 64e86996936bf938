"""Where an answer stands between thinking and answering, and what that demands of the next token. No torch."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import NamedTuple

import numpy as np

from ziphius.engine.grammar.matcher import Matcher
from ziphius.text.thinking import Thinking, ThinkingMarks


class Demand(NamedTuple):
    """Of the next token: which must come, which may (bool [W]), which comes in place of one that ends the turn, whether
    the turn may end."""

    forced: int | None = None
    allowed: np.ndarray | None = None
    for_end: int | None = None
    may_end: bool = True

    @property
    def is_none(self) -> bool:
        return self.forced is None and self.allowed is None and self.for_end is None and self.may_end


class Course:
    """Follows the tokens of one sample, also those that are only drafted, which it then takes back.

    Thinking lasts until `</think>`. Unless `thinking` is False, one that the model opens itself counts too: with its
    very first token or, where no constraint forbids it, once more before the answer. The budget of `thinking_budget`
    tokens ends it by force. The constraint binds the answer alone; for an answer to come, the end of the
    turn within the thinking is read as the end of the thinking. Where the marks are spelt in ordinary tokens, a forced
    `</think>` comes in several, the turn may not end within the thinking instead, and an answer with a constraint may
    not open one.

    What the constraint allows is known some time after `ask`: `look_ahead` may be called once nothing `waits`.
    """

    def __init__(
        self,
        marks: ThinkingMarks,
        thinking: bool | None,
        budget: int | None = None,
        matcher: Matcher | None = None,
    ) -> None:
        self._now = Thinking(bool(thinking))
        self._may_think = thinking is not False and (marks.are_tokens or matcher is None)
        self.matcher = matcher
        self._marks, self._budget = marks, budget
        self._thought = 0
        self._answered = 0
        self._trail: list[tuple[Thinking, int, int]] = []

    @property
    def thinking(self) -> bool:
        return self._now.on

    @property
    def thought(self) -> bool:
        """Whether thinking has come to its end."""
        return self._thought > 0 and not self.thinking

    def forced(self) -> int | None:
        """The token that must come, if it is settled."""
        if not self.thinking or self._budget is None or self._thought < self._budget:
            return None
        closing = self._marks.close_ids
        return closing[(self._thought - self._budget) % len(closing)]

    def allowed(self) -> np.ndarray | None:
        """The tokens that may come, bool [W]; None for all."""
        if self.thinking or self.matcher is None:
            return None
        allowed_W = self.matcher.allowed()
        if self._may_open():
            allowed_W[self._marks.open_id] = True
        return allowed_W

    @property
    def finished(self) -> bool:
        """Whether it is known that the constrained form is complete."""
        return self.matcher is not None and not self.thinking and self.matcher.finished

    @property
    def settled(self) -> bool:
        """Whether it is known if the form is complete."""
        return self.matcher is None or self.thinking or self.matcher.known

    def accepts(self, token: int) -> bool:
        """Whether `advance` may be given this token."""
        forced = self.forced()
        if forced is not None:
            return token == forced
        if self.thinking or self.matcher is None or (token == self._marks.open_id and self._may_open()):
            return True
        return self.matcher.accepts(token)

    def advance(self, token: int) -> None:
        self._trail.append((self._now, self._thought, self._answered))
        if self._step(token) and self.matcher is not None:
            self.matcher.advance(token)

    def _step(self, token: int) -> bool:
        """Whether the token belongs to the answer."""
        before, self._now = self._now, self._marks.after(self._now, token, self._may_open())
        if before.on or self._now.on:
            self._thought += before.on
        elif self._now.tail:  # perhaps the beginning of a mark
            return False
        elif token != self._marks.close_id or self._answered or self.matcher is not None:  # one too many says nothing
            self._answered += 1
            return True
        return False

    def _may_open(self) -> bool:
        return self._may_think and not self._answered and (self.matcher is None or not self._thought)

    def ask(self, drafts: Seq[int]) -> None:
        """Let the constraint be looked at as `look_ahead` will need it."""
        if self.matcher is None:
            return
        state = self._now, self._thought, self._answered
        bound, answers = not self.thinking, []
        for draft in drafts:
            if self.forced() not in (None, draft):
                break
            if self._step(draft):
                answers.append(draft)
            bound = bound or not self.thinking
        self._now, self._thought, self._answered = state
        if bound:
            self.matcher.ask(answers)

    @property
    def waits(self) -> bool:
        """Whether what was asked for is still to come. Raises GrammarError where it never will."""
        return self.matcher is not None and self.matcher.waits

    def retreat(self, count: int) -> None:
        """Take back the last `count` tokens."""
        for _ in range(count):
            now, thought, answered = self._trail.pop()
            if self.matcher is not None and self._answered > answered:
                self.matcher.retreat()
            self._now, self._thought, self._answered = now, thought, answered

    def close(self) -> None:
        """The sample has ended."""
        if self.matcher is not None:
            self.matcher.close()

    def _demand(self) -> Demand:
        owes = self.thinking and self.matcher is not None
        may_end = not owes or self._marks.are_tokens
        return Demand(self.forced(), self.allowed(), self._marks.close_id if owes else None, may_end)

    def look_ahead(self, drafts: Seq[int]) -> list[Demand]:
        """What is demanded now, and behind each draft in turn that may come itself."""
        demands = [self._demand()]
        steps = 0
        for draft in drafts:
            if not self.accepts(draft):
                break
            self.advance(draft)
            steps += 1
            demands.append(self._demand())
        self.retreat(steps)
        return demands
