"""What Anthropic's Messages API refuses, and how it says so."""

import anthropic
import pytest

from tests.serve.saying import ASK, DEPTH, client_of
from ziphius.serve.key_file import new_key
from ziphius.serve.wire.keys import Keys

RESULT = {"type": "tool_result", "tool_use_id": "t"}
CALL = {"type": "tool_use", "id": "t", "name": "depth", "input": {}}


def said(*blocks, role="user"):
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_k": 2**63}, "top_k"),
        ({"messages": []}, "messages"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0: 'web_search_20250305'"),
        ({"tools": [{"name": "how deep", "input_schema": {}}]}, "tools.0.name"),
        ({"tools": [DEPTH, DEPTH]}, "two tools have the same name"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"system": [{"type": "image"}]}, "system.0: 'image'"),
        (said({"type": "image", "source": {}}), "messages.0.content.0: 'image'"),
        (said(RESULT | {"content": [{"type": "document"}]}), "messages.0.content.0.content.0: 'document'"),
        (said({"type": "server_tool_use"}, role="assistant"), "'server_tool_use'"),
        (said(CALL, role="assistant"), "the last message calls tools"),
    ],
)
def test_what_is_wrong_is_400_and_named(talking, fields, says):
    _, client = talking
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**ASK, extra_body=fields)
    body = caught.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert says in body["error"]["message"]
    assert caught.value.request_id == body["request_id"]


def test_another_model_is_not_found(talking):
    _, client = talking
    for ask in (client.messages.create, lambda max_tokens, **fields: client.messages.count_tokens(**fields)):
        with pytest.raises(anthropic.NotFoundError, match="there is no model 'claude'"):
            ask(**ASK | {"model": "claude"})


def test_refusals_before_anything_is_read(talk, tmp_path):
    key = new_key(tmp_path / "keys", "ada")
    server, _, _ = talk("x", keys=Keys.load(tmp_path / "keys"), max_body_bytes=4000, max_requests=1)
    for wrong in ({"api_key": "zk-none"}, {"auth_token": "zk-none"}):
        with pytest.raises(anthropic.AuthenticationError) as caught:
            client_of(server, **wrong).messages.create(**ASK)
        assert caught.value.type == "authentication_error"
    deepseeks = anthropic.Anthropic(base_url=f"{server.url}/anthropic", api_key="zk-none", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError, match="no valid API key"):
        deepseeks.messages.create(**ASK)
    assert deepseeks.with_options(api_key=key).messages.create(**ASK).role == "assistant"
    for right in ({"api_key": key}, {"auth_token": key}):
        assert client_of(server, **right).messages.create(**ASK).role == "assistant"
    with pytest.raises(anthropic.ContentTooLargeError):
        client_of(server, api_key=key).messages.create(**ASK | {"system": "x" * 5000})
    server.service.enter("key ada", 1)
    with pytest.raises(anthropic.RateLimitError) as caught:
        client_of(server, api_key=key).messages.create(**ASK)
    assert caught.value.type == "rate_limit_error"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    server.service.draining = True
    with pytest.raises(anthropic.InternalServerError) as caught:
        client_of(server, api_key=key).messages.create(**ASK)
    assert (caught.value.status_code, caught.value.type) == (503, "overloaded_error")
