"""Under load and attack: who may ask, how much, how long, and what a failure costs others."""

import json
import logging
import os
import socket
import threading
import time

import httpx2
import pytest

from tests.serve.scripted import ScriptedEngine
from ziphius.serve.wire.addresses import home, is_loopback
from ziphius.serve.wire.settings import ServeSettings

STREAM = {"stream": True}


@pytest.fixture
def endless(tokenizer):
    """An engine that talks until the limit, a token each 2 ms."""
    word = tokenizer.encode(" whale")[0]
    return ScriptedEngine(lambda _: iter(lambda: word, None), delay=0.002)


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def error_of(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error


# Addresses


def test_a_public_address_without_keys_is_refused(tmp_path):
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        with pytest.raises(ValueError, match="can be reached from other machines and there are no API keys"):
            ServeSettings(host=host)
        assert ServeSettings(host=host, open_to_all=True).host == host
        assert ServeSettings(host=host, keys=tmp_path / "keys").host == host
    assert [home(address) for address in ("10.0.0.7", "::1", "2001:db8:1:2:3:4:5:6", "::ffff:10.0.0.7", "")] == [
        "10.0.0.7", "::1", "2001:db8:1:2::/64", "10.0.0.7", ""
    ]  # fmt: skip
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.0.0.9", "::1")))


def test_another_sites_name_for_this_machine_is_refused(serve, endless):
    server = serve(endless)
    refused = server.http.get("/v1/models", headers={"Host": "evil.example:80"})
    assert error_of(refused, 400)["code"] == "wrong_host"
    for host in ("localhost:1", "[::1]:1", "127.0.0.1", "LocalHost:1"):
        assert server.http.get("/v1/models", headers={"Host": host}).status_code == 200


# What is asked


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"best_of": 2}, "best_of", "use n"),
        ({"modalities": ["text", "audio"]}, "modalities", "reads and writes text alone"),
        ({"temprature": 1}, "temprature", "temperature is meant"),
        ({"maxTokens": 5}, "maxTokens", "max_tokens is meant"),
        ({"stream_options": {"include_usge": True}}, "stream_options.include_usge", "include_usage is meant"),
        ({f"x{i}": 1 for i in range(65)}, None, "65 fields are none of this object's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content", "needs the string"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.custom", "describe a function"),
        ({"messages": [{"role": "whale", "content": "x"}]}, "messages.0", "does not match any of the expected tags"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"n": 1000}, "n", "less than or equal to 128"),
        ({"logit_bias": {"whale": 1}}, "logit_bias", "maps token ids to numbers"),
        ({"logit_bias": {"5000": 1}}, "logit_bias", "there is no token 5000"),
        ({"stop": [""]}, None, "empty string"),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "object"}}},
            "response_format.schema",
            "comes with the type json_schema",
        ),
        ({"response_format": {"type": "xml"}}, "response_format", "does not match"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Field required"),
        ({"tool_choice": "required"}, None, "tool_choice needs tools"),
        ({"reasoning_effort": "high", "thinking": {"type": "disabled"}}, None, "switched on and off at once"),
        ({"reasoning_effort": "none", "thinking": {"type": "enabled"}}, None, "switched on and off at once"),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"thinking": False}}, None, "switched on and off at once"),
        ({"add_generation_prompt": False}, None, "needs continue_final_message"),
        ({"continue_final_message": True}, None, "needs an assistant message at the end"),
        ({"max_tokens": 0}, None, "needs one token at least"),
        ({"top_k": -2}, "top_k", "greater than or equal to -1"),
        ({"top_logprobs": 3}, None, "top_logprobs needs logprobs"),
        ({"thinking": {"type": "maybe"}}, "thinking.type", "'enabled' or 'disabled'"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking", "for thinking that is enabled"),
        ({"messages": [{"role": "assistant", "prefix": True}]}, None, "a prefix needs content"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens", "6 exceeds the 5 tokens"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(serve, endless, fields, param, says):
    error = error_of(serve(endless).ask(**fields), 422)
    assert error["param"] == param
    assert says in error["message"]
    assert endless.requests == []


def body(max_tokens, **fields):
    message = {"role": "user", "content": "hi"}
    return {"model": "tiny", "messages": [message], "stream": True, "max_tokens": max_tokens} | fields


def nested(depth):
    schema = {"type": "object"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": [{"role": "user", "content": "a\ud800b"}]}, "one half of a surrogate pair"),
        ({"\udfff": 1}, "one half of a surrogate pair"),
        (nested(300), "nested too deeply"),
    ],
)
def test_json_that_is_no_text_is_refused(serve, endless, fields, says):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | fields
    response = serve(endless).http.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert says in error_of(response, 422)["message"]


@pytest.mark.parametrize("slow", ["prompt", "form"])
def test_a_request_that_takes_long_to_read_holds_up_nobody(serve, tokenizer, monkeypatch, slow):
    engine = ScriptedEngine(lambda _: [tokenizer.eos_id])
    server = serve(engine)
    reading, others_done = threading.Event(), threading.Event()
    fields = {"user": "slow"}

    def read_slowly(read):
        def slowly(*given):
            reading.set()
            assert others_done.wait(20)
            return read(*given)

        return slowly

    if slow == "form":
        monkeypatch.setattr(engine, "prepared", read_slowly(engine.prepared))
        fields |= {"response_format": {"type": "json_object"}}
    else:
        chat = server.service.prompts.chat
        once = iter([read_slowly(chat)])
        monkeypatch.setattr(server.service.prompts, "chat", lambda *given: next(once, chat)(*given))
    asked = threading.Thread(target=lambda: httpx2.post(f"{server.url}/v1/chat/completions", json=body(5, **fields)))
    asked.start()
    assert reading.wait(10)
    assert server.ask().status_code == 200
    assert asked.is_alive()
    others_done.set()
    asked.join()


def test_limits_of_body_and_tokens(serve, endless):
    server = serve(endless, max_body_bytes=2000)
    post = lambda body, **more: server.http.post("/v1/chat/completions", content=body, **more)
    json_type = {"headers": {"Content-Type": "application/json"}}
    assert error_of(server.ask(user="x" * 2000), 413)["code"] == "body_too_large"
    assert error_of(post(iter([b"x" * 999] * 3), **json_type), 413)  # no Content-Length to tell
    assert "not JSON" in error_of(post(b"{", **json_type), 400)["message"]
    assert "must be a JSON object" in error_of(post(b"[]", **json_type), 400)["message"]
    assert "nested too deeply" in error_of(post(b"[" * 1900, **json_type), 422)["message"]
    assert error_of(post(b"\xff\xfe{}", **json_type), 400)
    long = [{"role": "user", "content": "zq" * 400}]
    assert error_of(server.ask(messages=long), 400)["code"] == "context_length_exceeded"
    assert error_of(server.ask(messages=[{"role": "user", "content": "1" * 1500}]), 400)["param"] == "messages"
    assert error_of(server.ask(model="other"), 404)["code"] == "model_not_found"
    assert error_of(server.http.get("/nowhere"), 404)
    refused = server.http.get("/v1/chat/completions")
    assert (error_of(refused, 405)["type"], refused.headers["allow"]) == ("invalid_request_error", "POST")
    assert server.ask(max_tokens=2).status_code == 200


def test_too_many_requests_are_told_when_to_come_back(serve, endless):
    server = serve(endless, max_requests=2)
    with (
        server.http.stream("POST", "/v1/chat/completions", json=body(300)) as one,
        server.http.stream("POST", "/v1/chat/completions", json=body(300)) as two,
    ):
        assert {one.status_code, two.status_code} == {200}
        refused = server.ask(max_tokens=1)
        assert error_of(refused, 429)["code"] == "too_many_requests"
        assert int(refused.headers["Retry-After"]) >= 1
    until(lambda: server.service.active == 0)
    assert server.ask(max_tokens=1).status_code == 200


# Those who go away, read slowly, or send slowly


def raw(server, asked, receive_buffer=None):
    """A connection that has sent a request and reads nothing by itself."""
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.connect(("127.0.0.1", server.port))
    text = json.dumps(asked)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_its_work(serve, endless, stream):
    server = serve(endless)
    connection = raw(server, body(400, stream=stream))
    until(lambda: endless.has_work)
    connection.close()
    until(lambda: not endless.has_work)
    assert endless.cancelled == [1]
    assert endless.made < 400
    until(lambda: server.service.active == 0)
    assert 'status="499"' in server.http.get("/metrics").text


def test_a_slow_reader_holds_up_nobody(serve, tokenizer):
    word = tokenizer.encode(" whale")[0]
    engine = ScriptedEngine(lambda _: iter(lambda: word, None), pace=50)
    server = serve(engine, context=10**6, write_seconds=0.5, max_tokens=10**5)
    slow = raw(server, body(90_000, n=8), receive_buffer=4096)
    until(lambda: engine.has_work)
    began = time.monotonic()
    assert server.ask(max_tokens=100).status_code == 200
    assert time.monotonic() - began < 5
    until(lambda: server.service.active == 0)  # what is not read for half a second is given up
    slow.close()


def test_a_body_that_never_ends_is_given_up(serve, endless):
    server = serve(endless, read_seconds=0.2)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
        connection.settimeout(5)
        assert b"400" in connection.recv(4096)


def test_an_answer_that_takes_too_long_is_stopped(serve, endless):
    server = serve(endless, request_seconds=0.2)
    assert error_of(server.ask(max_tokens=400), 503)["code"] == "timeout"
    with server.http.stream("POST", "/v1/chat/completions", json=body(400)) as response:
        last = [line for line in response.iter_lines() if line][-2:]
    assert json.loads(last[0].removeprefix("data: "))["error"]["code"] == "timeout"
    assert last[1] == "data: [DONE]"
    until(lambda: not endless.has_work)


def test_comments_keep_a_waiting_stream_open(serve, tokenizer):
    engine = ScriptedEngine(lambda _: tokenizer.encode("</think>four"), delay=0.25)
    server = serve(engine, keep_alive_seconds=0.05)
    with server.http.stream("POST", "/v1/chat/completions", json=body(2)) as response:
        lines = list(response.iter_lines())
    assert lines.count(": keep-alive") >= 3


# Failures and the end


def test_an_engine_that_is_broken_says_so_until_it_is_well(serve, endless):
    server = serve(endless)
    endless.broken = "no whales"
    refused = server.ask(max_tokens=3)
    assert "no whales" in error_of(refused, 503)["message"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert server.http.get("/health").json() == {"status": "failed"}
    endless.broken = None
    assert server.ask(max_tokens=3).status_code == 200
    assert server.http.get("/health").json() == {"status": "ok"}


def test_a_bug_in_one_request_hurts_no_other(serve, endless, monkeypatch):
    server = serve(endless)
    monkeypatch.setattr("ziphius.serve.endpoints.turn.chat_request", lambda *_: 1 / 0)
    assert "its log says how" in error_of(server.ask(), 500)["message"]
    monkeypatch.undo()
    assert server.ask(max_tokens=3).status_code == 200
    assert server.service.active == 0


def test_the_log_holds_no_prompt_unless_asked(serve, endless, caplog):
    caplog.set_level(logging.INFO, "ziphius.serve")
    for asked, there in ((False, False), (True, True)):
        caplog.clear()
        server = serve(endless, log_prompts=asked)
        server.ask(max_tokens=3, user="ada", messages=[{"role": "user", "content": "a whale dives"}])
        until(lambda: caplog.messages)
        entry = json.loads(caplog.messages[-1])
        assert (entry["status"], entry["user"], entry["completion_tokens"]) == (200, "ada", 3)
        assert ("a whale dives" in caplog.text) == there
    server.ask(best_of=3)
    entry = json.loads(caplog.messages[-1])
    assert (entry["status"], entry["code"], entry["param"]) == (422, "unsupported_field", "best_of")


def test_random_bytes_are_answered_in_the_same_form(serve, endless):
    server = serve(endless)
    for seed in range(40):
        noise = os.urandom(seed * 7 % 300)
        for kind in ("application/json", "text/plain"):
            response = server.http.post("/v1/completions", content=noise, headers={"Content-Type": kind})
            assert response.status_code in (400, 422)
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
