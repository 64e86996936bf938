"""Hostile constraints over HTTP: refused with a reason, beside others who do not notice."""

import json
import socket
import threading
import time

import httpx2
import pytest
import torch

from tests.serve.test_limits import until
from ziphius.engine.engine import Engine
from ziphius.engine.recovery import Recovery
from ziphius.engine.settings import EngineSettings
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer

MODEL = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
SLOW = "start: " + " | ".join(f'"w{n}"' for n in range(40_000))


def strict(parameters):
    """A tool that is kept by a grammar."""
    function = {"name": "f", "strict": True, "parameters": parameters}
    return {"tools": [{"type": "function", "function": function}]}


def form(kind, **fields):
    return {"response_format": {"type": kind, **fields}}


def schema(value):
    return form("json_schema", json_schema={"name": "s", "schema": value})


HOSTILE = {
    "repeated repetition": form("regex", pattern="x1(a{1000}){1000}"),
    "long repetition": form("regex", pattern="a{1000000}"),
    "many alternatives": form("grammar", grammar=SLOW),
    "doubling": form(
        "grammar", grammar="start: a0\n" + "".join(f"a{n}: a{n + 1} a{n + 1}\n" for n in range(40)) + 'a40: "x"\n'
    ),
    "schema that is itself": schema({"$ref": "#"}),
    "schema with a hungry pattern": schema({"type": "string", "pattern": "^x1(a{1000}){1000}$"}),
    "tool that is itself": strict({"$ref": "#"}),
    "tool of no type": strict({"type": "legs"}),
}


HIDDEN = strict({"type": "object", "properties": {"a": {"type": "string", "pattern": "^x1(a{1000}){1000}$"}}})


@pytest.fixture
def make_engine(tokenizer):
    torch.set_num_threads(1)
    model = Transformer(ladder(2, tokenizer.vocab_size, hidden_size=32, max_position_embeddings=512))
    model.init_weights(torch.Generator().manual_seed(0))
    return lambda **limits: Engine(model, tokenizer, EngineSettings(max_rows=16, **limits))


@pytest.fixture
def engine(make_engine):
    return make_engine(grammar_seconds=0.5, grammar_mib=64)


@pytest.mark.parametrize("fields", HOSTILE.values(), ids=HOSTILE)
def test_hostile_constraints_are_the_clients_fault(serve, engine, fields):
    reply = serve(Recovery(engine, 2)).http.post("/v1/chat/completions", json=MODEL | fields)
    assert reply.status_code == 400, reply.text
    message = reply.json()["error"]["message"]
    assert "cannot be used: " in message
    assert "\n" not in message
    assert len(message) < 500


def test_a_tool_may_refer_to_itself(serve, engine):
    tree = {"type": "object", "properties": {"left": {"$ref": "#"}}, "additionalProperties": False}
    reply = serve(Recovery(engine, 2)).http.post("/v1/chat/completions", json=MODEL | strict(tree))
    assert reply.status_code == 200, reply.text


def test_another_answers_beside_them(serve, engine):
    """All hostile ones at once, several times over; then a free and a bound request, and what is left of memory."""
    server = serve(Recovery(engine, 2))
    assert server.ask(max_tokens=4).status_code == 200
    many = [fields for _ in range(3) for fields in HOSTILE.values()]
    # and different ones, since what was refused once is remembered
    many += [form("regex", pattern=f"x{n}(a{{1000}}){{1000}}") for n in range(20)]
    statuses = []

    def attack(fields):
        with httpx2.Client(base_url=server.url, timeout=60) as client:
            statuses.append(client.post("/v1/chat/completions", json=MODEL | fields).status_code)

    threads = [threading.Thread(target=attack, args=(fields,)) for fields in many]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        began = time.monotonic()
        assert server.ask(max_tokens=4).status_code == 200
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 5  # read in their way, these took half a minute
    assert server.ask(max_tokens=4, **form("json_object")).status_code == 200
    for thread in threads:
        thread.join()
    assert statuses == [400] * len(many)
    assert engine._admission._grammars.bytes < 64 << 20
    assert server.http.get("/health").json()["status"] == "ok"


def test_a_constraint_that_turns_hostile_under_way_fails_alone(serve, engine):
    """Nothing in it is seen before an argument begins, which the model may or may not come to."""
    reply = serve(Recovery(engine, 2)).http.post("/v1/chat/completions", json=MODEL | HIDDEN)
    assert reply.status_code in (200, 400)
    assert engine.stats().running == 0


def test_the_reading_stops_when_the_client_leaves(serve, make_engine):
    engine = make_engine(grammar_seconds=60, grammar_mib=512)
    server = serve(Recovery(engine, 2))
    grammars = engine._admission._grammars
    body = json.dumps(MODEL | form("grammar", grammar=SLOW) | {"stream": True}).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode() + body)
        until(lambda: grammars._pending)
        time.sleep(0.1)
        assert grammars._pending
    until(lambda: not grammars._pending, 2)
    until(lambda: server.service.active == 0)
