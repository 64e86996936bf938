"""The constraints of an engine: prepared out of the way of others, and kept for later requests in bounded memory."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from weakref import WeakMethod

from ziphius.engine.grammar.form import Form, TooLong
from ziphius.engine.grammar.lanes import Abandoned, Lane
from ziphius.engine.grammar.matcher import Matcher
from ziphius.engine.grammar.nursery import Nursery
from ziphius.engine.grammar.process import Birth
from ziphius.engine.settings import Constraint, EngineSettings
from ziphius.text.tokenizer import Tokenizer

_COPY_BYTES = 4 << 20  # of a process's memory that are its own before it reads anything
_QUICK, _QUICK_S, _QUICK_CHARACTERS = 4, 0.25, 1 << 14
_REFUSALS = 1024  # remembered, so that what is asked for again and again is refused at once
_REFUSED_S = 60.0  # then it is tried again: the machine may have been busy
_GLANCE_S = 0.05
_KEPT_S = 5.0  # what is in use is asked for again within seconds; the rest costs little to prepare anew

Key = bytes


class _Hold:
    """A request to come that needs a constraint."""


class Grammars:
    """Thread-safe but for the matchers, which belong to the engine's thread.

    A constraint is first tried in the lane of the quick; one that is long, or that does not pass in `_QUICK_S` seconds,
    waits its turn in the lane of the slow, where one at a time is read. What nobody uses is kept a few seconds.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, settings: EngineSettings) -> None:
        self._settings, self._vocab_size = settings, vocab_size
        self._nursery = Nursery(Birth(tokenizer, vocab_size, settings.grammar_mib << 20))
        self._quick, self._slow = Lane(_QUICK), Lane(1)
        self._change = threading.Condition()
        self._forms: OrderedDict[Key, Form] = OrderedDict()  # those unused for longest come first
        self._pending: set[Key] = set()
        self._refused: OrderedDict[Key, tuple[str, float]] = OrderedDict()  # why, and when
        self._timer: threading.Timer | None = None

    @contextmanager
    def held(self, constraint: Constraint, owner: str = "", abandoned: threading.Event | None = None) -> Iterator[Form]:
        """Prepare a constraint, which may take seconds, and keep it for as long as the block runs.

        Raises ValueError for one that cannot be used, Abandoned once that is set, RuntimeError where no process starts.
        """
        hold = _Hold()
        form = self._hold(hold, constraint, owner, abandoned or threading.Event())
        try:
            yield form
        finally:
            self._release(form, hold)

    def matchers(self, constraint: Constraint, count: int) -> list[Matcher]:
        """Follow `count` answers. Raises as `held`, and takes as long where the constraint is not."""
        with self.held(constraint) as form:
            matchers = [Matcher(form, self._release) for _ in range(count)]
            with self._change:
                form.users.update(matchers)
            return matchers

    @property
    def bytes(self) -> int:
        """Of memory that the processes take."""
        with self._change:
            return sum(map(_size, self._forms.values()))

    def _hold(self, hold: _Hold, constraint: Constraint, owner: str, abandoned: threading.Event) -> Form:
        key = _key(constraint)
        if (form := self._known(hold, key, abandoned)) is not None:
            return form
        try:
            form = self._prepared(constraint, owner, abandoned)
        except ValueError as error:
            with self._change:
                self._refused[key] = str(error), time.monotonic()
                if len(self._refused) > _REFUSALS:
                    self._refused.popitem(last=False)
            raise
        finally:
            with self._change:
                self._pending.remove(key)
                self._change.notify_all()
        with self._change:
            form.users.add(hold)
            self._forms[key] = form
            self._tidy()
        return form

    def _known(self, hold: _Hold, key: Key, abandoned: threading.Event) -> Form | None:
        """The form, if there is one, with one user more; else it is for the caller to prepare."""
        with self._change:
            while True:
                if (form := self._forms.get(key)) is not None and not form.users:
                    form.exchange()  # it may have been killed in its sleep
                    self._tidy()
                if (form := self._forms.get(key)) is not None:
                    if form.broken is not None:
                        raise ValueError(f"the constraint failed: {form.broken}")
                    form.users.add(hold)
                    self._forms.move_to_end(key)
                    return form
                why, when = self._refused.get(key, ("", -math.inf))
                if time.monotonic() - when < _REFUSED_S:
                    raise ValueError(why)
                if key not in self._pending:
                    self._pending.add(key)
                    return None
                self._change.wait(_GLANCE_S)  # someone else prepares it
                if abandoned.is_set():
                    raise Abandoned

    def _prepared(self, constraint: Constraint, owner: str, abandoned: threading.Event) -> Form:
        limit = self._settings.grammar_seconds
        if len(constraint.text) <= _QUICK_CHARACTERS and limit > _QUICK_S:
            with self._quick.turn(owner, abandoned), suppress(TooLong):
                return self._read(constraint, _QUICK_S, abandoned)
        with self._slow.turn(owner, abandoned):
            return self._read(constraint, limit, abandoned)

    def _read(self, constraint: Constraint, seconds: float, abandoned: threading.Event) -> Form:
        form = Form(self._nursery, constraint, self._vocab_size, self._settings.grammar_mib, self._outgrown)
        try:
            form.prepare(constraint, seconds, self._settings.grammar_seconds, abandoned)
        except BaseException:
            form.close()
            raise
        return form

    def _release(self, form: Form, user: object) -> None:
        """May be called again where it failed."""
        with self._change:
            form.users.discard(user)
            form.left_at = time.monotonic()
            self._tidy()

    def _outgrown(self) -> None:
        with self._change:
            self._tidy()

    def _expire(self) -> None:
        with self._change:
            self._timer = None
            self._tidy()

    def _wind(self) -> None:
        """Look again after a while: users may have gone without a word."""
        if self._timer is None and self._forms:
            expire = WeakMethod(self._expire)
            self._timer = threading.Timer(_KEPT_S, _call, [expire])
            self._timer.daemon = True
            self._timer.start()

    def _tidy(self) -> None:
        """Let go of what is of no more use, then of what has been unused for longest, until the rest fits. Where it is
        what is in use that does not fit, the largest goes: its requests fail, not those of others."""
        settings = self._settings
        for key, form in list(self._forms.items()):
            stale = time.monotonic() - form.left_at > _KEPT_S
            if not form.users and (stale or form.broken is not None or not form.idle):
                self._forget(key)
        unused = [key for key, form in self._forms.items() if not form.users]
        total = sum(map(_size, self._forms.values()))
        kept = sum(_size(self._forms[key]) for key in unused)
        for key in unused:
            if kept <= settings.grammar_cache_mib << 20 and total <= settings.grammars_mib << 20:
                break
            size = _size(self._forms[key])
            kept, total = kept - size, total - size
            self._forget(key)
        self._wind()
        used = sorted((form for form in self._forms.values() if form.broken is None), key=_size)
        while used and total > settings.grammars_mib << 20:
            largest = used.pop()
            total -= _size(largest)
            largest.end(
                f"all constraints together take more than {settings.grammars_mib} MiB of memory, and this one the "
                "most; make it shorter, or ask again later"
            )

    def _forget(self, key: Key) -> None:
        self._forms.pop(key).close()


def _key(constraint: Constraint) -> Key:
    return blake2b(f"{constraint.kind} {constraint.text}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _size(form: Form) -> int:
    """Bytes of memory; nothing of a process that has ended."""
    return 0 if form.broken is not None else _COPY_BYTES + form.peak


def _call(method: WeakMethod[Callable[[], None]]) -> None:
    if (bound := method()) is not None:
        bound()
