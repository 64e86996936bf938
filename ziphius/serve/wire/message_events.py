"""A message of Anthropic's form as a stream of events.

A stream says what the whole message would. So calls come at its end: whether what the model writes as arguments is the
object that a client takes it for is known only then.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from typing import Any

from ziphius.serve.contracts.anthropic.reply import MadeToolUse, as_message_error
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.dialogue.parse import Delta
from ziphius.serve.wire.made import MadeMessage
from ziphius.serve.wire.stream import event


async def message_events(made: MadeMessage) -> AsyncGenerator[str, None]:
    """`message_start`, the blocks one after the other, `message_delta` with the end and the usage, `message_stop`.

    A `ping` comes where nothing else would for as long as a stream may be silent; a failure is an `error`.
    """
    writer, answer = _Writer(made), made.turn.answer
    yield writer.start()
    spoke, silence = time.monotonic(), answer.service.settings.keep_alive_seconds
    try:
        async for pieces in answer.news():
            text = "".join(writer.say(news.delta) for news in pieces)
            if not text and time.monotonic() - spoke >= silence:
                text = _named("ping")
            if text:
                yield text
                spoke = time.monotonic()
    except ApiError as error:
        body = as_message_error(error)[1]
        yield event(body.model_dump(), body.type)
        return
    made.remember()
    yield writer.end()


class _Writer:
    """Writes the blocks; one is open at a time."""

    def __init__(self, made: MadeMessage) -> None:
        self._made = made
        self._index = -1
        self._open: str | None = None

    def start(self) -> str:
        return _named("message_start", message=self._made.beginning().model_dump()) + _named("ping")

    def say(self, delta: Delta) -> str:
        """More thinking, then more text. Calls wait for the end."""
        texts = ""
        if delta.reasoning and self._made.shows_thinking:
            texts += self._begin("thinking", thinking="", signature="")
            if not self._made.omits_its_text:
                texts += self._delta("thinking_delta", thinking=delta.reasoning)
        if delta.content:
            texts += self._begin("text", text="") + self._delta("text_delta", text=delta.content)
        return texts

    def end(self) -> str:
        calls = "".join(self._call(call) for call in self._made.tool_uses())
        reason, stop = self._made.end()
        usage = self._made.usage().model_dump()
        end = _named("message_delta", delta={"stop_reason": reason, "stop_sequence": stop}, usage=usage)
        return calls + self._stop() + end + _named("message_stop")

    def _call(self, call: MadeToolUse) -> str:
        begin = self._stop() + self._begin("tool_use", id=call.id, name=call.name, input={})
        return begin + self._delta("input_json_delta", partial_json=json.dumps(call.input, ensure_ascii=False))

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
        """Close the block that is open; one of thinking with its signature."""
        if self._open is None:
            return ""
        signed = self._delta("signature_delta", signature=self._made.signature()) if self._open == "thinking" else ""
        self._open = None
        return signed + _named("content_block_stop", index=self._index)


def _named(kind: str, **fields: Any) -> str:
    return event({"type": kind} | fields, kind)
