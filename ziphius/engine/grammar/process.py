"""The processes that hold grammars: one that has the tokenizer ready, and a copy of it (a fork) for each grammar.

The first never reads a grammar, so nothing can go wrong in it. A copy may take as much memory and processor time as it
is told, then the kernel ends it; it also ends when nobody holds the other end of its socket. It gives way to the engine
wherever both want a processor.
"""

from __future__ import annotations

import gc
import os
import pickle
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import NamedTuple

from llguidance import LLMatcher, LLTokenizer

from ziphius.engine.grammar.frames import Ask, Compile, Reply, pack_reply, split, unpack
from ziphius.engine.grammar.library import compiled, library_tokenizer, look, take
from ziphius.text.tokenizer import Tokenizer

PID, BEAR, BURY = struct.Struct("<i"), b"+", b"-"
_NICER = 10
_CHUNK = 1 << 16


class Birth(NamedTuple):
    """What the first process is told: it pickles, and comes over its standard input."""

    tokenizer: Tokenizer
    vocab_size: int
    memory_bytes: int


def main() -> None:
    """Entry of the first process. `BEAR` with a socket: fork, and say the copy's id. `BURY` with an id: say how that
    one ended (as `os.waitstatus_to_exitcode`)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the engine, which then lets go of the socket
    control = socket.socket(fileno=os.dup(0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    size = struct.unpack("<Q", _exactly(control, 8))[0]
    birth: Birth = pickle.loads(_exactly(control, size))
    tokenizer = library_tokenizer(birth.tokenizer, birth.vocab_size)
    control.sendall(PID.pack(os.getpid()))
    gc.freeze()  # so that copies share what stands
    while True:
        order, sockets, _, _ = socket.recv_fds(control, 1, 1)
        if not order:
            return
        if order == BURY:
            _, status = os.waitpid(PID.unpack(_exactly(control, PID.size))[0], 0)
            control.sendall(PID.pack(os.waitstatus_to_exitcode(status)))
            continue
        pid = os.fork()
        if pid == 0:
            control.close()
            _live(socket.socket(fileno=sockets[0]), tokenizer, birth.memory_bytes)
            os._exit(0)
        os.close(sockets[0])
        control.sendall(PID.pack(pid))


def _live(channel: socket.socket, tokenizer: LLTokenizer, memory_bytes: int) -> None:
    """A copy's life: one grammar, then questions about it."""
    os.nice(_NICER)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _address_space() + memory_bytes)
    birth = _peak()
    inbox = bytearray()
    origin: LLMatcher | None = None
    later = 0.0
    matchers: dict[int, LLMatcher] = {}
    while data := channel.recv(_CHUNK):
        inbox += data
        for message in map(unpack, split(inbox)):
            if isinstance(message, Compile):
                later = message.later
                signal.setitimer(signal.ITIMER_PROF, message.seconds)  # its signal ends the process
                try:
                    origin, first = compiled(tokenizer, message.kind, message.text)
                    reply = Reply(0, 0, _peak() - birth, None, [first])
                except ValueError as error:
                    reply = Reply(0, 0, _peak() - birth, str(error), [])
            elif isinstance(message, Ask) and origin is not None:
                signal.setitimer(signal.ITIMER_PROF, later)
                if message.matcher not in matchers:
                    matchers[message.matcher] = origin.deep_copy()
                reply = _answer(matchers[message.matcher], message, birth)
            else:
                matchers.pop(message.matcher, None)
                continue
            signal.setitimer(signal.ITIMER_PROF, 0)
            channel.sendall(pack_reply(reply))


def _answer(matcher: LLMatcher, asked: Ask, birth: int) -> Reply:
    try:
        for token in asked.taken:
            take(matcher, token)
        views = look(matcher, asked.drafts)
    except ValueError as error:
        return Reply(asked.matcher, asked.turn, _peak() - birth, str(error), [])
    return Reply(asked.matcher, asked.turn, _peak() - birth, None, views)


def _exactly(channel: socket.socket, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        data = channel.recv(count - len(found))
        if not data:
            sys.exit(0)
        found += data
    return bytes(found)


def _peak() -> int:
    """Bytes of memory, the most that there were at once."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _address_space() -> int:
    """Bytes of it in use; 0 where the machine does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    with suppress(OSError, ValueError):  # macOS knows no limit of memory
        resource.setrlimit(kind, (value, value))
