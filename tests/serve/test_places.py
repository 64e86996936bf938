"""Places for requests and samples, shared by owners, over HTTP and by themselves."""

import json

from hypothesis import given
from hypothesis import strategies as st

from ziphius.engine.request import EngineStats
from ziphius.serve.key_file import new_key
from ziphius.serve.wire.keys import Keys
from ziphius.serve.wire.places import Places

from .scripted import ScriptedEngine
from .test_limits import body, error_of, until


def test_one_who_has_taken_all_places_shuts_nobody_out():
    places = Places(8)
    places.take("heavy", 8)
    assert not places.has_room("heavy")
    assert places.has_room("light")
    places.take("light")
    assert not places.has_room("light")  # over `most` there is one for each
    places.give_back("heavy", 5)
    assert places.has_room("light", 3)
    assert not places.has_room("light", 4)
    assert places.has_room("heavy", 1)
    assert not places.has_room("heavy", 2)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 9)), max_size=60))
def test_places_are_bounded_and_a_newcomer_finds_one(asked):
    places = Places(16)
    for owner, count in asked:
        if places.has_room(owner, count):
            places.take(owner, count)
        assert places.total <= 32
        assert places.total > 31 or places.has_room("new")
    for owner, count in list(places.taken.items()):
        places.give_back(owner, count)
    assert not places.taken


def test_samples_count_and_a_key_has_its_part(serve, tokenizer, tmp_path):
    keys = {name: new_key(tmp_path / "keys", name) for name in ("ada", "bo")}
    word = tokenizer.encode(" whale")[0]
    engine = ScriptedEngine(lambda _: iter(lambda: word, None), delay=0.005)
    server = serve(engine, keys=Keys.load(tmp_path / "keys"), max_samples=8)
    as_ = lambda name: {"Authorization": f"Bearer {keys[name]}"}
    ask = lambda name, **fields: server.http.post("/v1/chat/completions", json=body(2, **fields), headers=as_(name))
    with server.http.stream("POST", "/v1/chat/completions", json=body(400, n=8), headers=as_("ada")) as running:
        assert running.status_code == 200
        refused = ask("ada", stream=False)
        assert error_of(refused, 429)["code"] == "too_many_requests"
        assert int(refused.headers["Retry-After"]) >= 1
        assert error_of(ask("bo", n=9, stream=False), 429)
        assert len(ask("bo", n=2, stream=False).json()["choices"]) == 2
    until(lambda: server.service.active == 0)
    assert ask("ada", stream=False).status_code == 200
    assert [request.owner for request in engine.requests] == ["key ada", "key bo", "key ada"]
    metrics = server.http.get("/metrics", headers=as_("ada")).text
    assert 'ziphius_owner_tokens_total{kind="read",owner="bo"}' in metrics
    assert 'ziphius_owner_seconds_total{owner="ada"}' in metrics


def test_without_keys_addresses_share_and_make_no_labels(serve, tokenizer):
    engine = ScriptedEngine(lambda _: [tokenizer.eos_id])
    server = serve(engine)
    assert server.ask(max_tokens=2).status_code == 200
    assert [request.owner for request in engine.requests] == ["127.0.0.1"]
    owners = {f"10.0.0.{n}": (1, n) for n in range(3)}
    server.service.runner.stats = EngineStats(*[0] * 12, owners=owners)
    metrics = server.http.get("/metrics").text
    assert 'ziphius_owner_samples{owner="anyone",state="running"} 3.0' in metrics
    assert 'ziphius_owner_samples{owner="anyone",state="waiting"} 3.0' in metrics
    assert json.dumps("10.0.0.1") not in metrics
