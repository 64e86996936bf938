"""A message of Anthropic's form as a stream of events.

A stream says what the whole message would. So the arguments of a call come when it has ended: whether they are the
object that a client takes them for is known only then.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from ziphius.serve.contracts.anthropic.reply import as_message_error
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.dialogue.deltas import CallDelta
from ziphius.serve.endpoints.messages.reply import MadeMessage, tool_use_id
from ziphius.serve.wire.lanes import asking
from ziphius.serve.wire.stream import event


async def message_events(made: MadeMessage) -> AsyncGenerator[str, None]:
    """`message_start`, the blocks one after the other, `message_delta` with the end and the usage, `message_stop`.

    A `ping` comes where nothing else would for as long as a stream may be silent; a failure is an `error`.
    """
    writer, answer = _Writer(made), made.turn.answer
    yield writer.start()
    spoke, silence = time.monotonic(), answer.service.settings.keep_alive_seconds
    try:
        async for news in answer.news():
            text = writer.say() if news else ""
            if not text and time.monotonic() - spoke >= silence:
                text = _named("ping")
            if text:
                yield text
                spoke = time.monotonic()
    except ApiError as error:
        yield event(as_message_error(error, asking.get().id)[1], "error")
        return
    made.remember()
    yield writer.end()


class _Writer:
    """Writes the blocks; one is open at a time."""

    def __init__(self, made: MadeMessage) -> None:
        self._made = made
        self._index = -1
        self._open: str | None = None  # the kind of block that is
        self._place = self._texts = 0  # of the piece that was told last, and how many texts of it
        self._calls = 0

    def start(self) -> str:
        return _named("message_start", message=self._made.beginning().model_dump()) + _named("ping")

    def say(self) -> str:
        """More thinking, more text, more calls: what is new. Text behind a call waits for the end."""
        told = ""
        pieces = self._made.parser.pieces
        for place in range(self._place, len(pieces)):
            piece = pieces[place]
            begun = self._texts if place == self._place else 0
            text = "".join(piece.texts[begun:])
            self._place, self._texts = place, len(piece.texts)
            if piece.call is not None:
                told += self._call(piece.call)
            elif text and piece.part == "reasoning":
                told += self._think(text)
            elif text and not self._calls:
                told += self._text(text)
        return told

    def end(self) -> str:
        behind = self._made.texts()[1]
        late = self._text(behind) if behind else ""
        reason, stop = self._made.end()
        usage = self._made.usage().model_dump()
        end = _named("message_delta", delta={"stop_reason": reason, "stop_sequence": stop}, usage=usage)
        return late + self._stop() + end + _named("message_stop")

    def _think(self, text: str) -> str:
        if not self._made.shows_thinking:
            return ""
        begun = self._begin("thinking", thinking="", signature="")
        return begun if self._made.omits_its_text else begun + self._delta("thinking_delta", thinking=text)

    def _call(self, call: CallDelta) -> str:
        """The beginning of a call, once."""
        if call.index < self._calls:
            return ""
        before = self._stop()
        self._calls += 1
        return before + self._begin("tool_use", id=tool_use_id(call), name=call.name, input={})

    def _text(self, text: str) -> str:
        return self._begin("text", text="") + self._delta("text_delta", text=text)

    def _begin(self, kind: str, **fields: Any) -> str:
        """Open a block of that kind, unless it is the one that is open."""
        if self._open == kind:
            return ""
        before = self._stop()
        self._index, self._open = self._index + 1, kind
        return before + _named("content_block_start", index=self._index, content_block={"type": kind} | fields)

    def _delta(self, kind: str, **fields: Any) -> str:
        return _named("content_block_delta", index=self._index, delta={"type": kind} | fields)

    def _stop(self) -> str:
        """Close the block that is open: one of thinking with its signature, a call with its arguments."""
        last = ""
        if self._open == "thinking":
            last = self._delta("signature_delta", signature=self._made.signature())
        elif self._open == "tool_use":
            arguments = json.dumps(self._made.tool_use(self._calls - 1).input, ensure_ascii=False)
            last = self._delta("input_json_delta", partial_json=arguments)
        elif self._open is None:
            return ""
        self._open = None
        return last + _named("content_block_stop", index=self._index)


def _named(kind: str, **fields: Any) -> str:
    return event({"type": kind} | fields, kind)
