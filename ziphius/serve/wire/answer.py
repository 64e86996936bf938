"""A request being answered: the engine's updates turned into choices, with its bill and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from ziphius.engine.request import Request, Update
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.usage import Tally, Usage
from ziphius.serve.dialogue.parse import Delta, Part
from ziphius.serve.wire.runner import Ticket
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.stream import EventStream, unless_client_leaves, with_errors


class Parser(Protocol):
    """Tokens in, deltas out; `ziphius.serve.dialogue.parse.ReplyParser` is one."""

    reasoning_tokens: int

    def push(self, token: int, stop: str | None = None) -> Part: ...
    def take(self) -> Delta: ...
    def finish(self) -> Delta: ...


@dataclass(slots=True)
class TokenLog:
    """A token with its log-probability and the likeliest tokens in its place; the first of a prompt has neither."""

    part: Part
    token: int
    logprob: float | None
    top: list[tuple[int, float]] | None


@dataclass(slots=True)
class News:
    """What one choice has to say: text, the logs of its tokens where they are asked for, and perhaps its end."""

    choice: Choice
    delta: Delta
    logs: list[TokenLog]
    finish_reason: str | None

    def followed_by(self, later: News) -> News:
        """Both as one."""
        delta = self.delta.followed_by(later.delta)
        return News(self.choice, delta, self.logs + later.logs, later.finish_reason)


@dataclass
class Choice:
    index: int
    parser: Parser
    with_logs: bool = False
    finish_reason: str | None = None
    logs: list[TokenLog] = field(default_factory=list)
    prompt: Sequence[int] = ()  # whose scores the first update brings

    def read(self, update: Update) -> News:
        """Take in an update of this choice."""
        logs = self._prompt_logs(update)
        last = len(update.token_ids) - 1
        for place, token in enumerate(update.token_ids):
            part = self.parser.push(token, update.stop_string if place == last else None)
            if self.with_logs and part in ("reasoning", "content"):
                top = update.top_logprobs[place] if update.top_logprobs else []
                logs.append(TokenLog(part, token, update.logprobs[place], top))
        delta = self.parser.take()
        if update.finish_reason is not None:
            delta = delta.followed_by(self.parser.finish())
            called = bool(getattr(self.parser, "calls", None))
            self.finish_reason = "tool_calls" if called and update.finish_reason == "stop" else update.finish_reason
        self.logs += logs
        return News(self, delta, logs, self.finish_reason)

    def _prompt_logs(self, update: Update) -> list[TokenLog]:
        if not self.with_logs or update.prompt_logprobs is None or update.prompt_top_logprobs is None:
            return []
        tops = [None, *update.prompt_top_logprobs[1:]]
        scores = zip(self.prompt, update.prompt_logprobs, tops, strict=True)
        return [TokenLog("content", token, logprob, top) for token, logprob, top in scores]


class Answer:
    """One request from its acceptance to its end. `close` must be called, whatever happens; it may be called twice."""

    def __init__(self, service: Service, choices: Sequence[Choice], about: dict[str, Any]) -> None:
        """Raises ApiError (429, 503) where there is no room for another request. `about` goes into the log."""
        self.service, self.choices, self.about = service, choices, about
        self.tally = Tally(0)
        self.status = 200
        self._ticket: Ticket | None = None
        self._began = time.monotonic()
        self._first: float | None = None
        self._streamed = False
        self._closed = False
        service.enter()

    async def begin(self, requests: Sequence[Request]) -> None:
        """Hand the engine its part. Raises ApiError for what it refuses."""
        self._streamed = requests[0].stream
        self.tally.prompt = sum(len(request.prompt) for request in requests)
        try:
            self._ticket = await self.service.runner.submit(requests)
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_request") from None
        except RuntimeError as error:
            raise ApiError(503, str(error), code="engine_failed", wait=30) from None

    async def news(self) -> AsyncIterator[list[News]]:
        """What the choices say as it comes; an empty list where nothing came for as long as a stream may be silent.

        Raises ApiError where the engine failed or the time is over.
        """
        deadline = self._began + self.service.settings.request_seconds
        ticket = self._ticket
        assert ticket is not None
        per_prompt = len(self.choices) // len(ticket.requests)
        while any(choice.finish_reason is None for choice in self.choices):
            left = deadline - time.monotonic()
            if left <= 0:
                self.status = 503
                raise ApiError(503, "the answer took too long and was stopped; ask for fewer tokens, or later",
                               code="timeout", wait=self.service.wait())  # fmt: skip
            try:
                async with asyncio.timeout(min(left, self.service.settings.keep_alive_seconds)):
                    updates = await ticket.take()
            except TimeoutError:
                yield []
                continue
            merged: dict[int, News] = {}
            for place, update in updates:
                news = self._read(place * per_prompt, update)
                before = merged.get(news.choice.index)
                merged[news.choice.index] = before.followed_by(news) if before is not None else news
            yield list(merged.values())
            await asyncio.sleep(0)  # whoever has much to say lets others speak

    def _read(self, first: int, update: Update) -> News:
        if update.finish_reason in ("error", "cancelled"):
            self.status = 500
            raise ApiError(500, update.error or "the answer was stopped by the server", code="engine_failed")
        if update.token_ids and self._first is None and self._streamed:
            self._first = time.monotonic() - self._began
        choice = self.choices[first + update.sample]
        before = choice.parser.reasoning_tokens
        news = choice.read(update)
        self.tally.completion += len(update.token_ids)
        self.tally.reasoning += choice.parser.reasoning_tokens - before
        if update.finish_reason is not None:
            self.tally.drafted += update.drafted
            self.tally.accepted += update.accepted_drafts
            if update.sample == 0:
                self.tally.cached += update.cached_tokens
        return news

    @property
    def usage(self) -> Usage:
        assert self._ticket is not None
        return self.tally.usage(self.service.rate, self._ticket.seconds)

    def close(self, refused: bool = False) -> None:
        """Free what the request holds and write it down. An answer that has not ended is cancelled.

        `refused`: the request ends with an error as its response, which is counted where that is made.
        """
        if self._closed:
            return
        self._closed = True
        finished = all(choice.finish_reason is not None for choice in self.choices)
        if self._ticket is not None:
            self.service.runner.cancel(self._ticket)
        if not finished and self.status == 200:
            self.status = 499  # nginx's number for a client that went away
        seconds = time.monotonic() - self._began
        self.service.leave(seconds, finished)
        used = self.usage if self._ticket is not None else None
        self.service.metrics.count(seconds, self._first, self.tally, used)
        if not refused:
            self.service.metrics.count_request(self.about["path"], self.status)
        self.service.log(
            self.about
            | {
                "status": self.status,
                "seconds": round(seconds, 4),
                "first_token_seconds": self._first and round(self._first, 4),
                "prompt_tokens": self.tally.prompt,
                "cached_tokens": self.tally.cached,
                "completion_tokens": self.tally.completion,
                "reasoning_tokens": self.tally.reasoning,
                "finish": [choice.finish_reason for choice in self.choices],
                "dollars": used and used.ziphius.dollars,
            }
        )


async def respond(
    answer: Answer,
    requests: Sequence[Request],
    receive: Receive,
    events: AsyncGenerator[str, None] | None,
    whole: Callable[[], BaseModel],
) -> Response:
    """Have the requests answered: as a stream of `events`, or, without them, as the object that `whole` makes."""
    try:
        await answer.begin(requests)
        if events is not None:
            return EventStream(with_errors(events), answer.close, answer.service.settings.write_seconds)
        await unless_client_leaves(_collect(answer), receive)
        made = whole()
    except BaseException as error:
        if isinstance(error, ApiError):
            answer.status = error.status
        answer.close(refused=isinstance(error, ApiError))
        raise
    answer.close()
    return JSONResponse(made.model_dump())


async def _collect(answer: Answer) -> None:
    async for _ in answer.news():
        pass
