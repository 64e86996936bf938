"""An engine that says what it is told to: for the rare turns of a reply that a model seldom takes."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterable

from ziphius.engine.request import EngineStats, Request, Update
from ziphius.engine.tops import Tops


class ScriptedEngine:
    """Follows `script(request)` (token ids, the end token included where there is one), `pace` tokens a step.

    With `failing` set, the next step raises it; with `ending`, it ends those under way with that error. A step takes
    `delay` seconds.
    """

    def __init__(self, script: Callable[[Request], Iterable[int]], pace: int = 1, delay: float = 0.0) -> None:
        self.script, self.pace, self.delay = script, pace, delay
        self.fingerprint = "fp_0123456789"
        self.failing: Exception | None = None
        self.ending: str | None = None
        self.broken: str | None = None
        self.requests: list[Request] = []
        self.cancelled: list[int] = []
        self.steps = self.made = self.read = 0
        self._running: dict[tuple[int, int], tuple[Request, Iterable[int], list[int]]] = {}

    def prepared(self, request: Request, abandoned: threading.Event) -> contextlib.AbstractContextManager[object]:
        """Nothing takes long here."""
        return contextlib.nullcontext()

    def add(self, request: Request) -> int:
        if len(request.prompt) > 10_000:
            raise ValueError("the prompt is too long")
        self.requests.append(request)
        for sample in range(request.samples):
            self._running[len(self.requests), sample] = (request, iter(self.script(request)), [])
        self.read += len(request.prompt)
        return len(self.requests)

    def cancel(self, id: int) -> None:
        self.cancelled.append(id)
        self._running = {key: value for key, value in self._running.items() if key[0] != id}

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def step(self) -> list[Update]:
        time.sleep(self.delay)
        self.steps += 1
        if self.failing is not None:
            failing, self.failing = self.failing, None
            raise failing
        if self.ending is not None:
            ended, self._running = self._running, {}
            return [Update(id, sample, [], [], finish_reason="error", error=self.ending) for id, sample in ended]
        updates = []
        for (id, sample), (request, script, said) in list(self._running.items()):
            new = list(itertools.islice(script, min(self.pace, request.settings.max_new_tokens - len(said))))
            said += new
            self.made += len(new)
            reason = None
            if not new or new[-1] in (1, *request.settings.stop_token_ids):
                reason = "stop"
            elif len(said) == request.settings.max_new_tokens:
                reason = "length"
            if reason is not None:
                del self._running[id, sample]
            asked = request.settings.logprobs
            top = [Tops([token, token + 1][:asked], [-0.25, -1.5][:asked]) for token in new]
            tops = top if request.settings.logprobs is not None else None
            updates.append(
                Update(id, sample, new, [-0.25] * len(new), tops, reason, cached_tokens=min(2, len(request.prompt) - 1))
            )
        return updates

    def stats(self) -> EngineStats:
        running = len(self._running)
        return EngineStats(64, running, 0, running, 0, 0, 0, self.read, self.made, 0, 0, self.steps)
