"""What follows one answer, as far as the process of its constraint has said: `ask`, then `gather`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ziphius.engine.grammar.form import Form, poll_all
from ziphius.engine.grammar.frames import Ask, Reply
from ziphius.engine.grammar.library import View


class GrammarError(Exception):
    """A constraint that its own tokens broke, or that grew past its limits."""


class Matcher:
    """What may follow the part of an answer seen so far; gives itself back by `release` when that has ended."""

    def __init__(self, form: Form, release: Callable[[Form, Matcher], None]) -> None:
        self.form, self._number, self._release = form, form.number(), release
        self._turn = 0
        self._until = 0.0
        self._error: str | None = None
        self._closed = False
        self._taken: list[int] = []  # beyond the first view
        self._drafts: list[int] = []
        self._views = [form.first]  # of the place before the drafts, and behind each of them

    @property
    def asked(self) -> bool:
        """Whether the answer to a question is still to come, if it comes at all."""
        return not self._views and self._error is None and not self._closed

    @property
    def waits(self) -> bool:
        """Whether the answer to a question is still to come. Raises GrammarError where none will."""
        failed = self._error or self.form.broken
        if failed is not None:
            raise GrammarError(f"the constraint failed: {failed}")
        if self.asked and time.monotonic() > self._until:
            self.form.end("its process does not answer")
            return self.waits
        return self.asked

    @property
    def finished(self) -> bool:
        """Whether it is known that nothing more can follow."""
        view = self._view()
        return view is not None and view.stopped

    @property
    def known(self) -> bool:
        """Whether it is known what may come now."""
        return self._view() is not None

    def ask(self, drafts: Sequence[int]) -> None:
        """Have the process look at this place and behind each of `drafts`, unless it has or does."""
        drafts = list(drafts)
        if (not drafts and self._view() is not None) or (drafts == self._drafts and not self._taken):
            return
        self._turn += 1
        question = Ask(self._number, self._turn, self._taken, drafts)
        self._views, self._taken, self._drafts = [], [], drafts
        self._until = time.monotonic() + self.form.patience
        self.form.ask(self, question)

    def hear(self, reply: Reply) -> bool:
        """Take in a reply; whether it is the one waited for."""
        if reply.turn != self._turn:
            return False
        self._error, self._views = reply.error, reply.views
        return True

    def allowed(self) -> np.ndarray:
        """bool [W]."""
        bits = np.frombuffer(self._known().bits, np.uint8)
        return np.unpackbits(bits, count=self.form.vocab_size, bitorder="little").astype(bool)

    def accepts(self, token: int) -> bool:
        view = self._known()
        return not view.stopped and bool(view.bits[token // 8] >> token % 8 & 1)

    def advance(self, token: int) -> None:
        self._taken.append(token)

    def retreat(self) -> None:
        self._taken.pop()

    def restart(self) -> None:
        """Follow the answer from its beginning once more."""
        if not self._closed:
            self.form.drop(self._number)
            self._number, self._error = self.form.number(), None
            self._taken, self._drafts, self._views = [], [], [self.form.first]

    def close(self) -> None:
        """The answer has ended. Where this fails it may be called again."""
        if not self._closed:
            self.form.drop(self._number)
            self._release(self.form, self)
            self._closed = True

    def _view(self) -> View | None:
        behind = len(self._taken)
        if behind < len(self._views) and self._taken == self._drafts[:behind]:
            return self._views[behind]
        return None

    def _known(self) -> View:
        view = self._view()
        if view is None:
            raise AssertionError("ask, and gather, before")
        return view


def gather(matchers: Sequence[Matcher], seconds: float) -> None:
    """Hear what the processes say, until all `matchers` have their answers or `seconds` are over."""
    end = time.monotonic() + seconds
    listen(matchers, 0.0)
    while any(map(_is_open, matchers)) and (left := end - time.monotonic()) > 0:
        listen(matchers, left)


def listen(matchers: Iterable[Matcher], seconds: float) -> None:
    """Wait until one of the processes says something, at most `seconds`, and take that in."""
    forms = list({matcher.form: None for matcher in matchers if _is_open(matcher)})
    if forms and seconds:
        poll_all(forms, seconds)
    for form in forms:
        form.exchange()


def _is_open(matcher: Matcher) -> bool:
    return matcher.asked and matcher.form.broken is None
