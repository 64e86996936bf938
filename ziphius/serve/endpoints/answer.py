"""A request being answered: the engine's updates turned into choices, with its bill and its end."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pydantic import BaseModel
from starlette.responses import Response
from starlette.types import Receive

from ziphius.engine.request import Request, Update
from ziphius.engine.tops import Tops
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.usage import Tally, Usage
from ziphius.serve.dialogue.deltas import Delta, Part
from ziphius.serve.wire.lanes import asking
from ziphius.serve.wire.runner import Ticket
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.stream import EventStream, unless_client_leaves, with_errors

_NAMED = 16  # fields in the header that names the ignored ones


class Parser(Protocol):
    """Tokens in, deltas out; `ziphius.serve.dialogue.parse.ReplyParser` is one."""

    reasoning_tokens: int

    def push(self, token: int, stop: str | None = None) -> Part: ...
    def take(self) -> Delta: ...
    def finish(self) -> Delta: ...


@dataclass(slots=True)
class TokenLog:
    """A token with its log-probability and the likeliest tokens in its place. `calls` were begun before it."""

    part: Part
    token: int
    logprob: float
    top: Tops
    calls: int = 0


@dataclass(frozen=True, slots=True)
class PromptLogs:
    """The tokens of a prompt with their log-probabilities and the likeliest in their places; the first has neither."""

    tokens: Sequence[int]
    logprobs: Sequence[float | None]
    tops: Sequence[Tops]


@dataclass(slots=True)
class News:
    """What one choice has to say: text, the logs of its tokens where they are asked for, and perhaps its end; at first
    the logs of its prompt."""

    choice: Choice
    delta: Delta
    logs: list[TokenLog]
    finish_reason: str | None
    prompt_logs: PromptLogs | None = None

    def followed_by(self, later: News) -> News:
        """Both as one."""
        delta = self.delta.followed_by(later.delta)
        return News(self.choice, delta, self.logs + later.logs, later.finish_reason, self.prompt_logs)


@dataclass
class Choice:
    index: int
    parser: Parser
    with_logs: bool = False
    finish_reason: str | None = None
    stop_string: str | None = None  # the one that ended it
    logs: list[TokenLog] = field(default_factory=list)
    prompt: Sequence[int] = ()  # where its logs are asked for too
    prompt_logs: PromptLogs | None = None

    def read(self, update: Update) -> News:
        """Take in an update of this choice."""
        logs = []
        last = len(update.token_ids) - 1
        for place, token in enumerate(update.token_ids):
            part = self.parser.push(token, update.stop_string if place == last else None)
            if self.with_logs and part in ("reasoning", "content"):
                top = update.top_logprobs[place] if update.top_logprobs else Tops((), ())
                calls = len(getattr(self.parser, "calls", ()))
                logs.append(TokenLog(part, token, update.logprobs[place], top, calls))
        delta = self.parser.take()
        if update.finish_reason is not None:
            delta = delta.followed_by(self.parser.finish())
            self.stop_string = update.stop_string
            called = bool(getattr(self.parser, "calls", None))
            self.finish_reason = "tool_calls" if called and update.finish_reason == "stop" else update.finish_reason
        self.logs += logs
        news = News(self, delta, logs, self.finish_reason)
        if update.prompt_logprobs is not None and update.prompt_top_logprobs is not None:
            news.prompt_logs = PromptLogs(self.prompt, update.prompt_logprobs, update.prompt_top_logprobs)
            self.prompt_logs = news.prompt_logs
        return news


class Answer:
    """One request from its acceptance to its end. `close` must be called, whatever happens; it may be called twice."""

    def __init__(self, service: Service, choices: Sequence[Choice], about: dict[str, Any], model: str) -> None:
        """Raises ApiError (429, 503) where there is no room for another request. `about` goes into the log, with who
        asked."""
        asks = asking.get()
        about |= {"request": asks.id, "owner": asks.owner, "client": asks.address}
        self.service, self.choices, self.about = service, choices, about
        self._runner = service.runner_of(model)
        self.tally = Tally(0)
        self.status = 200
        self._ticket: Ticket | None = None
        self._began = time.monotonic()
        self._first: float | None = None
        self._streamed = False
        self._closed = False
        self._party = asks.party
        service.enter(self._party, len(choices))

    async def begin(self, requests: Sequence[Request]) -> None:
        """Hand the engine its part. Raises ApiError for what it refuses."""
        self._streamed = requests[0].stream
        self.tally.prompt = sum(len(request.prompt) for request in requests)
        try:
            async with asyncio.timeout(self.service.settings.request_seconds):
                self._ticket = await self._runner.submit([replace(r, owner=self._party) for r in requests])
        except TimeoutError:
            raise self._over_time() from None
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
                raise self._over_time()
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

    def _over_time(self) -> ApiError:
        return ApiError(503, "the answer took too long and was stopped; ask for fewer tokens, or later",
                        code="timeout", wait=self.service.wait())  # fmt: skip

    def _read(self, first: int, update: Update) -> News:
        if update.refused:
            self.status = 400
            raise ApiError(400, update.error or "the constraint failed", code="constraint_failed")
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
    def weight(self) -> int:
        """About how many bytes the whole answer has as JSON."""
        return 8 * self.tally.completion + sum(weight(choice.logs, choice.prompt_logs) for choice in self.choices)

    @property
    def usage(self) -> Usage:
        assert self._ticket is not None
        return self.tally.usage(self.service.rate, self._ticket.seconds)

    async def watching(self, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        """The events; a fault of this server under way is written down as one."""
        try:
            async for text in events:
                yield text
        except Exception as error:
            self.status = error.status if isinstance(error, ApiError) else 500
            raise

    def close(self, refused: bool = False) -> None:
        """Free what the request holds and write it down. An answer that has not ended is cancelled.

        `refused`: the request ends with an error as its response, which is counted where that is made.
        """
        if self._closed:
            return
        self._closed = True
        finished = all(choice.finish_reason is not None for choice in self.choices)
        if self._ticket is not None:
            self._runner.cancel(self._ticket)
        if not finished and self.status == 200:
            self.status = 499  # nginx's number for a client that went away
        seconds = time.monotonic() - self._began
        self.service.leave(self._party, len(self.choices), seconds, finished)
        used = self.usage if self._ticket is not None else None
        self.service.metrics.count(self._party, seconds, self._first, self.tally, used)
        if not refused:
            self.service.count_request(self.about["path"], self.status)
        if used is not None:
            self.service.charge(used.total_tokens, used.ziphius.dollars)
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


def weight(logs: Sequence[TokenLog], prompt_logs: PromptLogs | None) -> int:
    """About how many bytes logs have as JSON."""
    tops = [len(log.top) for log in logs]
    if prompt_logs is not None:
        tops += [len(prompt_logs.tops[-1])] * len(prompt_logs.tokens)
    return 100 * (len(tops) + sum(tops))


async def respond(
    answer: Answer,
    requests: Sequence[Request],
    receive: Receive,
    events: AsyncGenerator[str, None] | None,
    whole: Callable[[], BaseModel],
) -> Response:
    """Have the requests answered: as a stream of `events`, or, without them, as the object that `whole` makes."""
    try:
        await unless_client_leaves(answer.begin(requests), receive)
        if events is not None:
            return EventStream(
                with_errors(answer.watching(events)), answer.close, answer.service.settings.write_seconds
            )
        await unless_client_leaves(_collect(answer), receive)
        made = await answer.service.lanes.run(lambda: as_json(whole()), size=answer.weight)
    except BaseException as error:
        if isinstance(error, ApiError):
            answer.status = error.status
        answer.close(refused=isinstance(error, ApiError))
        raise
    answer.close()
    return Response(made, media_type="application/json")


def as_json(made: BaseModel) -> bytes:
    """An answer as JSON. Choices are written one by one, so that other threads run between them."""
    choices = getattr(made, "choices", None)
    if choices is None:
        return made.model_dump_json().encode()
    head = made.model_dump_json(exclude={"choices"}).removesuffix("}")
    return f'{head},"choices":[{",".join(choice.model_dump_json() for choice in choices)}]}}'.encode()


def naming_ignored(response: Response, left_out: Sequence[str]) -> Response:
    """The response with a header that names the fields of the request that had no effect."""
    if left_out:
        names = [re.sub(r"[^\w.-]", "?", name, flags=re.ASCII) for name in left_out[:_NAMED]]
        response.headers["X-Ignored-Fields"] = ", ".join(names)
    return response


async def _collect(answer: Answer) -> None:
    async for _ in answer.news():
        pass
