"""What a stranger sends to a service to hurt it: one attack a process, on this machine's own service.

`python bench/attacks.py NAME PORT KEY SECONDS SEED` is how bench/strangers.py starts one; it prints what came back, as
JSON. Every attack is bounded in time (SECONDS) and in count, goes to 127.0.0.1 alone, and imports no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

MODEL = "whale"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
OTHERS = ("/v1/responses", "/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/v1/embeddings")
EXTREMES = (
    0, -1, 1, 2**31, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, True, "7", [], {},
)  # fmt: skip
NUMBERS = (
    "top_k", "top_p", "min_p", "temperature", "max_tokens", "max_completion_tokens", "min_tokens", "n", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "top_logprobs", "logprobs", "stop_token_ids",
)  # fmt: skip


@dataclass
class Target:
    """The service, the stranger's key, and how long to go on."""

    port: int
    key: str
    seconds: float
    draw: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    ends: float = 0.0

    @property
    def left(self) -> float:
        return self.ends - time.monotonic()


Attack = Callable[[Target], Awaitable[None]]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Lists an attack under its name."""
    ATTACKS[function.__name__] = function
    return function


# --- sending ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connection(target: Target) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=("127.0.0.2", 0))
    try:
        yield reader, writer
    finally:
        writer.close()


def head(target: Target, path: str, length: int, more: str = "") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {target.key}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
    ).encode()


async def send(target: Target, body: bytes, path: str = CHAT, leave_after: float | None = None) -> None:
    """One request, read to its end, or left in the middle; its status is counted."""
    limit = max(0.0, min(target.left, leave_after if leave_after is not None else target.left))
    try:
        async with asyncio.timeout(limit), connection(target) as (reader, writer):
            writer.write(head(target, path, len(body)) + body)
            line = await reader.readline()
            target.seen[line[9:12].decode("latin-1") or "closed"] += 1
            while await reader.read(65536):
                pass
    except TimeoutError:
        target.seen["left"] += 1
    except OSError as error:
        target.seen[type(error).__name__] += 1


async def flood(target: Target, bodies: Iterable[bytes], at_once: int, path: str = CHAT, leaves: bool = False) -> None:
    """Send `bodies`, so many at once, until they or the time are used up; with `leaves`, each is left at random."""
    waiting: Iterator[bytes] = iter(bodies)

    async def one_after_the_other() -> None:
        for body in waiting:
            if target.left <= 0:
                return
            await send(target, body, path, target.draw.random() * 0.3 if leaves else None)

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))


def ask(text: str = "hi", **fields: Any) -> bytes:
    """A chat request's body."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 16} | fields
    return json.dumps(body).encode()


def regex(pattern: str, **fields: Any) -> bytes:
    return ask(response_format={"type": "regex", "pattern": pattern}, **fields)


def lark(text: str) -> bytes:
    return ask(response_format={"type": "grammar", "grammar": text})


def schema(value: Any) -> bytes:
    return ask(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": value}})


def strict_tool(parameters: Any) -> bytes:
    return ask(tools=[{"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}])


def raw(*fields: tuple[str, str]) -> bytes:
    """A chat request with fields in JSON's own words, which Python would not write."""
    more = "".join(f', "{name}": {value}' for name, value in fields)
    return f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "hi"}}]{more}}}'.encode()


# --- fields ----------------------------------------------------------------------------------------------------------


@attack
async def numbers(target: Target) -> None:
    """Every number of a request at its extremes, in the words of JSON and beyond them."""
    bodies = [ask(**{name: value}) for name in NUMBERS for value in EXTREMES]
    words = ("NaN", "Infinity", "-Infinity", "1" + "0" * 5000, "1e400", "-1e-400")
    bodies += [raw((name, word)) for name in NUMBERS for word in words]
    bodies += [ask(logit_bias={str(token): value}) for token in (-1, 0, 2**63, 10**30) for value in (-100, 100, 1e308)]
    bodies += [ask(logit_bias=dict.fromkeys(map(str, range(700)), 100), n=8), ask(stop=["a" * 10_000] * 16)]
    target.draw.shuffle(bodies)
    await flood(target, bodies, 8)


@attack
async def leaving(target: Target) -> None:
    """Streams that are broken off at a random moment."""
    bodies = (ask(f"whale {i}", stream=True, n=4, max_tokens=200) for i in range(3000))
    await flood(target, bodies, 32, leaves=True)


@attack
async def many_samples(target: Target) -> None:
    """Eight requests at a time of 128 long answers each."""
    await flood(target, (ask(f"whale {i}", n=128, max_tokens=400, min_tokens=400) for i in range(200)), 8)


@attack
async def logprobs(target: Target) -> None:
    """As much to say about each token as may be asked for."""
    bodies = (ask(f"whale {i}", n=128, max_tokens=60, logprobs=True, top_logprobs=20) for i in range(200))
    await flood(target, bodies, 8)


@attack
async def full_prompts(target: Target) -> None:
    """Prompts that fill the context, each with words of its own."""

    def body(i: int) -> bytes:
        words = random.Random(i).choices("abcdefghijklmnopqrstuvwxyz", k=460)
        return ask("".join(words), max_tokens=4, n=2)

    await flood(target, map(body, range(4000)), 64)


# --- grammars --------------------------------------------------------------------------------------------------------


@attack
async def grammars_of_memory(target: Target) -> None:
    """66 regular expressions that are small to write and large to hold."""
    await flood(target, [regex(f"x{i}(a{{1000}}){{1000}}") for i in range(66)], 8)


@attack
async def grammars_of_time(target: Target) -> None:
    """Grammars of 1 MB with 100,000 alternatives."""

    def body(i: int) -> bytes:
        return lark("start: " + " | ".join(f'"{i}w{k:05d}"' for k in range(70_000)) + "\n")

    await flood(target, map(body, range(12)), 6)


@attack
async def grammars_left(target: Target) -> None:
    """Such grammars, whose clients do not wait for them."""
    bodies = [lark("start: " + " | ".join(f'"{i}v{k:05d}"' for k in range(70_000)) + "\n") for i in range(12)]
    await flood(target, itertools.islice(itertools.cycle(bodies), 100), 6, leaves=True)


@attack
async def grammars_that_explode(target: Target) -> None:
    """Doubling, counting, recursive, ambiguous, nested and broken ones of every kind."""
    doubling = "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(40)) + 'r40: "a"\n'
    nest: Any = {"type": "string"}
    for _ in range(400):
        nest = {"type": "object", "properties": {"a": nest}, "required": ["a"]}
    deep = '{"type":"array","items":' * 20_000 + "{}" + "}" * 20_000
    bodies = [
        regex("a{1000000}"), regex("(a|b)*a(a|b){200}"), regex("(" * 30_000 + "a" + ")" * 30_000), regex("((a+)+)+b"),
        regex("[" + "".join(map(chr, range(256, 9000))) + "]{300}"), regex("(.{0,400}x){0,400}"), regex("a**"),
        lark(doubling), lark("start: start start | \"a\""), lark("start: x\nx: x"), lark("start: /(a{500}){500}/"),
        lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000), lark("start: %json {"), lark("\0"),
        schema({"$ref": "#"}), schema(nest), schema({"enum": [f"{i}" * 9 for i in range(60_000)]}),
        schema({"allOf": [{"$ref": "#/$defs/a"}] * 500, "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 500}}}),
        schema({"type": "string", "minLength": 10**6, "maxLength": 10**9}), schema({"pattern": "(a{1000}){1000}"}),
        schema({"type": "array", "items": {"$ref": "#"}, "minItems": 10**6}), schema({"multipleOf": 1e-300}),
        strict_tool({"$ref": "#"}), strict_tool(nest),
        strict_tool({"type": "object", "properties": {"a": {"$ref": "x"}}}),
        raw(("response_format", f'{{"type":"json_schema","json_schema":{{"name":"x","schema":{deep}}}}}')),
    ]  # fmt: skip
    await flood(target, itertools.islice(itertools.cycle(bodies), 300), 4)


# --- bodies ----------------------------------------------------------------------------------------------------------


@attack
async def many_messages(target: Target) -> None:
    """130,000 empty messages in 4 MB."""
    message = b'{"role":"user","content":""},'
    body = b'{"model":"whale","messages":[' + message * 130_000 + b'{"role":"user","content":"hi"}]}'
    await flood(target, itertools.repeat(body, 40), 4)


@attack
async def middling_bodies(target: Target) -> None:
    """Bodies of 60 kB that are all structure, 32 at a time."""
    listed = ask(metadata={"x": [[]] * 15_000})
    named = ask(tools=[{"type": "function", "function": {"name": f"f{i}", "parameters": {}}} for i in range(120)] * 6)
    await flood(target, itertools.islice(itertools.cycle([listed, named]), 1000), 32)


@attack
async def large_bodies(target: Target) -> None:
    """Bodies of 4 MB of one text, of special tokens, of tools, of nothing but depth."""
    special = "<｜User｜><think></think>" * 60_000
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "d" * 25_000, "parameters": {"type": "object"}},
    }
    tools = [json.loads(json.dumps(tool).replace('"f"', f'"f{i}"')) for i in range(128)]
    bodies = [
        ask("a" * 3_900_000), ask(" ".join(map(str, range(550_000)))), ask(special[:1_300_000]),
        ask("\ufdd0" * 600_000),
        ask(tools=tools), b"[" * 3_900_000, b'{"a":' * 700_000, ask(stop=["x" * 200_000] * 16),
        raw(("x", "1" * 3_900_000)), b'{"messages":"' + b"\\u0000" * 600_000 + b'"}', ask(user="u" * 3_000_000),
        json.dumps({"model": MODEL, "prompt": [[1] * 400] * 2000}).encode(),
    ]  # fmt: skip
    await flood(target, itertools.islice(itertools.cycle(bodies), 100), 4)


@attack
async def other_endpoints(target: Target) -> None:
    """The same at every other door."""
    texts = ("hi", "a" * 2_000_000)
    messages = [[{"role": "user", "content": text}] for text in texts]
    bodies = [
        json.dumps({"model": MODEL, "input": m, "messages": m, "prompt": text, "max_tokens": tokens, "stream": True})
        for text, m in zip(texts, messages, strict=True)
        for tokens in (4, 2**63)
    ]
    many = json.dumps(
        {"model": MODEL, "input": messages[0] * 60_000, "messages": messages[0] * 60_000, "max_tokens": 4}
    )
    bodies += [many, "[" * 1_000_000]
    paths = itertools.cycle(OTHERS)
    await asyncio.gather(*(flood(target, [b.encode() for b in bodies * 20], 1, next(paths)) for _ in OTHERS))
    echo = {"model": MODEL, "prompt": ["a b c d " * 50] * 64, "echo": True, "logprobs": 5, "max_tokens": 0}
    await flood(target, itertools.repeat(json.dumps(echo).encode(), 200), 4, TEXT)


@attack
async def long_words(target: Target) -> None:
    """Names of 300 kB, control characters, wrong keys and odd paths: what a log would repeat."""
    bodies = [ask(**{"x" * 300_000: 1}), ask(**{"a\u009b\u2028\n\x1b[31m": 1}), ask(model="m" * 300_000)]
    await flood(target, itertools.islice(itertools.cycle(bodies), 600), 8)
    wrong = Target(target.port, "wrong" * 2000, target.seconds, target.draw, target.seen, target.ends)
    await flood(wrong, itertools.repeat(ask(), 500), 8)
    await flood(target, itertools.repeat(b"{}", 300), 8, "/v1/" + "%C2%9B" * 5000)


# --- sockets ---------------------------------------------------------------------------------------------------------


async def hold(target: Target, count: int, talk: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
    """Keep `count` connections, opened anew when they are closed, on which `talk` says what it says."""
    opened = 0

    async def one() -> None:
        nonlocal opened
        while target.left > 0 and opened < 20 * count:
            opened += 1
            try:
                async with asyncio.timeout(max(0.0, target.left)), connection(target) as (reader, writer):
                    talking = asyncio.create_task(talk(writer))
                    try:
                        await reader.read()
                    finally:
                        talking.cancel()
                        await asyncio.gather(talking, return_exceptions=True)
                target.seen["closed by the service"] += 1
            except TimeoutError:
                target.seen["held to the end"] += 1
            except OSError as error:
                target.seen[type(error).__name__] += 1
                await asyncio.sleep(0.05)

    await asyncio.gather(*(one() for _ in range(count)))


async def _drip(writer: asyncio.StreamWriter, begin: bytes, piece: bytes, pause: float) -> None:
    writer.write(begin)
    while True:
        await asyncio.sleep(pause)
        writer.write(piece)
        await writer.drain()


@attack
async def silent_sockets(target: Target) -> None:
    """300 connections that say nothing."""
    await hold(target, 300, lambda writer: asyncio.sleep(3600))


@attack
async def dripping_headers(target: Target) -> None:
    """200 connections whose headers come byte by byte and never end."""
    await hold(target, 200, lambda writer: _drip(writer, b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n", 0.2))


@attack
async def dripping_bodies(target: Target) -> None:
    """200 connections whose body comes byte by byte."""
    await hold(target, 200, lambda writer: _drip(writer, head(target, CHAT, 100_000), b" ", 0.2))


@attack
async def endless_headers(target: Target) -> None:
    """100 MB of headers on each of four connections."""
    begin = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    await hold(target, 4, lambda writer: _drip(writer, begin, b"a: " + b"b" * 1_000_000 + b"\r\n", 0.01))


@attack
async def deaf_readers(target: Target) -> None:
    """Streams that nobody reads."""

    async def one() -> None:
        body = ask("whale", stream=True, n=16, max_tokens=400, min_tokens=400)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(max(0.0, target.left)), connection(target) as (_, writer):
                writer.write(head(target, CHAT, len(body)) + body)
                target.seen["asked"] += 1
                await asyncio.sleep(3600)

    await asyncio.gather(*(one() for _ in range(40)))


@attack
async def garbage(target: Target) -> None:
    """What is no HTTP, almost HTTP, two requests in one, and connections that come and go."""
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    pieces = (
        b"\x16\x03\x01\x02\x00" + bytes(range(256)),
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 5000,
        b"GET " + b"/" * 200_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET",
        post + b"Content-Length: -1\r\n\r\n",
        post + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        get + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        get + b"".join(b"h%d: x\r\n" % i for i in range(5000)) + b"\r\n",
        (get + b"\r\n") * 200,
    )

    async def one(place: int) -> None:
        for number in range(300):
            if target.left <= 0:
                return
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2), connection(target) as (reader, writer):
                    writer.write(pieces[(place + number) % len(pieces)])
                    target.seen["sent"] += 1
                    await asyncio.wait_for(reader.read(100), 0.05)

    await asyncio.gather(*(one(place) for place in range(16)))


def main() -> None:
    name, port, key, seconds, seed = sys.argv[1:]
    os.nice(5)  # a stranger brings their own processor
    target = Target(int(port), key, float(seconds), random.Random(f"{seed} {name}"))

    async def run() -> None:
        target.ends = time.monotonic() + target.seconds
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(target.seconds + 5):
                await ATTACKS[name](target)

    asyncio.run(run())
    print(json.dumps(target.seen))


if __name__ == "__main__":
    main()
