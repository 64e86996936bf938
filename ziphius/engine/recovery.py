"""An engine whose steps may fail: nobody is hurt but the sample whose fault it is."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import AbstractContextManager

from ziphius.engine.engine import Engine
from ziphius.engine.faults import is_fault
from ziphius.engine.request import EngineStats, Request, Update
from ziphius.engine.sequence import Sequence
from ziphius.engine.settings import SamplingSettings

_log = logging.getLogger("ziphius.engine")
_STRIKES = 3  # failures of one sample that is tried alone: fewer may be another's, or nobody's
_GIVES_UP = 3  # trials that fail one after the other
_LONGEST_REST = 1.0  # seconds between trials


class Recovery:
    """Steps an engine and finds whom a failure belongs to.

    After a step that failed all samples go back to their last whole token and try again, for most failures are not
    repeated. Where one is, the samples of the failed step are tried in ever smaller groups while the others stand
    aside: first the one that the failure was about, where that is known. A group is cleared when each of its samples
    has got one more token. One that fails alone, again and again, ends with an error, unless a request of no concern to
    anybody, the trial, fails too: then it is the engine that is `broken`. Those under way end with an error after some
    such trials, new ones are refused, and trials go on until one succeeds.
    """

    def __init__(self, engine: Engine, token: int) -> None:
        """`token` is the prompt of trials."""
        self.engine = engine
        self.broken: str | None = None  # why nothing can be served
        self._trial = Request([token], SamplingSettings(temperature=0, max_new_tokens=2, ignore_eos=True))
        self._error: BaseException | None = None  # of the last call, where it failed
        self._repeats = False  # whether one more failure sets off the search
        self._goals: dict[Sequence, int] = {}  # tokens at which those involved have got past the failure
        self._groups: list[list[Sequence]] = []  # to be tried, the last one is at present
        self._strikes = 0  # failures of the one that is tried alone
        self._accused: Sequence | None = None
        self._charge = ""
        self._trial_id: int | None = None
        self._failed_trials = 0

    # --- what an engine does -----------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        return self.engine.fingerprint

    @property
    def has_work(self) -> bool:
        return self.engine.has_work or self._error is not None or self._trial_id is not None

    def prepared(self, request: Request, abandoned: threading.Event) -> AbstractContextManager[object]:
        """See `Engine.prepared`."""
        return self.engine.prepared(request, abandoned)

    def add(self, request: Request) -> int:
        """See `Engine.add`. Raises RuntimeError for a request that could not be taken, whoever's fault it is."""
        if self.broken is not None:
            raise RuntimeError(self.broken)
        try:
            return self.engine.add(request)
        except ValueError:
            raise
        except BaseException as error:
            self._error = error
            if not is_fault(error):
                raise
            _report("a request could not be taken", error)
            raise RuntimeError(f"the request could not be taken: {error}") from error

    def cancel(self, id: int) -> None:
        """See `Engine.cancel`. Where it fails it may be called again."""
        try:
            self.engine.cancel(id)
        except BaseException as error:
            self._error = error
            raise

    def stats(self) -> EngineStats:
        return self.engine.stats()

    def step(self) -> list[Update]:
        """See `Engine.step`; a failure leaves what there is to say for the next call."""
        try:
            if self._error is not None:
                self._recover(self._error)
                self._error = None
            elif self._repeats or self._trial_id is not None:
                self._judge()
            self.engine.advance()
        except BaseException as error:
            self._error = error
            if not is_fault(error):
                raise
            _report("a step of the engine failed", error)
        return self.engine.updates()

    # --- the search --------------------------------------------------------------------------------------------------

    def _recover(self, error: BaseException) -> None:
        """Decide who takes part in the steps that follow one that failed."""
        subject, involved = self.engine.involved()
        self.engine.restore()
        if self._trial_id is not None:
            self._try_again(self._trial_id, error)
            return
        searching = bool(self._groups)
        suspects = [s for s in (self._groups.pop() if searching else involved) if not s.closed]
        if not searching:
            self._goals = {s: s.generated + 1 for s in suspects}
        if not self._repeats:
            self._repeats = True
        elif len(suspects) == 1:
            self._strikes += 1
            if self._strikes >= _STRIKES:
                self._accuse(suspects[0], error)
                return
            self._groups.append(suspects)
        elif suspects:
            first = [subject] if subject in suspects else suspects[len(suspects) // 2 :]
            self._groups += [[s for s in suspects if s not in first], first]
        self._let_in()

    def _judge(self) -> None:
        """Go on where those who are tried have got past the failure."""
        if self._trial_id is not None:
            if not self.engine.samples(self._trial_id):
                self._convict()
            return
        tried = self._groups[-1] if self._groups else self._goals
        if all(s.closed or s.generated >= self._goals[s] for s in tried):
            self._groups, self._strikes = self._groups[:-1], 0
            self._let_in()
            if not self._groups:
                self._goals, self._repeats = {}, False

    def _let_in(self) -> None:
        self.engine.take_part(self._groups[-1] if self._groups else None)

    def _accuse(self, sequence: Sequence, error: BaseException) -> None:
        """Have the trial say whether it is to blame for failing alone."""
        self._groups, self._goals, self._repeats, self._strikes = [], {}, False, 0
        id = self.engine.add(self._trial)
        self._accused, self._charge, self._trial_id = sequence, f"the engine failed at this answer: {error}", id
        self.engine.take_part(self.engine.samples(id))

    def _convict(self) -> None:
        """The trial went well, so the engine is sound and the one who was accused, if any, is to blame."""
        if self._accused is not None and not self._accused.closed:
            self.engine.fail(self._accused, self._charge)
        self.engine.take_part(None)
        self._accused, self._trial_id, self._failed_trials, self.broken = None, None, 0, None

    def _try_again(self, id: int, error: BaseException) -> None:
        """The trial failed: it is the engine's own fault."""
        self._failed_trials += 1
        time.sleep(min(0.02 * 2**self._failed_trials, _LONGEST_REST))
        if self._failed_trials >= _GIVES_UP:
            self.broken = f"the engine failed: {error}"
            for sequence in self.engine.under_way():
                if sequence.id != id:
                    self.engine.fail(sequence, self.broken)
        self.engine.take_part(self.engine.samples(id))


def _report(what: str, error: BaseException) -> None:
    _log.error(what, exc_info=error)
