"""`POST /v1/chat/completions`: messages in, thinking, answer and tool calls out."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.reply import (
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChoiceLogprobs,
    MadeCall,
    MadeFunction,
)
from ziphius.serve.dialogue.deltas import CallDelta
from ziphius.serve.dialogue.parse import ReplyParser
from ziphius.serve.endpoints.answer import Choice, News, TokenLog, naming_ignored, respond
from ziphius.serve.endpoints.logprobs import token_logprobs
from ziphius.serve.endpoints.turn import Turn, begin_turn
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.stream import DONE, KEEP_ALIVE, event
from ziphius.text.tokenizer import Tokenizer


async def complete_chat(service: Service, asked: ChatRequest, request: Request) -> Response:
    """The answer, whole or as a stream. Raises ApiError for what cannot be answered."""
    turn = await begin_turn(service, asked, "/v1/chat/completions", f"chatcmpl-{secrets.token_hex(12)}", asked.left_out)
    head = {"id": turn.name, "created": int(time.time()), "model": asked.model}
    head |= {"system_fingerprint": service.runner_of(asked.model).fingerprint}

    def whole() -> ChatCompletion:
        turn.remember()
        made = [_choice(service.tokenizer, choice, asked.old_calls) for choice in turn.answer.choices]
        return ChatCompletion(**head, choices=made, usage=turn.answer.usage)

    events = _stream(turn, head) if asked.stream else None
    response = await respond(turn.answer, [turn.request], request.receive, events, whole)
    return naming_ignored(response, asked.left_out)


async def _stream(turn: Turn, head: dict[str, Any]) -> AsyncGenerator[str, None]:
    """The chunks: the role, then thinking, answer and calls as they come, the end with the usage, `[DONE]`."""
    answer, usage_apart, old_calls = turn.answer, turn.asked.usage_apart, turn.asked.old_calls
    head = head | {"object": "chat.completion.chunk"} | ({"usage": None} if usage_apart else {})

    def chunk(index: int, delta: dict[str, Any], logs: Any = None, finish: str | None = None, **more: Any) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logs, "finish_reason": finish}
        return event(head | {"choices": [choice]} | more)

    opening = {"content": None, "reasoning_content": ""} if turn.prompt.thinking else {"content": ""}
    yield "".join(chunk(choice.index, {"role": "assistant"} | opening) for choice in answer.choices)
    open_choices = len(answer.choices)
    async for pieces in answer.news():
        if not pieces:
            yield KEEP_ALIVE
        texts = []
        for news in pieces:
            for delta, logs in _deltas(turn.service.tokenizer, news, old_calls):
                texts.append(chunk(news.choice.index, delta, logs))
            if news.finish_reason is not None:
                open_choices -= 1
                more = {} if open_choices or usage_apart else {"usage": answer.usage.model_dump()}
                texts.append(chunk(news.choice.index, {}, None, _finish(news.finish_reason, old_calls), **more))
        if texts:
            yield "".join(texts)
    turn.remember()
    if usage_apart:
        yield event(head | {"choices": [], "usage": answer.usage.model_dump()})
    yield DONE


def _deltas(tokenizer: Tokenizer, news: News, old_calls: bool) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
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
        if old_calls:  # there is one
            found += [({"function_call": _call_delta(call)["function"]}, None) for call in merged.values()]
        else:
            found.append(({"tool_calls": [_call_delta(call) for call in merged.values()]}, None))
    return found


def _call_delta(call: CallDelta) -> dict[str, Any]:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    function = {"name": call.name, "arguments": call.arguments}
    return {"index": call.index, "id": call.id, "type": "function", "function": function}


def _finish(reason: str | None, old_calls: bool) -> str | None:
    return "function_call" if old_calls and reason == "tool_calls" else reason


def _choice(tokenizer: Tokenizer, choice: Choice, old_calls: bool) -> ChatChoice:
    parser = choice.parser
    assert isinstance(parser, ReplyParser)
    calls = [
        MadeCall(id=call.id or "", function=MadeFunction(name=call.name or "", arguments=call.arguments))
        for call in parser.calls
    ]
    message = ChatMessage(
        content=parser.content or (None if calls else ""),
        reasoning_content=parser.reasoning or None,
        tool_calls=None if old_calls else calls or None,
        function_call=calls[0].function if old_calls and calls else None,
    )
    return ChatChoice(
        index=choice.index,
        message=message,
        logprobs=_logprobs(tokenizer, choice.logs) if choice.with_logs else None,
        finish_reason=_finish(choice.finish_reason, old_calls),
    )


def _logprobs(tokenizer: Tokenizer, logs: Sequence[TokenLog]) -> ChoiceLogprobs:
    parts = {part: token_logprobs(tokenizer, logs, part) for part in ("content", "reasoning")}
    return ChoiceLogprobs(content=parts["content"], reasoning_content=parts["reasoning"])
