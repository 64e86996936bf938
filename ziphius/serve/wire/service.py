"""What all requests share: the engine, the model's limits, room for so many requests, metrics, the log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.price import Rate
from ziphius.serve.dialogue.ask import Limits
from ziphius.serve.dialogue.calls import WrittenCalls
from ziphius.serve.dialogue.prompt import Prompts
from ziphius.serve.dialogue.seal import Seal
from ziphius.serve.wire.allowances import Allowances
from ziphius.serve.wire.keys import Keys, WatchedKeys
from ziphius.serve.wire.lanes import Lanes, asking
from ziphius.serve.wire.log import say
from ziphius.serve.wire.metrics import Metrics
from ziphius.serve.wire.places import Places
from ziphius.serve.wire.runner import Runner
from ziphius.serve.wire.settings import ServeSettings
from ziphius.text.tokenizer import Tokenizer

_log = logging.getLogger("ziphius.serve")


@dataclass
class Service:
    """One model being served, and its adapters, each a model by a name of its own with a `runner` of its own.

    `examples`: questions to begin with. `draining`: no new requests, those under way go on. `paths`: those of the API.
    """

    settings: ServeSettings
    tokenizer: Tokenizer
    runner: Runner
    limits: Limits
    rate: Rate = field(default_factory=Rate)
    keys: Keys | WatchedKeys = field(default_factory=Keys)
    allowances: Allowances = field(default_factory=Allowances)
    examples: list[str] = field(default_factory=list)
    adapters: dict[str, Runner] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    paths: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.prompts = Prompts(self.tokenizer)
        self.seal, self.calls = Seal(), WrittenCalls()
        self.metrics = Metrics(self.runners, self.rate)
        self.lanes = Lanes()
        self.requests, self.samples = Places(self.settings.max_requests), Places(self.settings.max_samples)
        self._seconds = 1.0  # a request's, smoothed

    def enter(self, owner: str, samples: int) -> None:
        """Take a place for an owner's request. Raises ApiError: 503 while draining, 429 where there is none left."""
        if self.draining:
            raise ApiError(503, "the server is about to stop; ask again in a while", code="draining", wait=5)
        for places, count, what in ((self.requests, 1, "requests"), (self.samples, samples, "answers")):
            if not places.has_room(owner, count):
                raise ApiError(
                    429,
                    f"{places.taken[owner]} {what} of yours and {places.total} in all are being written or wait, and "
                    f"{count} more would be over your part; ask again after the seconds in Retry-After, or for less",
                    code="too_many_requests",
                    wait=self.wait(),
                )
        self.requests.take(owner)
        self.samples.take(owner, samples)

    def leave(self, owner: str, samples: int, seconds: float, finished: bool) -> None:
        """Give the place back after `seconds`."""
        self.requests.give_back(owner)
        self.samples.give_back(owner, samples)
        if finished:
            self._seconds += 0.1 * (seconds - self._seconds)

    @contextmanager
    def aside(self, path: str) -> Iterator[None]:
        """A place for what needs no engine, counted and written down where it ends well. Raises as `enter`."""
        asks, began = asking.get(), time.monotonic()
        self.enter(asks.party, 1)
        try:
            yield
        finally:
            self.leave(asks.party, 1, time.monotonic() - began, finished=False)
        self.count_request(path, 200)
        about = {"path": path, "request": asks.id, "owner": asks.owner, "client": asks.address, "status": 200}
        self.log(about | {"seconds": round(time.monotonic() - began, 4)})

    @property
    def active(self) -> int:
        return self.requests.total

    def wait(self) -> int:
        """Seconds after which a place is likely to be free, 1 at least."""
        return max(1, math.ceil(self._seconds / max(1, self.active)))

    @property
    def names(self) -> list[str]:
        """What requests may call a model here."""
        return [self.settings.name, *self.adapters]

    @property
    def runners(self) -> list[Runner]:
        return [self.runner, *self.adapters.values()]

    def runner_of(self, name: str) -> Runner:
        """Who answers for the model of that name, which `check_model` knows."""
        return self.adapters.get(name, self.runner)

    def check_model(self, name: str) -> None:
        """Raises ApiError (404) unless `name` is a model that is served."""
        if name not in self.names:
            raise ApiError(
                404, f"there is no model {name!r} here; this server has {', '.join(map(repr, self.names))}",
                param="model", code="model_not_found",
            )  # fmt: skip

    def count_request(self, path: str, status: int) -> None:
        """Count a request by path and status; a path that is none of the API's must not make labels without end."""
        self.metrics.count_request(path if path in self.paths else "other", status, asking.get().party)

    def check_length(self, texts: Sequence[str], param: str) -> None:
        """Raises ApiError (400) for texts that must have more tokens than the model reads, before they are counted."""
        characters, longest = sum(map(len, texts)), self.tokenizer.longest_token
        if longest is not None and characters > longest * self.limits.context:
            raise ApiError(
                400,
                f"{param} has {characters:,} characters, which are more than {self.limits.context} tokens, all that "
                f"the model reads and writes: shorten {param}",
                param=param, code="context_length_exceeded",
            )  # fmt: skip

    def refuse(self, path: str, error: ApiError) -> None:
        """Count a request that is turned away, and write down why."""
        asks = asking.get()
        self.count_request(path, error.status)
        self.log(
            {"path": path, "request": asks.id, "status": error.status, "code": error.code, "param": error.param}
            | {"owner": asks.owner, "client": asks.address}
        )

    def charge(self, tokens: int, dollars: float) -> None:
        """Write what a request used on its key's account; there is none where no keys are asked for."""
        asks = asking.get()
        if asks.has_key:
            self.allowances.count(asks.owner, tokens, dollars)

    def log(self, event: dict[str, Any]) -> None:
        """One line of JSON; prompts and answers are in it only where the settings ask for them."""
        if not self.settings.log_prompts:
            event = {key: value for key, value in event.items() if key not in ("prompt", "answer")}
        say(_log, event)
