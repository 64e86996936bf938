"""Streams of Anthropic's Messages API."""

import anthropic
import pytest
from anthropic.types import RawMessageStreamEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.serve.saying import ASK, DEPTH, OF, calls, streamed


def dumped(message):
    """A message without what differs from one request to the next."""
    found = message.model_dump(exclude={"id", "usage"}, exclude_none=True)
    return found | {"content": [{**block, "id": None} for block in found["content"]]}


THINKING = {
    "left out": {},
    "off": {"thinking": {"type": "disabled"}},
    "on": {"thinking": {"type": "adaptive"}},
    "omitted": {"thinking": {"type": "adaptive", "display": "omitted"}},
}
EVENT = TypeAdapter(RawMessageStreamEvent)


@settings(max_examples=30, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    thinking=st.sampled_from(["", "I add.\n</think>\n\n", "\n</think>", "hm 鲸鱼</think>"]),
    said=st.sampled_from(["", "four 鲸鱼 whales", " \n", "a<think>b</think>"]),
    written=st.lists(st.sampled_from([OF, "", "{broken", '{"a":[1.0,{}]} ', "[1]"]), max_size=3),
    late=st.sampled_from(["", "late <think>words"]),
    mode=st.sampled_from(sorted(THINKING)),
    limits=st.fixed_dictionaries(
        {
            "max_tokens": st.sampled_from([5, 20, 60, 300]),
            "stop_sequences": st.sampled_from([[], ["whales"], ["our", "e"]]),
        }
    ),
    pace=st.integers(1, 12),
)
def test_a_stream_adds_up_to_the_whole_however_it_is_cut(talking, thinking, said, written, late, mode, limits, pace):
    engine, client = talking
    engine.texts = (thinking + said + (calls(*written) if written else "") + late,)
    fields = ASK | THINKING[mode] | limits | {"tools": [DEPTH]}
    engine.pace = 1000
    whole = client.messages.create(**fields)
    engine.pace = pace
    events = [event.to_dict() for event in client.messages.create(**fields, stream=True)]
    for event in events:
        EVENT.validate_python(event, strict=True)
    assert_well_formed(events, len(whole.content))
    final = streamed(client, **fields)
    assert dumped(final) == dumped(whole)
    usage = {"output_tokens", "input_tokens", "cache_read_input_tokens", "output_tokens_details"}
    assert final.usage.model_dump(include=usage) == whole.usage.model_dump(include=usage)
    assert mode in ("on", "omitted") or all(block.type != "thinking" for block in whole.content)


def assert_well_formed(events, count):
    """One block at a time, `count` of them, numbered from 0."""
    kinds = [event["type"] for event in events]
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert [e["index"] for e in events if e["type"] == "content_block_start"] == list(range(count))
    open_block = None
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert open_block is None
            open_block = event["index"]
        assert event["index"] == open_block
        if event["type"] == "content_block_stop":
            open_block = None
    assert open_block is None


def test_a_failure_under_way_is_an_event(talk):
    _server, engine, client = talk("four")
    engine.ending = "a step broke"
    events = client.messages.create(**ASK, stream=True)
    with pytest.raises(anthropic.APIStatusError) as caught:
        list(events)
    assert caught.value.body["error"]["type"] == "api_error"
    assert caught.value.body["request_id"].startswith("req_")


def test_a_stream_that_says_nothing_pings(talk):
    server, engine, _ = talk("hm hm hm hm</think>four", keep_alive_seconds=0.05)
    engine.delay = 0.03
    with server.http.stream("POST", "/v1/messages", json=ASK | {"stream": True}) as response:
        lines = [line for line in response.iter_lines() if line.startswith("event: ")]
    before = lines[: lines.index("event: content_block_start")]
    assert before.count("event: ping") > 2  # the thinking is not shown, and goes on
    assert lines[-1] == "event: message_stop"
