"""API keys: kept as hashes in a file, compared in constant time. Imports no torch."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from ziphius.disk.write import replacing

_FORM = "sha256:"


@dataclass(frozen=True)
class Keys:
    """The keys of a file, as (name, SHA-256 in hex); no keys at all let everybody in.

    The keys are 256 random bits, so that a plain hash cannot be turned back and a slow one would gain nothing.
    """

    hashes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def load(cls, path: Path) -> Keys:
        """Reads lines of `name sha256:HEX`; `#` begins a comment. Raises ValueError naming the line."""
        if not path.is_file():
            raise ValueError(f"{path}: no such file of keys; make one with `ziphius key {path} NAME`")
        found = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not (words := line.partition("#")[0].split()):
                continue
            digest = words[-1].removeprefix(_FORM)
            if (
                len(words) != 2
                or not words[1].startswith(_FORM)
                or len(digest) != 64
                or set(digest) - set("0123456789abcdef")
            ):
                raise ValueError(
                    f"{path}:{number}: a line is `name {_FORM}` and 64 hex digits; `ziphius key` writes it"
                )
            found.append((words[0], digest))
        if not found:
            raise ValueError(f"{path}: holds no key; make one with `ziphius key {path} NAME`")
        return cls(tuple(found))

    def owner(self, authorization: str | None) -> str | None:
        """The name behind an `Authorization: Bearer` header; None for a key that is not in the file."""
        if not self.hashes:
            return "anyone"
        scheme, _, key = (authorization or "").partition(" ")
        digest = _hash(key.strip())
        owners = [name for name, known in self.hashes if hmac.compare_digest(known, digest)]
        return owners[0] if owners and scheme.lower() == "bearer" else None


def new_key(path: Path, name: str) -> str:
    """Make a key, add its hash to `path` (made where there is none, readable by its owner alone), return the key."""
    if len(name.split()) != 1 or "#" in name:
        raise ValueError(f"{name!r} is no name for a key; use one word without #")
    if path.exists() and any(known == name for known, _ in (Keys.load(path).hashes if path.stat().st_size else ())):
        raise ValueError(f"{path} has a key called {name!r} already; take another name, or delete that line")
    key = f"zk-{secrets.token_urlsafe(32)}"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text and not text.endswith("\n"):
        text += "\n"
    with (
        replacing(path) as aside,
        open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file,
    ):
        file.write(f"{text}{name} {_FORM}{_hash(key)}\n")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
