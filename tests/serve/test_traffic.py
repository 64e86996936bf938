"""Mixed traffic of several people over HTTP, some of whom leave: seeded answers are those of a lone request."""

import json
import os
import threading
import time
from random import Random

import httpx2
import pytest
import torch

from ziphius.engine import passes
from ziphius.engine.engine import Engine
from ziphius.engine.recovery import Recovery
from ziphius.engine.settings import EngineSettings
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer

from .conftest import running

PEOPLE, EACH = 6, 10
WORDS = ["a whale", "dives", "deep", "1 + 2", "many whales", "鲸鱼", "= 3"]
FORM = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
SOMETIMES = {
    "presence_penalty": [0.8, -0.5],
    "frequency_penalty": [1.5],
    "top_k": [1, 7, 30],
    "top_p": [0.4, 0.9],
    "stop": [["e"], ["wh", "3"], [" d"]],
    "logit_bias": [{"40": 4.0}, {"90": -3, "200": 2.5}],
    "n": [2, 4],
    "thinking": [{"type": "enabled"}, {"type": "disabled"}],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "f", "schema": FORM}}],
}


def question(random: Random) -> dict:
    text = " ".join(random.choices(WORDS, k=random.choice([1, 3, 10])))
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": text}],
        "seed": random.randrange(100),
        "temperature": random.choice([0, 0.7, 1.3]),
        "max_tokens": random.choice([1, 4, 12, 24]),
    }
    return body | {name: random.choice(values) for name, values in SOMETIMES.items() if random.random() < 0.25}


def make_engine(tokenizer, **overrides) -> Engine:
    torch.set_num_threads(1)
    config = ladder(2, tokenizer.vocab_size, hidden_size=32, initializer_range=0.3, max_position_embeddings=128)
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(0))
    small = {"max_rows": 5, "blocks": 34, "block_size": 4, "max_batch_tokens": 96, "batch_invariant": True}
    return Engine(model, tokenizer, EngineSettings(**small | overrides))


def ask(client, body) -> list:
    reply = client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    return [(choice["message"], choice["finish_reason"]) for choice in reply.json()["choices"]]


def leave(client, body, chunks: int) -> None:
    """Hear the first chunks of an answer only."""
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as reply:
        for _, _line in zip(range(chunks), reply.iter_lines(), strict=False):
            pass


def until(condition, seconds=20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize("speculation", ["off", 2])
def test_any_traffic_gives_the_answers_of_a_lone_request_and_leaves_nothing(tokenizer, speculation):
    random = Random(7)
    questions = [question(random) for _ in range(20)]
    with running(tokenizer, Recovery(make_engine(tokenizer, blocks=400, speculation="off"), 2), context=128) as server:
        lone = [ask(server.http, body) for body in questions]
    engine = make_engine(tokenizer, speculation=speculation)
    wrong, heard = [], []

    def take_part(place: int) -> None:
        own = Random(place)
        address = httpx2.HTTPTransport(local_address=f"127.0.0.{1 + place % 3}")
        with httpx2.Client(base_url=server.url, timeout=60, transport=address) as client:
            for _ in range(EACH):
                chosen = own.randrange(len(questions))
                if own.random() < 0.2:
                    leave(client, questions[chosen], own.randrange(4))
                elif (found := ask(client, questions[chosen])) != lone[chosen]:
                    wrong.append((json.dumps(questions[chosen]), found, lone[chosen]))
                heard.append(chosen)

    with running(tokenizer, Recovery(engine, 2), context=128) as server:
        server.http.get("/health")
        descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
        people = [threading.Thread(target=take_part, args=(place,), daemon=True) for place in range(PEOPLE)]
        for person in people:
            person.start()
        for person in people:
            person.join(60)
            assert not person.is_alive()
        until(lambda: not server.service.active and not server.service.runner.engine.has_work)
        assert wrong == []
        assert len(heard) == PEOPLE * EACH
        stats = engine.stats()
        assert stats.preemptions > 0
        assert (stats.blocks_used, stats.running, stats.waiting) == (0, 0, 0)
        assert not server.service.requests.taken
        assert not server.service.samples.taken
        forms = engine._admission._grammars._forms
        until(lambda: not any(form.users for form in forms.values()))
        if descriptors is not None:  # each constraint has one, and the process that all come from
            until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + len(forms) + 1)


def test_health_says_when_nothing_can_be_served_and_when_it_can_again(tokenizer, monkeypatch):
    engine = Recovery(make_engine(tokenizer), 2)
    tell = {"seed": 3, "temperature": 1.0, "max_tokens": 4}
    with running(tokenizer, engine, context=128) as server:
        health = lambda: server.http.get("/health").json()["status"]
        before = server.ask(**tell).json()["choices"]
        with monkeypatch.context() as patch:
            patch.setattr(passes, "step_hidden", lambda *_: bytearray(2**62))
            assert server.ask(**tell).status_code in (500, 503)
            until(lambda: engine._failed_trials >= 5)
            assert health() == "failed"
            assert server.ask(**tell).status_code == 503
        until(lambda: health() == "ok")
        assert server.ask(**tell).json()["choices"] == before
        assert engine.stats().blocks_used == 0
