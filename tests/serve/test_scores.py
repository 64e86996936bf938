"""What evaluation by log-probabilities asks for: prompts scored, text to ids and back, other base addresses."""

import json

import httpx2
import pytest
import torch

from tests.serve.scripted import ScriptedEngine
from ziphius.engine.engine import Engine
from ziphius.engine.recovery import Recovery
from ziphius.engine.settings import EngineSettings
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer
from ziphius.serve.key_file import new_key
from ziphius.serve.wire.keys import Keys


@pytest.fixture(scope="module")
def model(tokenizer):
    model = Transformer(
        ladder(2, tokenizer.vocab_size, hidden_size=32, initializer_range=0.3, max_position_embeddings=512)
    )
    model.init_weights(torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def server(serve, model, tokenizer):
    return serve(Recovery(Engine(model, tokenizer, EngineSettings(blocks=256)), tokenizer.bos_id))


def complete(server, **fields):
    response = server.http.post("/v1/completions", json={"model": "tiny", "temperature": 0} | fields)
    assert response.status_code == 200, response.text
    return response.json()


def told(server, stream, **asked):
    """The choices of a completion; those of a stream put together."""
    asked = {"model": "tiny", "temperature": 0} | asked
    if not stream:
        return complete(server, **asked)["choices"]
    found: dict = {}
    for line in server.http.post("/v1/completions", json=asked | {"stream": True}).text.splitlines():
        for new in json.loads(line[6:])["choices"] if line.startswith("data: {") else ():
            whole = found.setdefault(new["index"], {"text": "", "logprobs": {}, "finish_reason": None})
            whole["text"] += new["text"]
            whole["finish_reason"] = new["finish_reason"] or whole["finish_reason"]
            for name, values in (new["logprobs"] or {}).items():
                whole["logprobs"].setdefault(name, []).extend(values)
    return [found[index] for index in sorted(found)]


def test_loglikelihoods_as_an_evaluation_asks_for_them(server, model, tokenizer):
    """lm-evaluation-harness's `local-completions`: ids in, entries from the context's length on but for the last."""
    context = tokenizer.encode("a whale dives deep, many whales dive")
    prompts = [[*context, *tokenizer.encode(end)] for end in (" 1", " whale deep", "鲸")]
    body = complete(server, prompt=prompts, max_tokens=1, logprobs=1, echo=True, seed=1)
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        logs = choice["logprobs"]
        assert len(logs["tokens"]) == len(logs["top_logprobs"]) == len(logs["token_logprobs"]) == len(prompt) + 1
        assert (logs["token_logprobs"][0], logs["top_logprobs"][0]) == (None, None)
        with torch.no_grad():
            expected = torch.log_softmax(model(torch.tensor([prompt])).logits[0], -1)
        own = [float(expected[place - 1, prompt[place]]) for place in range(len(context), len(prompt))]
        assert logs["token_logprobs"][len(context) : -1] == pytest.approx(own, abs=1e-4)
        best = [float(expected[place - 1].max()) for place in range(len(context), len(prompt))]
        assert [max(top.values()) for top in logs["top_logprobs"][len(context) : -1]] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_alone_gives_the_prompt_and_its_scores(server, tokenizer, stream):
    ids = tokenizer.encode("1 + 2 = 3")
    choices = told(server, stream, prompt=ids, echo=True, logprobs=2, max_tokens=0, n=2)
    assert len(choices) == 2
    for choice in choices:
        assert (choice["text"], choice["finish_reason"]) == ("1 + 2 = 3", "length")
        logs = choice["logprobs"]
        assert "".join(logs["tokens"]) == choice["text"]
        for token, place in zip(logs["tokens"], logs["text_offset"], strict=True):
            assert choice["text"][place:].startswith(token)
        assert logs["text_offset"][0] == 0


def test_nothing_may_be_asked_for(server):
    body = complete(server, prompt="a whale", max_tokens=0)
    assert body["usage"]["completion_tokens"] == 0
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == ("", "length")


def test_no_answer_holds_more_scores_than_memory_has_room_for(serve):
    server = serve(ScriptedEngine(lambda _: [5, 1]), context=2048)
    asked = {"model": "tiny", "prompt": [5] * 1100, "n": 128, "max_tokens": 0, "echo": True}
    response = server.http.post("/v1/completions", json=asked | {"logprobs": 5})
    assert response.status_code == 400
    assert "scores of 140,800 tokens" in response.json()["error"]["message"]


def test_ids_and_back(server, tokenizer):
    text = "many whales 鲸鱼"
    found = server.http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert found["tokens"] == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 512)
    assert len(found["token_strs"]) == found["count"]
    bare = server.http.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()
    assert bare["tokens"] == tokenizer.encode(text)
    assert server.http.post("/detokenize", json={"tokens": bare["tokens"]}).json() == {"prompt": text}
    chat = server.http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]}).json()
    assert chat["count"] == server.ask(max_tokens=1).json()["usage"]["prompt_tokens"]


def test_a_client_without_a_tokenizer_is_told_what_it_needs(server, tokenizer):
    told = server.http.get("/tokenizer_info").json()
    assert told["chat_template"] == tokenizer.chat_template
    for name, id in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        asked = {"prompt": told[name], "add_special_tokens": False}
        assert server.http.post("/tokenize", json=asked).json()["tokens"] == [id]


def test_what_is_no_text_and_no_id_is_refused(server):
    for path, body in (("tokenize", {}), ("detokenize", {"tokens": [10**6]}), ("detokenize", {"tokens": [-1]})):
        response = server.http.post(f"/{path}", json=body)
        assert response.status_code == 422, response.text
        assert response.json()["error"]["message"]


@pytest.mark.parametrize("base", ["/v1", "/beta", "/beta/v1", ""])
def test_every_base_address_is_the_same_service(serve, tokenizer, base):
    server = serve(ScriptedEngine(lambda _: [5, 1]))
    fields = {"model": "tiny", "prompt": "a", "max_tokens": 2}
    assert server.http.post(f"{base}/completions", json=fields).status_code == 200
    assert server.http.get(f"{base}/models/tiny").json()["id"] == "tiny"
    response = server.http.post(f"{base}/embeddings", json={})
    assert (response.status_code, response.json()["error"]["code"]) == (501, "not_implemented")
    assert "/v1/completions" in httpx2.get(f"{server.url}/metrics").text


def test_no_base_address_is_a_way_around_the_keys(serve, tokenizer, tmp_path):
    key = new_key(tmp_path / "keys", "ada")
    server = serve(ScriptedEngine(lambda _: [5, 1]), keys=Keys.load(tmp_path / "keys"))
    for base in ("/v1", "/beta", "/beta/v1", ""):
        for below, fields in (("completions", {"model": "tiny", "prompt": "a"}), ("embeddings", {}), ("messages", {})):
            assert server.http.post(f"{base}/{below}", json=fields).status_code == 401, (base, below)
        assert server.http.get(f"{base}/models/tiny").status_code == 401
        fields, headers = {"model": "tiny", "prompt": "a"}, {"Authorization": f"Bearer {key}"}
        assert server.http.post(f"{base}/completions", json=fields, headers=headers).status_code == 200
    for path, fields in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
        assert server.http.post(path, json=fields).status_code == 401
        assert server.http.post(path, json=fields, headers={"x-api-key": key}).status_code == 200
    assert server.http.get("/tokenizer_info").status_code == 401


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_and_not_the_echo(server, model, tokenizer, stream):
    """The prompt may hold it. What completed it in the answer is scored, and is not in the text."""
    ids = tokenizer.encode("a whale dives deep")
    stop = tokenizer.decode(ids[-1:])
    asked = {"prompt": ids, "max_tokens": 4, "logprobs": 1, "stop": [stop], "logit_bias": {str(ids[-1]): 100}}
    (choice,) = told(server, stream, **asked, echo=True)
    assert (choice["text"], choice["finish_reason"]) == ("a whale dives deep", "stop")
    logs = choice["logprobs"]
    assert logs["tokens"] == [*map(tokenizer.decode, zip(ids, strict=True)), stop]
    assert {len(entries) for entries in logs.values()} == {len(ids) + 1}
    assert logs["text_offset"][-1] == len(choice["text"])
    (alone,) = told(server, stream, **asked)
    assert (alone["text"], alone["finish_reason"], alone["logprobs"]["tokens"]) == ("", "stop", [stop])
    assert alone["logprobs"]["token_logprobs"] == pytest.approx(logs["token_logprobs"][-1:], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_a_part_of_a_character_begins_where_the_character_does(server, tokenizer, stream):
    text = "鲸 é鱼 whale 😀!"
    ids = tokenizer.encode(text)
    names = [bytes(tokenizer.token_bytes(token)) for token in ids]
    choice = told(server, stream, prompt=ids, echo=True, logprobs=0, max_tokens=0)[0]
    assert choice["text"] == text
    logs = choice["logprobs"]
    assert any(name.startswith("bytes:\\x") for name in logs["tokens"])
    for count, (name, place) in enumerate(zip(logs["tokens"], logs["text_offset"], strict=True)):
        assert place == len(b"".join(names[:count]).decode(errors="ignore"))
        assert name.startswith("bytes:") or text[place:].startswith(name)


def test_the_bos_before_a_text_is_no_part_of_it(server, tokenizer):
    (choice,) = complete(server, prompt="a whale", echo=True, logprobs=0, max_tokens=0)["choices"]
    logs = choice["logprobs"]
    assert choice["text"] == "a whale"
    assert logs["text_offset"][:2] == [0, 0]
    assert logs["tokens"][0] == tokenizer.decode([tokenizer.bos_id])
    assert "".join(logs["tokens"][1:]) == "a whale"
