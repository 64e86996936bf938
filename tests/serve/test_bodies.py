"""Bodies: read and checked beside the event loop, refused early where no context holds them, no fault of ours."""

import asyncio
import gzip
import json
import socket
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from tests.serve.conftest import running
from tests.serve.scripted import ScriptedEngine
from tests.serve.test_limits import body, error_of, until
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.reply import TextChoice
from ziphius.serve.endpoints.answer import as_json
from ziphius.serve.wire.body import read
from ziphius.serve.wire.lanes import LARGE, Asking, Lanes, asking

CHAT: TypeAdapter[ChatRequest] = TypeAdapter(ChatRequest)
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def engine(tokenizer):
    return ScriptedEngine(lambda _: tokenizer.encode("whales dive deep"))


def empty_messages(number):
    return json.dumps({"model": "tiny", "messages": [{"role": "user", "content": ""}] * number}).encode()


# What is read


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[1]", 400, "must be a JSON object"),
        (b"null", 400, "must be a JSON object"),
        (b'{"temperature": NaN}', 400, "not JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        (b'{"seed": 1' + b"0" * 400 + b', "model": "tiny"}', 422, ""),
        (b'{"temperature": 1e999, "model": "tiny"}', 422, ""),
        (b'{"model": "\xff"}', 400, "not JSON"),
        (b'{"model": "\xed\xa0\x80"}', 400, "not JSON"),
        (b'{"model": "\\ud800"}', 422, "one half of a surrogate pair"),
        (b'{"model": "\\udc00x"}', 422, "one half of a surrogate pair"),
        (b"\xff\xfe{\x00}\x00", 400, "not JSON"),
        (b'{"a":' * 100_000, 422, "nested too deeply"),
        (b"[" * 100_000, 422, "nested too deeply"),
        (b'{"x": [' + b"[]," * 1_000_000 + b"[]]}", 422, "lists and objects"),
        (json.dumps({f"f{i}": 0 for i in range(1000)}).encode(), 422, "1,000 fields"),
        (json.dumps({"model": "tiny", "messages": [{f"f{i}": 0 for i in range(9000)}]}).encode(), 422, "9,000 fields"),
        (empty_messages(600), 400, "messages has 600 entries; the model reads and writes 512 tokens"),
        (json.dumps(body(1, messages=[{"role": "user", "content": "a" * 90_000}])).encode(), 400, "90,000 characters"),
    ],
)
def test_what_cannot_be_answered_is_the_clients_fault(serve, engine, raw, status, says):
    server = serve(engine)
    assert says in error_of(server.http.post("/v1/chat/completions", content=raw, headers=JSON), status)["message"]
    assert engine.requests == []


def test_what_is_odd_but_json_is_read():
    plain = {"model": "a", "messages": [{"role": "user", "content": "é😀"}]}
    for raw in (json.dumps(plain).encode(), b"\xef\xbb\xbf" + json.dumps(plain, ensure_ascii=False).encode()):
        assert read(raw, CHAT, 9).messages[0].content == "é😀"
    assert read(b'{"model": "x", "model": "y", "messages": [{"role": "user", "content": ""}]}', CHAT, 9).model == "y"


def outcome(raw):
    """The request, or the status of its refusal."""
    try:
        return read(raw, CHAT, 512)
    except ApiError as error:
        return error.status


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner)
                    | st.dictionaries(st.sampled_from([*ChatRequest.model_fields]) | st.text(), inner)))  # fmt: skip
@settings(max_examples=150)
def test_any_json_is_read_or_refused(value):
    made = outcome(json.dumps(value).encode())
    assert made in (400, 422) or isinstance(made, ChatRequest)


@given(st.binary(max_size=300))
@settings(max_examples=150)
def test_any_bytes_are_refused(raw):
    assert outcome(raw) in (400, 422)


def test_compressed_bodies_are_refused(serve, engine):
    server = serve(engine)
    for coding in ("gzip", "br", "x" * 3000):
        packed = gzip.compress(json.dumps(body(1)).encode())
        sent = server.http.post("/v1/chat/completions", content=packed, headers=JSON | {"Content-Encoding": coding})
        error_of(sent, 415)
    plain = json.dumps(body(1)).encode()
    sent = server.http.post("/v1/chat/completions", content=plain, headers=JSON | {"Content-Encoding": "identity"})
    assert sent.status_code == 200


def test_bodies_have_so_much_memory_together(serve, engine):
    server = serve(engine, max_bodies_bytes=400_000)
    text = b"x" * 180_000
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as one:
        one.sendall(head + text)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as two:
            two.sendall(head + text)
            assert two.recv(4096).startswith(b"HTTP/1.1 503 ")
        assert server.ask().status_code == 200  # what is small is always taken
    until(lambda: not server.server.door.open or all(not each.cycle or each.cycle.response_complete
                                                     for each in server.server.door.open))  # fmt: skip
    large = server.http.post("/v1/completions", content=text, headers=JSON)
    error_of(large, 400)


# Who waits


def test_large_bodies_hold_up_nobody(tokenizer, engine):
    """A model of much context: 20,000 messages are read, rendered and encoded while others ask."""
    raw, codes, ending = empty_messages(20_000), set(), threading.Event()
    with running(tokenizer, engine, context=50_000) as server:

        def attack():
            while not ending.is_set():
                codes.add(server.http.post("/v1/chat/completions", content=raw, headers=JSON).status_code)

        attackers = [threading.Thread(target=attack) for _ in range(4)]
        for thread in attackers:
            thread.start()
        waits = []
        while len(waits) < 40:
            began = time.monotonic()
            assert server.ask(max_tokens=4).status_code == 200
            waits.append(time.monotonic() - began)
        ending.set()
        for thread in attackers:
            thread.join()
    assert max(waits) < 5  # read in the loop, one of these bodies took 12 s
    assert sorted(waits)[20] < 1
    assert codes <= {200, 400}


def of_size(party, size):
    asking.set(Asking(address=party, size=size))


def test_turns_go_round_and_the_small_do_not_wait():
    done = []

    async def ask(lanes, party, number, size=LARGE + 1):
        of_size(party, size)
        await lanes.read(lambda: (time.sleep(0.02), done.append(f"{party}{number}")))

    async def all_at_once():
        lanes = Lanes()
        tasks = [asyncio.create_task(ask(lanes, "a", n)) for n in range(4)]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(ask(lanes, "b", n)) for n in range(2)]
        tasks += [asyncio.create_task(ask(lanes, "s", n, LARGE)) for n in range(2)]
        await asyncio.gather(*tasks)
        lanes.close()

    asyncio.run(all_at_once())
    assert {"s0", "s1"} <= set(done[:4])
    assert [name for name in done if name[0] != "s"] == ["a0", "a1", "b0", "a2", "b1", "a3"]


def test_turns_go_round_among_the_small_too():
    """Forty pieces of one are there when another's comes."""
    done = []

    async def ask(lanes, party, work):
        of_size(party, LARGE)
        await work(lanes)(lambda: (time.sleep(0.005), done.append(party)))

    async def all_at_once(work):
        lanes = Lanes()
        tasks = [asyncio.create_task(ask(lanes, "a", work)) for _ in range(40)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(ask(lanes, "b", work)))
        await asyncio.gather(*tasks)
        lanes.close()

    for work in (lambda lanes: lanes.read, lambda lanes: lanes.run):
        done.clear()
        asyncio.run(all_at_once(work))
        assert done.index("b") < 12


def test_what_has_been_read_goes_before_what_has_not():
    """Else the objects of all bodies would be there at once."""
    present, most = [0], [0]

    async def ask(lanes, size):
        of_size("a", size)
        await lanes.read(lambda: None)
        present[0] += 1
        most[0] = max(most[0], present[0])
        await lanes.run(lambda: None)
        present[0] -= 1

    async def all_at_once(size, count):
        lanes = Lanes()
        await asyncio.gather(*(ask(lanes, size) for _ in range(count)))
        lanes.close()

    for size, count in ((LARGE, 200), (LARGE + 1, 20)):
        asyncio.run(all_at_once(size, count))
        assert most[0] < 10


def test_who_leaves_gives_the_turn_to_the_next():
    done = []

    async def work(lanes, name, party):
        of_size(party, LARGE + 1)
        await lanes.run(lambda: (time.sleep(0.05), done.append(name)))

    async def some_leave():
        lanes = Lanes()
        tasks = [asyncio.create_task(work(lanes, n, str(n % 2))) for n in range(6)]
        await asyncio.sleep(0.01)
        for n in (0, 2, 3):  # the first is being worked on
            tasks[n].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        of_size("z", LARGE + 1)
        with pytest.raises(ZeroDivisionError):
            await lanes.run(lambda: 1 / 0)
        assert await lanes.run(lambda: 7) == 7
        lanes.close()
        return results

    results = asyncio.run(some_leave())
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [n in (0, 2, 3) for n in range(6)]
    assert done == [0, 1, 4, 5]


# Answers


def test_a_large_answer_is_written_beside_the_loop(serve, engine):
    server = serve(engine)
    taken = []
    lane_for = server.service.lanes._lane

    def watched(size):
        taken.append(size)
        return lane_for(size)

    server.service.lanes._lane = watched
    reply = server.ask(max_tokens=4, n=128, logprobs=True, top_logprobs=20).json()
    assert len(reply["choices"]) == 128
    assert max(taken) > LARGE
    assert [choice["index"] for choice in reply["choices"]] == list(range(128))


class Made(BaseModel):
    id: str
    choices: list[TextChoice]
    usage: dict[str, float | None]


@given(st.text(), st.lists(st.text(), max_size=3), st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
def test_an_answer_written_in_pieces_is_the_same(name, texts, number):
    choices = [TextChoice(index=i, text=text, logprobs=None, finish_reason="stop") for i, text in enumerate(texts)]
    made = Made(id=name, choices=choices, usage={name: number, "none": None})
    assert json.loads(as_json(made)) == made.model_dump()
