"""A message of Anthropic's form, as it stands in a turn that has been answered, or is being."""

from __future__ import annotations

from dataclasses import dataclass

from ziphius.serve.contracts.anthropic.reply import (
    MadeText,
    MadeThinking,
    MadeToolUse,
    MessageReply,
    MessageUsage,
    StopReason,
)
from ziphius.serve.contracts.anthropic.request import MessagesRequest
from ziphius.serve.dialogue.calls import as_object
from ziphius.serve.dialogue.deltas import CallDelta
from ziphius.serve.dialogue.parse import ReplyParser
from ziphius.serve.endpoints.turn import Turn


@dataclass(frozen=True)
class MadeMessage:
    """Thinking, text, calls, and the text that a model may write behind its calls. Thinking is sent to whom asked for
    it: others get text and calls alone, as this API has it."""

    turn: Turn
    asked: MessagesRequest

    @property
    def parser(self) -> ReplyParser:
        return self.turn.parsers[0]

    @property
    def shows_thinking(self) -> bool:
        return self.asked.thinking is not None and self.asked.thinking.type != "disabled"

    @property
    def omits_its_text(self) -> bool:
        return self.asked.thinking is not None and self.asked.thinking.display == "omitted"

    def signature(self) -> str:
        return self.turn.service.seal.sign(self.parser.reasoning)

    def reply(self) -> MessageReply:
        """All of it, ended."""
        blocks: list[MadeThinking | MadeText | MadeToolUse] = []
        if self.parser.reasoning and self.shows_thinking:
            text = "" if self.omits_its_text else self.parser.reasoning
            blocks.append(MadeThinking(thinking=text, signature=self.signature()))
        before, behind = self.texts()
        blocks += [MadeText(text=before)] if before else []
        blocks += [self.tool_use(index) for index in range(len(self.parser.calls))]
        blocks += [MadeText(text=behind)] if behind else []
        reason, stop = self.end()
        return self.beginning().model_copy(
            update={"content": blocks, "stop_reason": reason, "stop_sequence": stop, "usage": self.usage()}
        )

    def beginning(self) -> MessageReply:
        """Nothing of it yet."""
        usage = MessageUsage.at_the_start(self.turn.answer.tally)
        name, model = self.turn.name, self.turn.asked.model
        return MessageReply(id=name, model=model, content=[], stop_reason=None, stop_sequence=None, usage=usage)

    def usage(self) -> MessageUsage:
        """The bill of a message that has ended."""
        return MessageUsage.of(self.turn.answer.usage)

    def texts(self) -> tuple[str, str]:
        """What was said before the first call, and behind it."""
        texts = ["", ""]
        called = False
        for piece in self.parser.pieces:
            called = called or piece.call is not None
            if piece.part == "content":
                texts[called] += piece.text
        return texts[0], texts[1]

    def tool_use(self, index: int) -> MadeToolUse:
        """A call that has ended."""
        call = self.parser.calls[index]
        cut = self.turn.answer.choices[0].finish_reason == "length" and call is self.parser.calls[-1]
        return MadeToolUse(id=tool_use_id(call), name=call.name or "", input=as_object(call.arguments, cut))

    def end(self) -> tuple[StopReason, str | None]:
        """Why it ended, and the stop sequence that ended it."""
        choice = self.turn.answer.choices[0]
        if choice.finish_reason == "tool_calls":
            return "tool_use", None
        if choice.finish_reason == "length":
            had_its_tokens = self.turn.request.settings.max_new_tokens == self.asked.max_tokens
            return "max_tokens" if had_its_tokens else "model_context_window_exceeded", None
        return ("end_turn", None) if choice.stop_string is None else ("stop_sequence", choice.stop_string)

    def remember(self) -> None:
        """What the next turn will read again, in the model's own spelling."""
        self.turn.remember()
        for call in self.parser.calls:
            self.turn.service.calls.keep(tool_use_id(call), call.arguments)


def tool_use_id(call: CallDelta) -> str:
    """The call's id, as this API has it."""
    return f"toolu_{(call.id or '').removeprefix('call_')}"
