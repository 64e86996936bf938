"""`POST /v1/completions`: a text continued as it stands, or the middle between a prompt and a suffix."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ziphius.engine.request import Request as EngineRequest
from ziphius.engine.tops import Tops
from ziphius.serve.contracts.completions import CompletionRequest
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.reply import TextChoice, TextCompletion, TextLogprobs, written
from ziphius.serve.dialogue.ask import completion_request
from ziphius.serve.dialogue.deltas import Delta, Part
from ziphius.serve.dialogue.stops import StopTail
from ziphius.serve.endpoints.answer import Answer, Choice, News, PromptLogs, TokenLog, naming_ignored, respond, weight
from ziphius.serve.endpoints.tokens import spelled
from ziphius.serve.wire.lanes import LARGE
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.stream import DONE, KEEP_ALIVE, event
from ziphius.text.detokenise import Detokeniser
from ziphius.text.tokenizer import Tokenizer

_MOST_SCORED = 2**17  # tokens of prompts in one answer, each of which takes about a kilobyte until it is sent


class TextParser:
    """A continuation is all text: its tokens spelled out, up to a stop string."""

    reasoning_tokens = 0

    def __init__(
        self, tokenizer: Tokenizer, begun: str, stops: Sequence[str], ends: Sequence[int], spelling: Spelling
    ) -> None:
        """`begun`: what is said before the first token, as `echo` asks for."""
        self.spelling = spelling
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


class Spelling:
    """The old form of logs, as tokens come: their names, and where in the text of the choice each begins.

    A token that is but a part of a character begins where that character does.
    """

    def __init__(self, tokenizer: Tokenizer, ahead: int = 0) -> None:
        """`ahead`: characters before the text begins."""
        self._tokenizer, self._place = tokenizer, -ahead
        self._detokeniser = Detokeniser(tokenizer)

    def logprobs(self, prompt: PromptLogs | None, logs: Sequence[TokenLog]) -> TextLogprobs:
        """Of the tokens that come next, behind the prompt where it comes with them."""
        told = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        if prompt is not None:
            for token, logprob, top in zip(prompt.tokens, prompt.logprobs, prompt.tops, strict=True):
                self._add(told, token, logprob, top)
            self._place += len(self._detokeniser.finish())
            self._detokeniser = Detokeniser(self._tokenizer)
        for log in logs:
            self._add(told, log.token, log.logprob, log.top)
        return told

    def _add(self, told: TextLogprobs, token: int, logprob: float | None, top: Tops) -> None:
        told.tokens.append(spelled(self._tokenizer, token))
        told.text_offset.append(max(self._place, 0))
        self._place += len(self._detokeniser.push([token]))
        if logprob is None:  # a prompt's first
            told.token_logprobs.append(None)
            told.top_logprobs.append(None)
        else:
            told.token_logprobs.append(written(logprob))
            told.top_logprobs.append({spelled(self._tokenizer, other): written(p) for other, p in top})


@dataclass(frozen=True)
class _Prompt:
    """One prompt, as the engine reads it. `begun` is what `echo` has said before the first token, and `ahead` how many
    characters of a bos stand before that."""

    ids: list[int]
    request: EngineRequest
    begun: str
    ahead: int


async def complete_text(service: Service, asked: CompletionRequest, request: Request) -> Response:
    """The continuations, whole or as a stream. Raises ApiError for what cannot be answered."""
    service.check_model(asked.model)
    prompts = await service.lanes.run(_prepare, service, asked)
    ends = [*service.tokenizer.eos_ids, *(asked.stop_token_ids or [])]
    choices: list[Choice] = []
    for prompt in prompts:
        for _ in range(asked.n or 1):
            spelling = Spelling(service.tokenizer, prompt.ahead)
            parser = TextParser(service.tokenizer, prompt.begun, asked.stops, ends, spelling)
            choices.append(Choice(len(choices), parser, asked.logprobs is not None, prompt=prompt.ids))
    name = f"cmpl-{secrets.token_hex(12)}"
    about: dict[str, Any] = {"path": "/v1/completions", "id": name, **asked.labels}
    if asked.left_out:
        about["ignored"] = asked.left_out
    if service.settings.log_prompts:
        about["prompt"] = await service.lanes.run(lambda: [service.tokenizer.decode(prompt.ids) for prompt in prompts])
    answer = Answer(service, choices, about, asked.model)
    head = {"id": name, "created": int(time.time()), "model": asked.model}
    head |= {"system_fingerprint": service.runner_of(asked.model).fingerprint}

    def whole() -> TextCompletion:
        if service.settings.log_prompts:
            about["answer"] = [choice.parser.text for choice in choices]  # type: ignore[attr-defined]
        made = [_choice(choice) for choice in choices]
        return TextCompletion(**head, choices=made, usage=answer.usage)

    events = _stream(service, answer, head, asked.usage_apart) if asked.stream else None
    response = await respond(answer, [prompt.request for prompt in prompts], request.receive, events, whole)
    return naming_ignored(response, asked.left_out)


def _prepare(service: Service, asked: CompletionRequest) -> list[_Prompt]:
    """What takes as long as the prompts are."""
    prompts = [_prompt(service, asked, prompt) for prompt in asked.prompts]
    scored = sum(len(prompt.ids) for prompt in prompts) * (asked.n or 1)
    most = max(_MOST_SCORED, service.limits.context)
    if asked.echo and asked.logprobs is not None and scored > most:
        raise ApiError(
            400,
            f"echo with logprobs would give back the scores of {scored:,} tokens, and {most:,} are the most in one "
            "request: send fewer prompts at once, or a smaller n",
            param="prompt",
        )
    return prompts


def _prompt(service: Service, asked: CompletionRequest, prompt: str | list[int]) -> _Prompt:
    tokenizer = service.tokenizer
    service.check_length([prompt] if isinstance(prompt, str) else [], "prompt")
    try:
        ids = service.prompts.text(prompt, asked.suffix)
    except ValueError as error:
        raise ApiError(422, str(error), param="prompt") from None
    begun, ahead = "", 0
    if asked.echo and isinstance(prompt, str):
        bos = tokenizer.decode(tokenizer.begin)
        begun, ahead = prompt, 0 if prompt.startswith(bos) else len(bos)
    elif asked.echo:
        begun = tokenizer.decode(ids)
    return _Prompt(ids, completion_request(asked, ids, service.limits), begun, ahead)


async def _stream(
    service: Service, answer: Answer, head: dict[str, Any], usage_apart: bool
) -> AsyncGenerator[str, None]:
    head = head | {"object": "text_completion"} | ({"usage": None} if usage_apart else {})
    open_choices = len(answer.choices)

    def chunk(news: News, more: dict[str, Any]) -> str:
        choice = {"index": news.choice.index, "text": news.delta.content, "logprobs": _logprobs(news)}
        return event(head | {"choices": [choice | {"finish_reason": news.finish_reason}]} | more)

    async for pieces in answer.news():
        if not pieces:
            yield KEEP_ALIVE
        texts = []
        for news in pieces:
            more: dict[str, Any] = {}
            if news.finish_reason is not None:
                open_choices -= 1
                more = {} if open_choices or usage_apart else {"usage": answer.usage.model_dump()}
            if news.delta.content or news.logs or news.prompt_logs or news.finish_reason is not None:
                size = len(news.delta.content) + weight(news.logs, news.prompt_logs)
                texts.append(
                    await service.lanes.run(chunk, news, more, size=size) if size > LARGE else chunk(news, more)
                )
        if texts:
            yield "".join(texts)
    if usage_apart:
        yield event(head | {"choices": [], "usage": answer.usage.model_dump()})
    yield DONE


def _choice(choice: Choice) -> TextChoice:
    assert isinstance(choice.parser, TextParser)
    logs = choice.parser.spelling.logprobs(choice.prompt_logs, choice.logs) if choice.with_logs else None
    return TextChoice(index=choice.index, text=choice.parser.text, logprobs=logs, finish_reason=choice.finish_reason)


def _logprobs(news: News) -> dict[str, Any] | None:
    """The logs of what is new, where there are any."""
    if not (news.logs or news.prompt_logs):
        return None
    assert isinstance(news.choice.parser, TextParser)
    return news.choice.parser.spelling.logprobs(news.prompt_logs, news.logs).model_dump()
