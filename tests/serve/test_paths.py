"""A slash too many in an address changes neither what is answered nor who may ask."""

import http.client
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serve.conftest import running
from tests.serve.scripted import ScriptedEngine
from ziphius.serve.wire.keys import Key, Keys, hash_of
from ziphius.serve.wire.paths import tidy
from ziphius.text import tokens

ASK = {"model": "tiny", "max_tokens": 30, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def engine(tokenizer):
    return ScriptedEngine(lambda _: tokenizer.encode(f"hm</think>\n\nfour{tokens.EOS}"))


@pytest.fixture(scope="module")
def server(tokenizer, engine):
    with running(tokenizer, engine) as server:
        yield server


def said(server, method, path, body=None):
    """Status and JSON of an answer, the path sent exactly as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions/",
        "//v1/chat/completions",
        "/v1//chat/completions/",
        "//beta//chat/completions",
        "//chat/completions",
    ],
)
def test_slashes_too_many_reach_the_same_answer(server, path):
    status, answer = said(server, "POST", path, ASK)
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == "four"


def test_a_slash_behind_a_collection_is_not_an_empty_name(server):
    assert said(server, "GET", "/v1/models/") == said(server, "GET", "/v1/models")
    status, refused = said(server, "POST", "/v1/messages/", {"model": "tiny"})
    assert status == 400
    assert refused["type"] == "error"  # in the form of the API that was asked


def test_no_spelling_of_a_path_goes_round_the_key(tokenizer, engine):
    with running(tokenizer, engine, keys=Keys((Key("ada", hash_of("secret")),), guarded=True)) as server:
        for path in (
            "//v1/models",
            "/v1/models/",
            "/page/../v1/models",
            "//page//..//v1/models",
            "/health/../v1/models",
        ):
            status, _ = said(server, "GET", path)
            assert status in (401, 404), path
        assert said(server, "GET", "//health")[0] == 200


@given(st.lists(st.sampled_from(["", "v1", "chat", "..", "a b"]), max_size=8))
def test_only_empty_parts_go(parts):
    path = tidy("/".join(parts))
    assert path.startswith("/")
    assert [part for part in path.split("/") if part] == [part for part in parts if part]
    assert "//" not in path
    assert tidy(path) == path
