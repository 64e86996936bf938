"""The events of a response that is streamed. Source: `openai.types.responses.ResponseStreamEvent`.

An item is announced, says its parts as they come, and is done when the next one begins; the last event holds the
response as it would have been given whole.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.responses.reply import OutputText, ReasoningText, ResponseObject, SummaryText
from ziphius.serve.dialogue.deltas import Piece
from ziphius.serve.endpoints.responses.reply import Reply
from ziphius.serve.wire.stream import KEEP_ALIVE, event


async def stream(reply: Reply) -> AsyncGenerator[str, None]:
    """The events, as they are sent. A failure under way is an `error` and a response that says `failed`.

    The last ones hold all that was said, so that they are written where others do not wait for it.
    """
    script, answer = _Script(reply), reply.turn.answer
    lanes = answer.service.lanes
    try:
        yield script.begin()
        async for news in answer.news():
            if not news:
                yield KEEP_ALIVE
            elif told := script.tell():
                yield told
        yield await lanes.run(script.end, size=answer.weight)
    except ApiError as error:
        yield await lanes.run(script.fail, error, size=answer.weight)


class _Script:
    """What has been told so far: the place of the open item, how many of its texts, and of the turn's logs."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._number = 0
        self._place = -1
        self._texts = self._logs = 0
        self._written: list[str] = []

    def begin(self) -> str:
        begun = self._reply.begun()
        self._say_response("created", begun)
        self._say_response("in_progress", begun)
        return self._take()

    def tell(self) -> str:
        """Events for what is new."""
        pieces = self._reply.pieces
        for place in range(max(self._place, 0), len(pieces)):
            if place > self._place:
                self._close()
                self._open(place)
            self._add(pieces[place])
        return self._take()

    def end(self) -> str:
        rest = self.tell()
        self._close()
        whole = self._reply.ended()
        self._say_response(whole.status, whole)
        return rest + self._take()

    def fail(self, error: ApiError) -> str:
        self._say("error", code=error.code, message=error.message, param=error.param)
        self._say_response("failed", self._reply.failed(error))
        return self._take()

    def _open(self, place: int) -> None:
        self._place, self._texts, self._logs = place, 0, 0
        self._say("response.output_item.added", output_index=place, item=self._reply.item(place, "in_progress"))
        part = self._reply.pieces[place].part
        if part == "reasoning":
            if self._reply.asked.with_summary:
                self._say_in("reasoning_summary_part.added", summary_index=0, part=SummaryText(text=""))
            self._say_in("content_part.added", content_index=0, part=ReasoningText(text=""))
        elif part == "content":
            self._say_in("content_part.added", content_index=0, part=OutputText(text=""))

    def _add(self, piece: Piece) -> None:
        text = "".join(piece.texts[self._texts :])
        self._texts = len(piece.texts)
        if not text:
            return
        if piece.part == "reasoning":
            if self._reply.asked.with_summary:
                self._say_in("reasoning_summary_text.delta", summary_index=0, delta=text)
            self._say_in("reasoning_text.delta", content_index=0, delta=text)
        elif piece.part == "call":
            self._say_in("function_call_arguments.delta", delta=text)
        else:
            logs = self._reply.logprobs(self._reply.logs(self._place, self._logs))
            self._logs = self._reply.logged
            self._say_in("output_text.delta", content_index=0, delta=text, logprobs=logs)

    def _close(self) -> None:
        """The open item, if there is one, is done."""
        if self._place < 0:
            return
        item = self._reply.item(self._place, self._reply.status(self._place))
        if item.type == "reasoning":
            for summary in item.summary:
                self._say_in("reasoning_summary_text.done", summary_index=0, text=summary.text)
                self._say_in("reasoning_summary_part.done", summary_index=0, part=summary)
            for thought in item.content:
                self._say_in("reasoning_text.done", content_index=0, text=thought.text)
                self._say_in("content_part.done", content_index=0, part=thought)
        elif item.type == "function_call":
            self._say_in("function_call_arguments.done", name=item.name, arguments=item.arguments)
        else:
            for part in item.content:
                self._say_in("output_text.done", content_index=0, text=part.text, logprobs=part.logprobs)
                self._say_in("content_part.done", content_index=0, part=part)
        self._say("response.output_item.done", output_index=self._place, item=item)

    def _say_response(self, kind: str, response: ResponseObject) -> None:
        self._say(f"response.{kind}", response=response)

    def _say_in(self, kind: str, **body: Any) -> None:
        """An event of the open item."""
        place = self._place
        self._say(f"response.{kind}", item_id=self._reply.item_id(place), output_index=place, **body)

    def _say(self, kind: str, **body: Any) -> None:
        plain = {key: _plain(value) for key, value in body.items()}
        self._written.append(event({"type": kind, "sequence_number": self._number} | plain, kind))
        self._number += 1

    def _take(self) -> str:
        written, self._written = "".join(self._written), []
        return written


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value.model_dump() if hasattr(value, "model_dump") else value
