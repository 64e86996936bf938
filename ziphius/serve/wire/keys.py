"""API keys: kept as hashes in a file, compared in constant time. Imports no torch."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
from dataclasses import dataclass, fields
from pathlib import Path

_log = logging.getLogger("ziphius.serve")
FORM = "sha256:"
_MOST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Allowance:
    """What a key may use; None: without limit. Days and minutes are UTC's. Tokens are those of prompt and answer."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_day: int | None = None
    dollars_per_day: float | None = None

    @classmethod
    def of(cls, words: list[str]) -> Allowance:
        """From words such as `tokens_per_day=100000`. Raises ValueError."""
        given: dict[str, float] = {}
        for word in words:
            name, _, text = word.partition("=")
            if name not in {field.name for field in fields(cls)} or name in given:
                known = ", ".join(f"{field.name}=N" for field in fields(cls))
                raise ValueError(f"{word!r} is not an allowance; they are {known}, each once at most")
            try:
                number = float(text) if name == "dollars_per_day" else int(text)
            except ValueError:
                number = math.nan
            if not 0 < number < math.inf:
                raise ValueError(f"{word!r}: a positive number must stand behind the =")
            given[name] = number
        return cls(**given)  # type: ignore[arg-type]

    @property
    def words(self) -> list[str]:
        """As `of` reads it."""
        pairs = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [f"{name}={value}" for name, value in pairs if value is not None]


@dataclass(frozen=True)
class Key:
    """A key's name, its SHA-256 in hex, and what it may use."""

    name: str
    digest: str
    allowance: Allowance = Allowance()

    @property
    def line(self) -> str:
        return " ".join((self.name, FORM + self.digest, *self.allowance.words))


@dataclass(frozen=True)
class Keys:
    """The keys of a file. `guarded`: a key is needed; without a file everybody is let in.

    The keys are 256 random bits, so that a plain hash cannot be turned back and a slow one would gain nothing.
    """

    entries: tuple[Key, ...] = ()
    guarded: bool = False

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Reads lines of `name sha256:HEX`, allowances behind it; `#` begins a comment. Raises ValueError."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file of keys; make one with `ziphius key {path} NAME`")
        entries = read_keys(path)
        if not entries:
            raise ValueError(f"{path}: holds no key; make one with `ziphius key {path} NAME`")
        return cls(entries, guarded=True)

    def find(self, authorization: str | None, api_key: str | None = None) -> Key | None:
        """The key of an `Authorization: Bearer` header, or of `x-api-key`; None for one that is not in the file."""
        scheme, _, bearer = (authorization or "").partition(" ")
        sent = [bearer.strip()] if scheme.lower() == "bearer" else []
        digests = [hash_of(key) for key in (*sent, api_key or "") if key]
        found = [key for key in self.entries for digest in digests if hmac.compare_digest(key.digest, digest)]
        return found[0] if found else None


class WatchedKeys:
    """The keys of a file as it is now: it is looked at again at each request.

    A file that cannot be read as keys leaves the last good ones in force, until it has changed or, where it was the
    system that would not read it, can be read again; one that is gone, or holds none, locks everybody out. Never does
    it open the service.
    """

    guarded = True

    def __init__(self, path: Path) -> None:
        """Raises ValueError for a file that holds no keys."""
        self.path = path
        self._seen = self._stamp()
        self._failed = ""  # what the system said last, which is logged once
        self._keys = Keys.load(path)

    def find(self, authorization: str | None, api_key: str | None = None) -> Key | None:
        """As `Keys.find`."""
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            self._load()
        return self._keys.find(authorization, api_key)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _load(self) -> None:
        try:
            entries = read_keys(self.path) if self._seen is not None else ()
        except (OSError, ValueError) as error:
            if str(error) != self._failed:
                _log.error("the file of keys cannot be read, the keys read before stay in force: %s", error)
            if isinstance(error, OSError):
                self._failed, self._seen = str(error), (-1, -1, -1)  # the next request tries again
            return
        self._failed = ""
        self._keys = Keys(entries, guarded=True)
        if entries:
            _log.warning("%s: %d keys are in force now", self.path, len(entries))
        else:
            _log.error("%s holds no key any more: nobody is let in until it does", self.path)


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file, none of an empty one. Raises ValueError naming the line, OSError."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: is no file of keys, it is larger than {_MOST_BYTES} bytes")
    found: dict[str, Key] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not (words := line.partition("#")[0].split()):
            continue
        digest = words[1].removeprefix(FORM) if len(words) > 1 and words[1].startswith(FORM) else ""
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise ValueError(
                f"{path}:{number}: a line is `name {FORM}`, 64 hex digits, and allowances; `ziphius key` writes it"
            )
        if words[0] in found:
            raise ValueError(f"{path}:{number}: there are two keys called {words[0]!r}")
        try:
            found[words[0]] = Key(words[0], digest, Allowance.of(words[2:]))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return tuple(found.values())


def hash_of(key: str) -> str:
    """What a file keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
