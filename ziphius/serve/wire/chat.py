"""`POST /v1/chat/completions`: messages in, thinking, answer and tool calls out."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.messages import CalledFunction
from ziphius.serve.contracts.reply import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChoiceLogprobs,
    MadeCall,
    TokenLogprob,
    TopLogprob,
)
from ziphius.serve.dialogue.ask import chat_request
from ziphius.serve.dialogue.parse import CallDelta, ReplyParser
from ziphius.serve.dialogue.prompt import Prompt
from ziphius.serve.dialogue.tools import tool_settings
from ziphius.serve.wire.answer import Answer, Choice, News, TokenLog, respond
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.stream import DONE, KEEP_ALIVE, event
from ziphius.text.tokenizer import Tokenizer


async def complete_chat(service: Service, asked: ChatRequest, request: Request, owner: str) -> Response:
    """The answer, whole or as a stream. Raises ApiError for what cannot be answered."""
    service.check_model(asked.model)
    prompt = await asyncio.to_thread(_prompt, service, asked)  # a long one takes seconds, which others must not wait
    tools = tool_settings(asked, service.tokenizer)
    user_id = service.tokenizer.user_id  # a model that goes on with the next question has ended its turn
    engine_request = chat_request(asked, prompt, service.limits, [user_id], tools)
    ends = [service.tokenizer.eos_id, *engine_request.settings.stop_token_ids]
    choices = [
        Choice(
            index,
            ReplyParser(
                service.tokenizer, bool(prompt.thinking), tools=bool(asked.tools), stops=asked.stops, ends=ends
            ),
            bool(asked.logprobs),
        )
        for index in range(engine_request.samples)
    ]
    name = f"chatcmpl-{secrets.token_hex(12)}"
    about: dict[str, Any] = {"path": "/v1/chat/completions", "id": name, "owner": owner, "user": asked.user}
    if service.settings.log_prompts:
        about["prompt"] = service.tokenizer.decode(prompt.ids)
    answer = Answer(service, choices, about)
    head = {"id": name, "created": int(time.time()), "model": asked.model}
    head |= {"system_fingerprint": service.runner.fingerprint}

    def whole() -> ChatCompletion:
        _remember(service, answer, prompt)
        made = [_choice(service.tokenizer, choice) for choice in choices]
        return ChatCompletion(**head, choices=made, usage=answer.usage)

    usage_apart = asked.stream_options is not None and asked.stream_options.include_usage
    events = _stream(service, answer, prompt, head, usage_apart) if asked.stream else None
    return await respond(answer, [engine_request], request.receive, events, whole)


def _prompt(service: Service, asked: ChatRequest) -> Prompt:
    thinking = None
    if asked.thinking is not None:
        thinking = asked.thinking.type == "enabled"
    elif asked.reasoning_effort is not None:
        thinking = asked.reasoning_effort != "none"
    tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or []]
    try:
        return service.prompts.chat(asked.messages, thinking, tools)
    except ValueError as error:
        raise ApiError(422, str(error), param="messages") from None
    except RecursionError:
        raise ApiError(422, "tools: the parameters are nested too deeply", param="tools") from None


async def _stream(
    service: Service, answer: Answer, prompt: Prompt, head: dict[str, Any], usage_apart: bool
) -> AsyncGenerator[str, None]:
    """The chunks: the role, then thinking, answer and calls as they come, the end with the usage, `[DONE]`."""
    head = head | {"object": "chat.completion.chunk"} | ({"usage": None} if usage_apart else {})

    def chunk(index: int, delta: dict[str, Any], logs: Any = None, finish: str | None = None, **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logs, "finish_reason": finish}
        return event(head | {"choices": [choice]} | more)

    opening = {"content": None, "reasoning_content": ""} if prompt.thinking else {"content": ""}
    yield "".join(chunk(choice.index, {"role": "assistant"} | opening) for choice in answer.choices)
    open_choices = len(answer.choices)
    async for pieces in answer.news():
        if not pieces:
            yield KEEP_ALIVE
        texts = []
        for news in pieces:
            for delta, logs in _deltas(service.tokenizer, news):
                texts.append(chunk(news.choice.index, delta, logs))
            if news.finish_reason is not None:
                open_choices -= 1
                more = {} if open_choices else {"usage": answer.usage.model_dump()}
                texts.append(chunk(news.choice.index, {}, None, news.finish_reason, **more))
        if texts:
            yield "".join(texts)
    _remember(service, answer, prompt)
    if usage_apart:
        yield event(head | {"choices": [], "usage": answer.usage.model_dump()})
    yield DONE


def _deltas(tokenizer: Tokenizer, news: News) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """A choice's news as deltas in the contract's order: thinking, answer, calls."""
    said = news.delta
    found: list[tuple[dict[str, Any], dict[str, Any] | None]] = []
    for part, key in (("reasoning", "reasoning_content"), ("content", "content")):
        text, logs = getattr(said, part), [log for log in news.logs if log.part == part]
        if text or logs:
            found.append(({key: text}, _logprobs(tokenizer, logs).model_dump() if logs else None))
    if said.calls:
        merged: dict[int, CallDelta] = {}
        for call in said.calls:  # one entry a call: some clients look at no more
            before = merged.get(call.index, CallDelta(call.index))
            arguments = before.arguments + call.arguments
            merged[call.index] = CallDelta(call.index, before.id or call.id, before.name or call.name, arguments)
        found.append(({"tool_calls": [_call_delta(call) for call in merged.values()]}, None))
    return found


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _choice(tokenizer: Tokenizer, choice: Choice) -> ChatChoice:
    parser = choice.parser
    assert isinstance(parser, ReplyParser)
    calls = [
        MadeCall(id=call.id or "", function=CalledFunction(name=call.name or "", arguments=call.arguments))
        for call in parser.calls
    ]
    message = ChatMessage(
        content=parser.content or (None if calls else ""),
        reasoning_content=parser.reasoning or None,
        tool_calls=calls or None,
    )
    return ChatChoice(
        index=choice.index,
        message=message,
        logprobs=_logprobs(tokenizer, choice.logs) if choice.with_logs else None,
        finish_reason=choice.finish_reason,
    )


def _logprobs(tokenizer: Tokenizer, logs: Sequence[TokenLog]) -> ChoiceLogprobs:
    def one(log: TokenLog) -> TokenLogprob:
        top = [TopLogprob(**_named(tokenizer, token, logprob)) for token, logprob in log.top]
        return TokenLogprob(**_named(tokenizer, log.token, log.logprob), top_logprobs=top)

    parts = {part: [one(log) for log in logs if log.part == part] for part in ("content", "reasoning")}
    return ChoiceLogprobs(content=parts["content"], reasoning_content=parts["reasoning"])


def _named(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    spelled = tokenizer.token_bytes(token)
    return {"token": spelled.decode("utf-8", "replace"), "logprob": max(logprob, -9999.0), "bytes": list(spelled)}


def _remember(service: Service, answer: Answer, prompt: Prompt) -> None:
    """Keep the tokens of what was written, so that the next turn reads them as they are and finds them in the cache."""
    for choice in answer.choices:
        assert isinstance(choice.parser, ReplyParser)
        for text, ids in choice.parser.written():
            if prompt.begun and text == choice.parser.content:
                text, ids = prompt.begun + text, [*service.prompts.plain_ids(prompt.begun), *ids]
            service.prompts.memory.keep(prompt.turn, text, ids)
    if service.settings.log_prompts:
        answer.about["answer"] = [choice.parser.content for choice in answer.choices]  # type: ignore[attr-defined]
