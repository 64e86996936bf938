"""What an engine and the process of a grammar say to each other, over a pair of sockets.

Each message is four bytes of length and as many more. The engine, which is trusted, pickles a tuple; the process
answers in a fixed form, which cannot make the reader do anything.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, NamedTuple

from ziphius.engine.grammar.library import View

LENGTH = struct.Struct("<I")
_REPLY = struct.Struct("<IIQ?H")  # matcher, turn, peak bytes, whether it failed, how many views


class Compile(NamedTuple):
    """Read this constraint, within `seconds` of processor time, and look at each later place within `later`."""

    kind: str
    text: str
    seconds: float
    later: float


class Ask(NamedTuple):
    """Let a matcher (made when first heard of) go on by `taken` and look behind each of `drafts`."""

    matcher: int
    turn: int
    taken: list[int]
    drafts: list[int]


class Drop(NamedTuple):
    """Forget a matcher."""

    matcher: int


class Reply(NamedTuple):
    """`error` in place of views. `peak` bytes of memory the process has needed so far, beyond those of its birth."""

    matcher: int
    turn: int
    peak: int
    error: str | None
    views: list[View]


def pack(message: Compile | Ask | Drop) -> bytes:
    body = pickle.dumps(message)
    return LENGTH.pack(len(body)) + body


def pack_reply(reply: Reply) -> bytes:
    failed = reply.error is not None
    head = _REPLY.pack(reply.matcher, reply.turn, reply.peak, failed, len(reply.views))
    tail = (reply.error or "").encode() if failed else b"".join(bytes([v.stopped]) + v.bits for v in reply.views)
    return LENGTH.pack(len(head) + len(tail)) + head + tail


def unpack_reply(body: bytes) -> Reply:
    """Raises ValueError for what is none."""
    try:
        matcher, turn, peak, failed, count = _REPLY.unpack_from(body)
    except struct.error as error:
        raise ValueError(f"{len(body)} bytes are no reply") from error
    tail = body[_REPLY.size :]
    if failed:
        return Reply(matcher, turn, peak, tail.decode(errors="replace"), [])
    size = len(tail) // max(count, 1)
    if not size or size * count != len(tail):
        raise ValueError(f"{len(tail)} bytes are not {count} views")
    views = [View(bool(tail[at]), tail[at + 1 : at + size]) for at in range(0, len(tail), size)]
    return Reply(matcher, turn, peak, None, views)


def split(buffer: bytearray) -> list[bytes]:
    """Take the whole messages off the front of `buffer`."""
    found = []
    while len(buffer) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            break
        found.append(bytes(buffer[LENGTH.size : end]))
        del buffer[:end]
    return found


def unpack(body: bytes) -> Any:
    """A message of the engine."""
    return pickle.loads(body)
