"""Several turns with the official client, which sends back what it got, and requests as other programs send them."""

import json

import httpx2
import openai
import pytest
from pydantic import BaseModel

from tests.serve.scripted import ScriptedEngine
from ziphius.text import tokens

ASK = [{"role": "user", "content": "how deep?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"of": {"type": "string"}},
    "required": ["of"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "depth", "parameters": PARAMETERS, "strict": True}}
CALL = (
    f'hm</think>{tokens.CALLS_BEGIN}{tokens.CALL_BEGIN}depth{tokens.TOOL_SEP}{{"of": "cuvier"}}{tokens.CALL_END}'
    f"{tokens.CALLS_END}"
)


class Depth(BaseModel):
    of: str


@pytest.fixture
def talk(serve, tokenizer):
    """`talk(first, second, ...)`: a model that says these in turn, its engine, the official client."""

    def start(*texts):
        turns = iter(texts)
        engine = ScriptedEngine(lambda _: tokenizer.encode(next(turns) + tokens.EOS), pace=5)
        server = serve(engine)
        return server, engine, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

    return start


def read(tokenizer, engine):
    return tokenizer.decode(engine.requests[-1].prompt)


@pytest.mark.parametrize("sent_back", ["object", "dump", "dump without null", "json"])
def test_an_answer_is_sent_back(talk, tokenizer, sent_back):
    _, engine, client = talk("I add.</think>four", "</think>five")
    message = client.chat.completions.create(model="tiny", messages=ASK).choices[0].message
    again = {
        "object": message,
        "dump": message.model_dump(),
        "dump without null": message.model_dump(exclude_none=True),
        "json": json.loads(message.to_json()),
    }[sent_back]
    reply = client.chat.completions.create(model="tiny", messages=[*ASK, again, {"role": "user", "content": "and?"}])
    assert reply.choices[0].message.content == "five"
    assert f"{tokens.ASSISTANT}</think>four{tokens.EOS}{tokens.USER}and?" in read(tokenizer, engine)


@pytest.mark.parametrize("way", ["create", "stream", "parse", "old"])
def test_a_tool_loop(talk, tokenizer, way):
    _, engine, client = talk(CALL, "</think>two thousand")
    tools = {"functions": [TOOL["function"]]} if way == "old" else {"tools": [TOOL]}
    if way == "stream":
        with client.chat.completions.stream(model="tiny", messages=ASK, **tools) as stream:
            choice = stream.get_final_completion().choices[0]
    elif way == "parse":
        choice = client.chat.completions.parse(model="tiny", messages=ASK, **tools).choices[0]
        assert choice.message.tool_calls[0].function.parsed_arguments == {"of": "cuvier"}
    else:
        choice = client.chat.completions.create(model="tiny", messages=ASK, **tools).choices[0]
    message = choice.message
    if way == "old":
        assert (choice.finish_reason, message.tool_calls, message.content) == ("function_call", None, None)
        assert (message.function_call.name, message.function_call.arguments) == ("depth", '{"of": "cuvier"}')
        result = {"role": "function", "name": "depth", "content": "2000 m"}
    else:
        assert choice.finish_reason == "tool_calls"
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2000 m"}
    reply = client.chat.completions.create(model="tiny", messages=[*ASK, message, result], **tools)
    assert reply.choices[0].message.content == "two thousand"
    prompt = read(tokenizer, engine)
    assert f'{tokens.CALL_BEGIN}depth{tokens.TOOL_SEP}{{"of": "cuvier"}}{tokens.CALL_END}' in prompt
    assert f"{tokens.OUTPUT_BEGIN}2000 m{tokens.OUTPUT_END}" in prompt


def test_old_calls_are_streamed(talk):
    _, _, client = talk(CALL)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=ASK, functions=[TOOL["function"]], function_call={"name": "depth"}, stream=True
        )
    )
    parts = [c.choices[0].delta.function_call for c in chunks if c.choices[0].delta.function_call]
    assert parts[0].name == "depth"
    assert "".join(part.arguments for part in parts) == '{"of": "cuvier"}'
    assert chunks[-1].choices[0].finish_reason == "function_call"


def test_a_parsed_answer_is_sent_back(talk, tokenizer):
    _, engine, client = talk('hm</think>{"of": "cuvier"}', '</think>{"of": "sperm"}')
    messages = ASK
    for expected in ("cuvier", "sperm"):
        message = (
            client.chat.completions.parse(model="tiny", messages=messages, response_format=Depth).choices[0].message
        )
        assert message.parsed == Depth(of=expected)
        messages = [*messages, message, {"role": "user", "content": "another"}]
    assert '</think>{"of": "cuvier"}' in read(tokenizer, engine)
    assert "parsed" not in read(tokenizer, engine)


# Answers as other services give them, which clients send on.
ANSWERS = {
    "openai's refusal": ({"content": None, "refusal": "I cannot.", "annotations": [], "audio": None}, "I cannot."),
    "openai's nulls": ({"content": "four", "refusal": None, "function_call": None, "tool_calls": None}, "four"),
    "parts": ({"content": [{"type": "text", "text": "fo"}, {"type": "refusal", "refusal": "ur"}]}, "four"),
    "responses' parts": ({"content": [{"type": "output_text", "text": "four", "annotations": []}]}, "four"),
    "thinking parts": (
        {"content": [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "four"}]},
        "four",
    ),
    "openrouter": ({"content": "four", "reasoning": "hm", "reasoning_details": [{"type": "reasoning.text"}]}, "four"),
    "litellm": ({"content": "four", "provider_specific_fields": {"a": 1}, "thinking_blocks": []}, "four"),
    "vllm": ({"content": "four", "reasoning_content": "hm", "tool_calls": [], "stop_reason": None}, "four"),
    "nothing": ({"content": None}, ""),
    "empty": ({"content": "", "tool_calls": []}, ""),
    "prefix off": ({"content": "four", "prefix": False, "name": "whale"}, "four"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_answers_of_other_services(talk, tokenizer, kind):
    server, engine, _ = talk("</think>x")
    fields, shown = ANSWERS[kind]
    reply = server.ask(messages=[*ASK, {"role": "assistant"} | fields, {"role": "user", "content": "and?"}])
    assert reply.status_code == 200, reply.text
    assert f"{tokens.ASSISTANT}</think>{shown}{tokens.EOS}{tokens.USER}and?" in read(tokenizer, engine)


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c", "index": 0, "type": "function", "function": {"name": "depth", "arguments": "{}"}},
        {"function": {"name": "depth", "arguments": {}}},  # Ollama's form
        {"id": None, "type": None, "function": {"name": "depth", "arguments": "{}", "parsed_arguments": None}},
    ],
)
def test_calls_of_other_services(talk, tokenizer, call):
    server, engine, _ = talk("</think>x")
    messages = [*ASK, {"role": "assistant", "content": "", "tool_calls": [call]}]
    messages.append({"role": "tool", "name": "depth", "content": [{"type": "text", "text": "2000"}]})
    assert server.ask(messages=messages, tools=[TOOL]).status_code == 200
    assert f"{tokens.CALL_BEGIN}depth{tokens.TOOL_SEP}{{}}{tokens.CALL_END}" in read(tokenizer, engine)


def test_a_conversation_may_end_with_an_answer(talk, tokenizer):
    server, engine, _ = talk("</think>x", " deep")
    messages = [*ASK, {"role": "assistant", "content": "very"}]
    assert server.ask(messages=messages).status_code == 200  # another answer, as OpenAI's and vLLM's services give it
    assert read(tokenizer, engine).endswith(f"very{tokens.EOS}{tokens.ASSISTANT}<think>\n")
    on = server.ask(messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert on.json()["choices"][0]["message"]["content"] == " deep"
    assert read(tokenizer, engine).endswith("</think>very")


def test_a_name_is_shown_where_the_template_knows_it(tokenizer):
    from pydantic import TypeAdapter

    from ziphius.serve.contracts.messages import Message
    from ziphius.serve.dialogue.prompt import Prompts
    from ziphius.text.tokenizer import Tokenizer

    named = "{{ bos_token }}{% for m in messages %}<{{ m.name or m.role }}>{{ m.content }}{% endfor %}"
    messages = [TypeAdapter(Message).validate_python({"role": "user", "content": "hi", "name": f"ada{tokens.EOS}"})]
    prompt = Prompts(Tokenizer(tokenizer.inner, named)).chat(messages).ids
    assert tokenizer.decode(prompt) == f"{tokens.BOS}<ada{tokens.EOS}>hi"
    assert tokenizer.eos_id not in prompt
    assert "ada" not in tokenizer.decode(Prompts(tokenizer).chat(messages).ids)


THINKING = [
    # DeepSeek's guide: https://api-docs.deepseek.com/guides/thinking_mode
    ({"thinking": {"type": "enabled"}, "reasoning_effort": "high"}, True, 75),
    ({"thinking": {"type": "enabled"}, "reasoning_effort": "low"}, True, 25),
    ({"thinking": {"type": "enabled"}, "reasoning_effort": "ultra"}, True, 93),
    ({"thinking": {"type": "enabled", "budget_tokens": 7}, "reasoning_effort": "high"}, True, 7),
    ({"thinking": {"type": "disabled"}, "reasoning_effort": "none"}, False, None),
    ({"chat_template_kwargs": {"thinking": False}}, False, None),
    ({"chat_template_kwargs": {"enable_thinking": True, "custom": 1}}, True, 75),
    ({"enable_thinking": False}, False, None),
]


@pytest.mark.parametrize(("fields", "thinks", "budget"), THINKING)
def test_ways_to_switch_thinking(talk, fields, thinks, budget):
    server, engine, _ = talk("</think>x")
    assert server.ask(max_tokens=100, **fields).status_code == 200
    assert engine.requests[-1].thinking is thinks
    assert engine.requests[-1].settings.thinking_budget == budget


# What programs send beside the question.
HABITS = {
    "openai's defaults": {
        "store": False, "service_tier": "auto", "metadata": None, "logit_bias": None, "modalities": ["text"], "n": 1,
        "parallel_tool_calls": True, "tools": [], "tool_choice": "auto", "stop": None, "response_format": None,
        "audio": None, "prediction": None, "web_search_options": None, "function_call": None, "seed": None,
        "top_logprobs": None, "logprobs": False, "stream_options": None, "verbosity": "medium", "user": "ada",
        "safety_identifier": "ada", "prompt_cache_key": "k", "reasoning_effort": "medium",
    },
    "deepseek's reference": {
        "thinking": {"type": "enabled"}, "frequency_penalty": 0, "presence_penalty": 0, "max_tokens": 4096, "top_p": 1,
        "response_format": {"type": "text"}, "stop": None, "stream": False, "stream_options": None, "temperature": 1,
        "tools": None, "tool_choice": "none", "logprobs": False, "top_logprobs": None,
    },
    "vllm's extras": {
        "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "skip_special_tokens": True, "best_of": None,
        "spaces_between_special_tokens": True, "add_generation_prompt": True, "include_reasoning": True,
        "guided_json": None, "use_beam_search": False, "ignore_eos": False, "length_penalty": 1.0, "min_tokens": 0,
        "stop_token_ids": [], "prompt_logprobs": None, "priority": 0, "documents": None, "echo": False,
        "stream_options": {"include_usage": True, "continuous_usage_stats": False},
    },
    "lm studio": {"max_tokens": -1, "temperature": 0.7},
    "a blind limit": {"max_tokens": 32768, "max_completion_tokens": 32768},
    "openrouter": {"provider": {"order": ["x"]}, "models": ["a", "b"], "usage": {"include": True}, "transforms": []},
    "numbers of other languages": {"max_tokens": 16.0, "n": 1.0, "seed": 7.0, "top_k": 40.0, "temperature": 1},
    "an unknown field": {"x-vendor": {"any": ["thing"]}, "鲸": 1},
    "greedy": {"top_p": 0, "temperature": 0, "seed": 2**64 - 1, "top_k": 2**63 - 1},
}  # fmt: skip


@pytest.mark.parametrize("who", HABITS)
def test_habits_of_other_programs(talk, who):
    server, engine, _ = talk("</think>x")
    reply = server.ask(**HABITS[who])
    assert reply.status_code == 200, reply.text
    settings = engine.requests[-1].settings
    assert settings.top_k <= 330
    assert settings.max_new_tokens <= 512


def test_what_was_ignored_is_said(talk, caplog):
    server, _, client = talk("</think>x", "</think>y", "z", "</think>w")
    ignored = {"store": True, "x-vendor": 1, "鲸\r\n": 1, "modalities": ["text"], "best_of": None, "prediction": {}}
    caplog.set_level("INFO", "ziphius.serve")
    reply = server.ask(**ignored, user="ada", metadata={"run": 7})
    assert reply.headers["X-Ignored-Fields"] == "store, x-vendor, ???, modalities"
    entry = json.loads(caplog.messages[-1])
    assert entry["ignored"] == ["store", "x-vendor", "鲸\r\n", "modalities"]
    assert (entry["user"], entry["metadata"]) == ("ada", {"run": "7"})
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=ASK, stream=True, store=True)
    assert raw.headers["X-Ignored-Fields"] == "store"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in raw.parse()) == "y"
    texts = server.http.post("/v1/completions", json={"model": "tiny", "prompt": "a", "store": True})
    assert texts.headers["X-Ignored-Fields"] == "store"
    body = {"model": "tiny", "max_tokens": 9, "messages": ASK, "service_tier": "auto", "container": None}
    messages = server.http.post("/v1/messages", json=body)
    assert messages.headers["X-Ignored-Fields"] == "service_tier"
    assert "X-Ignored-Fields" not in server.http.get("/v1/models").headers


def test_an_answer_has_the_fields_that_openais_schema_requires(talk):
    server, _, _ = talk("</think>x")
    reply = server.ask(logprobs=True).json()
    assert set(reply) >= {"id", "object", "created", "model", "choices", "usage"}
    choice = reply["choices"][0]
    assert set(choice) == {"index", "message", "logprobs", "finish_reason"}
    assert set(choice["message"]) == {"role", "content", "refusal", "reasoning_content"}  # tool_calls is no null there
    assert set(choice["logprobs"]) >= {"content", "refusal"}


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("apart", [True, False])
def test_usage_comes_once(talk, path, apart):
    server, _, _ = talk("</think>a whale dives")
    body = {"model": "tiny", "stream": True} | ({"messages": ASK} if "chat" in path else {"prompt": "a"})
    if apart:
        body["stream_options"] = {"include_usage": True}
    chunks = []
    with httpx2.stream("POST", f"{server.url}/v1/{path}", json=body, timeout=20) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                chunks.append(json.loads(line[6:]))
    told = [chunk for chunk in chunks if chunk.get("usage")]
    assert told == chunks[-1:]
    if apart:  # OpenAI's form
        assert told[0]["choices"] == []
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:  # DeepSeek's
        assert told[0]["choices"][0]["finish_reason"] == "stop"
        assert all("usage" not in chunk for chunk in chunks[:-1])
