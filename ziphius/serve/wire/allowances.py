"""What each key has used today, so that it uses no more than it may."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ziphius.disk.write import write_text
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.wire.keys import Key

_log = logging.getLogger("ziphius.serve")
_DAY, _MINUTE = 86_400, 60
_SAVE_EACH = 5.0  # seconds


@dataclass
class Used:
    """Since midnight UTC."""

    requests: int = 0
    tokens: int = 0
    dollars: float = 0.0


class Allowances:
    """Counts requests when they come, tokens and dollars when their request ends.

    Requests that run at once may together pass a limit on tokens or dollars that none of them had reached. With a
    `path` the day's counts outlive the service; a kill loses those of the last five seconds.
    """

    def __init__(self, path: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self.path, self._now = path, now
        self._day = int(now() // _DAY)
        self._minute, self._this_minute = 0, dict[str, int]()
        self._changed = False
        self._saving = threading.Lock()  # the last save may come upon one that is under way in a thread
        self.used: dict[str, Used] = self._load() if path is not None else {}

    def enter(self, key: Key) -> None:
        """Count a request of `key`. Raises ApiError (429) beyond what it may use, with the seconds until it may."""
        now = self._turn()
        used = self.used.setdefault(key.name, Used())
        may = key.allowance
        to_midnight = _DAY - now % _DAY
        requests = self._this_minute.get(key.name, 0)
        for what, much, most, code, wait in (
            ("requests a day", used.requests, may.requests_per_day, "requests_per_day", to_midnight),
            ("tokens a day", used.tokens, may.tokens_per_day, "tokens_per_day", to_midnight),
            ("dollars a day", used.dollars, may.dollars_per_day, "dollars_per_day", to_midnight),
            ("requests a minute", requests, may.requests_per_minute, "requests_per_minute", _MINUTE - now % _MINUTE),
        ):
            if most is not None and much >= most:
                raise ApiError(
                    429,
                    f"the key {key.name!r} may use {most:,} {what} and has; "
                    "ask again after the seconds in Retry-After",
                    code=f"{code}_exceeded", wait=max(1, math.ceil(wait)),
                )  # fmt: skip
        used.requests += 1
        self._this_minute[key.name] = requests + 1
        self._changed = True

    def count(self, name: str, tokens: int, dollars: float) -> None:
        """Add what a request of the key called `name` used."""
        self._turn()
        used = self.used.setdefault(name, Used())
        used.tokens += tokens
        used.dollars += dollars
        self._changed = True

    def save(self) -> None:
        """Write the counts where they are kept, if there is news. What the disk says against it goes into the log."""
        with self._saving:
            if self.path is None or not self._changed:
                return
            self._changed = False
            table = {name: asdict(used) for name, used in list(self.used.items())}
            try:
                write_text(self.path, json.dumps({"day": self._day, "used": table}))
            except (OSError, ValueError) as error:
                self._changed = True
                _log.error("what the keys have used could not be written: %s", error)

    async def keep(self) -> None:
        """Save every few seconds, for ever."""
        while self.path is not None:
            await asyncio.sleep(_SAVE_EACH)
            await asyncio.to_thread(self.save)

    def _turn(self) -> float:
        """The time; a new day, or minute, begins at nothing."""
        now = self._now()
        if int(now // _MINUTE) != self._minute:
            self._minute, self._this_minute = int(now // _MINUTE), {}
        if int(now // _DAY) != self._day:
            self._day, self.used = int(now // _DAY), {}
        return now

    def _load(self) -> dict[str, Used]:
        assert self.path is not None
        try:
            kept: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["day"] != self._day:
                return {}
            return {
                str(name): Used(int(used["requests"]), int(used["tokens"]), float(used["dollars"]))
                for name, used in kept["used"].items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            _log.error("%s cannot be read, all keys begin this day anew: %s", self.path, error)
            return {}
