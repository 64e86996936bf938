"""`POST /v1/completions`: a text continued as it stands, or the middle between a prompt and a suffix."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ziphius.serve.contracts.completions import CompletionRequest
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.reply import TextChoice, TextCompletion, TextLogprobs
from ziphius.serve.dialogue.ask import completion_request
from ziphius.serve.dialogue.parse import Delta, Part
from ziphius.serve.dialogue.stops import StopTail
from ziphius.serve.wire.answer import Answer, Choice, TokenLog, respond
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.stream import DONE, KEEP_ALIVE, event
from ziphius.serve.wire.tokens import spelled
from ziphius.text.detokenise import Detokeniser
from ziphius.text.tokenizer import Tokenizer


class TextParser:
    """A continuation is all text: its tokens spelled out, up to a stop string."""

    reasoning_tokens = 0

    def __init__(
        self, tokenizer: Tokenizer, begun: str, stops: Sequence[str], ends: Sequence[int], ahead: int = 0
    ) -> None:
        """`begun`: what is said before the first token, as `echo` asks for; `ahead` characters of
        the prompt, a bos that was put before it, are not in it."""
        self.offset = -ahead  # of the first token that is told
        self._detokeniser, self._tail = Detokeniser(tokenizer), StopTail(stops)
        self._ends = frozenset(ends)
        self._new = begun
        self._said = [begun]

    @property
    def text(self) -> str:
        return "".join(self._said)

    def push(self, token: int, stop: str | None = None) -> Part:
        if token in self._ends:
            return "mark"
        self._say(self._tail.push(self._detokeniser.push([token]), stop))
        return "content"

    def take(self) -> Delta:
        new, self._new = self._new, ""
        return Delta(content=new)

    def finish(self) -> Delta:
        self._say(self._tail.finish(self._detokeniser.finish()))
        return self.take()

    def _say(self, text: str) -> None:
        self._said.append(text)
        self._new += text


async def complete_text(service: Service, asked: CompletionRequest, request: Request, owner: str) -> Response:
    """The continuations, whole or as a stream. Raises ApiError for what cannot be answered."""
    service.check_model(asked.model)
    try:
        prompts = [await asyncio.to_thread(service.prompts.text, prompt, asked.suffix) for prompt in asked.prompts]
    except ValueError as error:
        raise ApiError(422, str(error), param="prompt") from None
    requests = [completion_request(asked, ids, service.limits) for ids in prompts]
    ends = [service.tokenizer.eos_id, *(asked.stop_token_ids or [])]
    choices: list[Choice] = []
    for ids, prompt in zip(prompts, asked.prompts, strict=True):
        begun = (prompt if isinstance(prompt, str) else service.tokenizer.decode(ids)) if asked.echo else ""
        ahead = len(service.tokenizer.decode(ids)) - len(begun) if asked.echo else 0
        for _ in range(asked.n or 1):
            parser = TextParser(service.tokenizer, begun, asked.stops, ends, ahead)
            choices.append(Choice(len(choices), parser, asked.logprobs is not None, prompt=ids if asked.echo else ()))
    name = f"cmpl-{secrets.token_hex(12)}"
    about: dict[str, Any] = {"path": "/v1/completions", "id": name, "owner": owner, "user": asked.user}
    if service.settings.log_prompts:
        about["prompt"] = [service.tokenizer.decode(ids) for ids in prompts]
    answer = Answer(service, choices, about)
    head = {"id": name, "created": int(time.time()), "model": asked.model}
    head |= {"system_fingerprint": service.runner.fingerprint}

    def whole() -> TextCompletion:
        if service.settings.log_prompts:
            about["answer"] = [choice.parser.text for choice in choices]  # type: ignore[attr-defined]
        made = [_choice(service.tokenizer, choice) for choice in choices]
        return TextCompletion(**head, choices=made, usage=answer.usage)

    usage_apart = asked.stream_options is not None and asked.stream_options.include_usage
    events = _stream(service, answer, head, usage_apart) if asked.stream else None
    return await respond(answer, requests, request.receive, events, whole)


async def _stream(
    service: Service, answer: Answer, head: dict[str, Any], usage_apart: bool
) -> AsyncGenerator[str, None]:
    head = head | {"object": "text_completion"} | ({"usage": None} if usage_apart else {})
    open_choices = len(answer.choices)
    offsets = {c.index: c.parser.offset for c in answer.choices if isinstance(c.parser, TextParser)}
    async for pieces in answer.news():
        if not pieces:
            yield KEEP_ALIVE
        texts = []
        for news in pieces:
            more: dict[str, Any] = {}
            if news.finish_reason is not None:
                open_choices -= 1
                more = {} if open_choices else {"usage": answer.usage.model_dump()}
            index, text, logs = news.choice.index, news.delta.content, None
            if news.logs:
                logs = _logprobs(service.tokenizer, news.logs, offsets[index]).model_dump()
            offsets[index] = max(offsets[index], 0) + len(text)
            if text or news.logs or news.finish_reason is not None:
                choice = {"index": index, "text": text, "logprobs": logs, "finish_reason": news.finish_reason}
                texts.append(event(head | {"choices": [choice]} | more))
        if texts:
            yield "".join(texts)
    if usage_apart:
        yield event(head | {"choices": [], "usage": answer.usage.model_dump()})
    yield DONE


def _choice(tokenizer: Tokenizer, choice: Choice) -> TextChoice:
    assert isinstance(choice.parser, TextParser)
    return TextChoice(
        index=choice.index,
        text=choice.parser.text,
        logprobs=_logprobs(tokenizer, choice.logs, choice.parser.offset) if choice.with_logs else None,
        finish_reason=choice.finish_reason,
    )


def _logprobs(tokenizer: Tokenizer, logs: Sequence[TokenLog], offset: int) -> TextLogprobs:
    names = [spelled(tokenizer, log.token) for log in logs]
    offsets = []
    for name in names:
        offsets.append(max(offset, 0))
        offset += len(name)
    return TextLogprobs(
        tokens=names,
        token_logprobs=[None if log.logprob is None else max(log.logprob, -9999.0) for log in logs],
        top_logprobs=[
            None if log.top is None else {spelled(tokenizer, token): max(p, -9999.0) for token, p in log.top}
            for log in logs
        ],
        text_offset=offsets,
    )
