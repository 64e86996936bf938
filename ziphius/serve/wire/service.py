"""What all requests share: the engine, the model's limits, room for so many requests, metrics, the log."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.price import Rate
from ziphius.serve.dialogue.ask import Limits
from ziphius.serve.dialogue.calls import WrittenCalls
from ziphius.serve.dialogue.prompt import Prompts
from ziphius.serve.dialogue.seal import Seal
from ziphius.serve.wire.keys import Keys
from ziphius.serve.wire.metrics import Metrics
from ziphius.serve.wire.runner import Runner
from ziphius.serve.wire.settings import ServeSettings
from ziphius.text.tokenizer import Tokenizer

_log = logging.getLogger("ziphius.serve")


@dataclass
class Service:
    """One model being served. `draining`: no new requests, those under way go on."""

    settings: ServeSettings
    tokenizer: Tokenizer
    runner: Runner
    limits: Limits
    rate: Rate = field(default_factory=Rate)
    keys: Keys = field(default_factory=Keys)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False

    def __post_init__(self) -> None:
        self.prompts = Prompts(self.tokenizer)
        self.seal, self.calls = Seal(), WrittenCalls()
        self.metrics = Metrics(self.runner, self.rate)
        self._active = 0
        self._seconds = 1.0  # a request's, smoothed

    def enter(self) -> None:
        """Take a place for a request. Raises ApiError: 503 while draining, 429 where there is none left."""
        if self.draining:
            raise ApiError(503, "the server is about to stop; ask again in a while", code="draining", wait=5)
        if self._active >= self.settings.max_requests:
            raise ApiError(
                429,
                f"{self._active} requests are being answered or wait, which is all there is room for; "
                "ask again after the seconds in Retry-After",
                code="too_many_requests",
                wait=self.wait(),
            )
        self._active += 1

    def leave(self, seconds: float, finished: bool) -> None:
        """Give the place back after `seconds`."""
        self._active -= 1
        if finished:
            self._seconds += 0.1 * (seconds - self._seconds)

    @property
    def active(self) -> int:
        return self._active

    def wait(self) -> int:
        """Seconds after which a place is likely to be free, 1 at least."""
        return max(1, math.ceil(self._seconds / max(1, self._active)))

    def check_model(self, name: str) -> None:
        """Raises ApiError (404) unless `name` is the model that is served."""
        if name != self.settings.name:
            raise ApiError(
                404, f"there is no model {name!r} here; this server has {self.settings.name!r}",
                param="model", code="model_not_found",
            )  # fmt: skip

    def refuse(self, path: str, error: ApiError) -> None:
        """Count a request that is turned away, and write down why."""
        self.metrics.count_request(path, error.status)
        self.log({"path": path, "id": error.id, "status": error.status, "code": error.code, "param": error.param})

    def log(self, event: dict[str, Any]) -> None:
        """One line of JSON; prompts and answers are in it only where the settings ask for them."""
        if not self.settings.log_prompts:
            event = {key: value for key, value in event.items() if key not in ("prompt", "answer")}
        _log.info(json.dumps(event, ensure_ascii=False))
