"""Any value in any field is answered or refused, never a fault of the server's, and never felt by a neighbour."""

import json
import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.conftest import running
from ziphius.engine.engine import Engine
from ziphius.engine.recovery import Recovery
from ziphius.engine.settings import EngineSettings
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.completions import CompletionRequest

EDGES = [0, 1, -1, 2, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 10**25, 10**400]
NUMBERS = (
    st.sampled_from(EDGES) | st.integers() | st.sampled_from([0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf")])
)
LEAVES = st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.sampled_from(["auto", "none", "text", "high"])
KEYS = st.sampled_from(
    ["type", "function", "name", "role", "content", "text", "thinking", "5", "999999999999"]
) | st.text(max_size=6)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def fields(model):
    names = sorted({*model.model_fields, *model.ignored, *model.refused} - {"model", "messages", "prompt", "n"})
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=12), VALUES | NUMBERS, min_size=1, max_size=3)


BODIES = {
    "chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
    "completions": {"model": "tiny", "prompt": "hi"},
}


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "function"]) | VALUES},
    optional=dict.fromkeys(
        ("content", "name", "tool_calls", "function_call", "refusal", "reasoning_content", "prefix", "audio", "x"),
        VALUES,
    ),
)


@pytest.fixture(scope="module")
def server(tokenizer):
    """A real engine, and a neighbour that asks the same question all the time."""
    torch.manual_seed(0)
    config = ladder(2, tokenizer.vocab_size, hidden_size=32, initializer_range=0.3, max_position_embeddings=128)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    engine = Engine(model, tokenizer, EngineSettings(max_rows=8, batch_invariant=True))
    with running(tokenizer, Recovery(engine, tokenizer.bos_id), context=128, max_tokens=4) as server:
        yield server


@pytest.fixture(scope="module")
def neighbour(server):
    """Its first answer, and all answers until the end of the tests."""
    ask = lambda: server.http.post(
        "/v1/completions", json={"model": "tiny", "prompt": "a whale", "max_tokens": 4, "seed": 1, "temperature": 1}
    )
    alone, answers, done = ask().json()["choices"][0]["text"], [], threading.Event()

    def go_on():
        while not done.wait(0.02):
            answers.append(ask())

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    yield
    done.set()
    thread.join(20)
    assert not thread.is_alive()
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {alone}
    assert server.http.get("/health").json() == {"status": "ok"}


def check(server, path, body):
    json_type = {"Content-Type": "application/json"}  # with NaN and Infinity, as Python writes and reads them
    reply = server.http.post(f"/v1/{path}", content=json.dumps(body), headers=json_type)
    assert reply.status_code == 200 or 400 <= reply.status_code < 500, (body, reply.text)
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(reply.content) < 2000


few = settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@given(asked=fields(ChatRequest))
@few
def test_of_chat(server, neighbour, asked):
    check(server, "chat/completions", BODIES["chat/completions"] | asked)


@given(asked=fields(CompletionRequest))
@few
def test_of_completions(server, neighbour, asked):
    check(server, "completions", BODIES["completions"] | asked)


@given(messages=st.lists(MESSAGE, max_size=3))
@few
def test_of_messages(server, neighbour, messages):
    check(server, "chat/completions", {"model": "tiny", "messages": messages})


@given(prompt=VALUES)
@few
def test_of_prompts(server, neighbour, prompt):
    check(server, "completions", {"model": "tiny", "prompt": prompt})


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("number", EDGES, ids=lambda number: f"{number}"[:22])
def test_of_every_number(server, neighbour, path, number):
    model = ChatRequest if path == "chat/completions" else CompletionRequest
    for name in sorted(set(model.model_fields) - set(BODIES[path])):
        check(server, path, BODIES[path] | {name: number})
