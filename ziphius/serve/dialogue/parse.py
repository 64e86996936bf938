"""A reply's tokens, as they come, into thinking, answer and tool calls.

The split follows the tokens, never the text: a person may write "<think>" and a model may spell it. Imports no torch.
Sources of the two forms of a call: the chat templates published with DeepSeek-V3/R1 (`function`, the name, fenced JSON)
and with V3.1 (the name, JSON).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from ziphius.serve.dialogue.deltas import CallDelta, Delta, Part, Piece
from ziphius.serve.dialogue.forms import form_of
from ziphius.serve.dialogue.forms.form import CallForm
from ziphius.serve.dialogue.forms.json_call import JsonCall
from ziphius.serve.dialogue.stops import StopTail
from ziphius.text import tokens
from ziphius.text.detokenise import Detokeniser, held_back
from ziphius.text.thinking import Thinking
from ziphius.text.tokenizer import Tokenizer

_FENCE = re.compile(r"\s*`{0,3}\s*\Z")


@dataclass(slots=True)
class _Call:
    """A call being written: `header` up to the separator, then arguments, plain (V3.1) or behind a name and a fence;
    or one object of `json`."""

    header: str = ""
    began: bool = False
    named: bool = False
    fenced: bool = False
    held: str = ""
    arguments: str = ""
    ids: list[int] = field(default_factory=list)
    json: JsonCall | None = None


class ReplyParser:
    """Takes tokens one by one and gives deltas; what comes out in pieces is what would come out at once.

    Thinking is open from the start where the prompt leaves it open, or once `<think>` is the first thing said. The
    first `</think>` ends it; opened once more before the answer begins, it goes on. Once the answer has begun both tags
    are text like any other. Whitespace around the thinking, and before an answer that follows it, is dropped.
    `pieces` holds the same in the order in which it was said, which the pace of the tokens does not change.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        thinking: bool,
        *,
        tools: bool = False,
        stops: Sequence[str] = (),
        ends: Sequence[int] = (),
    ) -> None:
        self._tokenizer, self._detokeniser = tokenizer, Detokeniser(tokenizer)
        self._marks = tokenizer.thinking
        self._form = (form_of(tokenizer) if tools else None) or CallForm()
        self._ends, self._tail = frozenset(ends), StopTail(stops)
        self._stop: str | None = None
        self._part: Part = "reasoning" if thinking else "content"
        self._thought = thinking
        self._held = ""  # the end of a part that may have to be dropped
        self._delta = Delta()
        self._call: _Call | None = None
        self._written: list[tuple[str, list[int]]] = []
        self._content_ids: list[int] = []
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self.calls: list[CallDelta] = []
        self.pieces: list[Piece] = []
        self.reasoning_tokens = 0

    def push(self, token: int, stop: str | None = None) -> Part:
        """Read a token; the part of the reply that it belongs to. `stop`: the stop string that this token completes."""
        self._stop = stop
        if token in self._ends:
            if token == self._form.call_end and self._call is not None:
                self._end_call()
            return "mark"
        if self._part == "reasoning":
            self.reasoning_tokens += 1
        if self._mark(token):
            return "mark"
        text = self._detokeniser.push([token])
        if self._part == "call" and self._call is not None:
            self._call.ids.append(token)
            self._write_call(text)
        elif self._part == "reasoning":
            self._write_reasoning(text, token, stop)
        elif self._part == "call" and self._form.bare:
            rest = text.lstrip("; \n")  # what parts two calls
            if rest:
                self._begin_bare(rest)
        elif self._part == "content" or text.strip():  # between two calls stands nothing but whitespace
            self._write_content(text, token, stop)
        return self._part

    def take(self) -> Delta:
        """What has become certain since the last call."""
        delta, self._delta = self._delta, Delta()
        return delta

    def finish(self) -> Delta:
        """What is left when the reply has ended."""
        self._leave()
        return self.take()

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def thinking(self) -> bool:
        return self._part == "reasoning"

    @property
    def _answered(self) -> bool:
        return bool(self._content or self.calls)

    def written(self) -> list[tuple[str, list[int]]]:
        """Texts of the finished reply with the tokens that spell them: its answer, the arguments of its calls."""
        texts = [(self.content, self._content_ids), *self._written]
        return [(text, ids) for text, ids in texts if text and self._tokenizer.decode(ids) == text]

    def _mark(self, token: int) -> bool:
        """Whether the token changes the part instead of adding to it."""
        thinks = self._part == "reasoning"
        if self._marks.are_tokens:
            thinks = self._marks.after(Thinking(thinks), token, not self._answered).on
        if self._part == "call" and self._call is not None:
            if token == self._form.sep and not self._call.began:
                self._begin_arguments()
            elif token == self._form.call_end:
                self._end_call()
            else:
                return False
        elif token in (self._form.calls_begin, self._form.call_begin):
            self._leave()
            self._part = "call"
            self._call = _Call(json=self._form.reader()) if token == self._form.call_begin else None
        elif token in self._form.silent:
            return True
        elif self._part == "call" and token == self._form.calls_end:
            self._part = "content"
        elif self._part == "reasoning" and not thinks:
            self._leave()
            self._part, self._thought = "content", True
        elif thinks and token == self._marks.open_id:
            if self._part != "reasoning":
                self._begin_thinking()
        else:
            return token == self._marks.close_id and not self._content
        return True

    def _begin_thinking(self) -> None:
        self.reasoning_tokens += 1
        self._held, self._content_ids = "", []
        self._part, self._thought = "reasoning", True

    def _write_reasoning(self, text: str, token: int, stop: str | None = None) -> None:
        text = self._held + text
        end = "" if self._marks.are_tokens else tokens.END_THINK
        if end and end in text:  # the mark is spelt in ordinary tokens, the last of which may hold more
            text, _, rest = text.partition(end)
            self._held = ""
            self._say_reasoning(text.strip() if not self._reasoning else text.rstrip())
            self._part, self._thought = "content", True
            self._write_content(rest, token, stop)
            return
        kept = text[: len(text) - held_back(text, [end])].rstrip() if end else text.rstrip()
        held = text[len(kept) :]
        self._held = held if self._reasoning or kept else held.lstrip()
        self._say_reasoning(kept if self._reasoning else kept.lstrip())

    def _write_content(self, text: str, token: int, stop: str | None) -> None:
        spelled, text = text, self._held + text
        if not (self._marks.are_tokens or self._answered or stop is not None):
            begun = text.lstrip()
            if begun.startswith(tokens.THINK):
                self._begin_thinking()
                self._write_reasoning(begun[len(tokens.THINK) :], token)
                return
            if begun and tokens.THINK.startswith(begun):  # perhaps a mark
                self._content_ids.append(token)
                self._held = text
                return
        if self._thought and not self._content:
            text = text.lstrip()
        if text or self._content or not spelled:  # not the whitespace that is dropped
            self._content_ids.append(token)
        if not self._content and not text.strip() and stop is None:  # thinking may follow: then this is dropped
            self._held = text
            return
        self._held = ""
        if self._form.bare and not self._content and text.lstrip().startswith("{"):
            self._begin_bare(text.lstrip())
            return
        self._say_content(self._tail.push(text, stop))

    def _begin_arguments(self) -> None:
        call = self._call
        assert call is not None
        call.header += self._detokeniser.finish()
        call.began, call.ids = True, []
        call.fenced = call.header.strip() == "function"
        if not call.fenced and call.header.strip():
            self._name(call.header.strip())

    def _write_call(self, text: str) -> None:
        call = self._call
        assert call is not None
        if call.json is not None:
            self._write_json(call, call.json, text)
            return
        if not (call.named or call.fenced):
            call.header += text
            return
        call.held += text
        if call.fenced and not call.named:
            name, line, rest = call.held.partition("\n")
            if not line or (len(rest.lstrip()) < len("```json\n") and "{" not in rest):
                return
            self._name(name.strip())
            call.held = rest.lstrip().removeprefix("```json").removeprefix("```").lstrip()
        tail = _FENCE.search(call.held) if call.fenced else re.search(r"\s*\Z", call.held)
        certain = call.held[: tail.start()] if tail is not None else call.held
        call.held = call.held[len(certain) :]
        self._say_arguments(certain if call.arguments else certain.lstrip())

    def _write_json(self, call: _Call, object: JsonCall, text: str) -> None:
        call.held += object.push(text)
        if object.state == "no call" and self._form.bare:
            self._part, self._call = "content", None
            self._say_content(self._tail.push(object.raw + call.held, self._stop))
            return
        if object.known and not call.named and object.name:
            self._name(object.name)
        if call.named:
            self._say_arguments(object.take())
        if object.state == "closed" and self._form.bare:
            rest = call.held.lstrip("; \n")
            self._end_json(call, object)
            if rest:
                self._begin_bare(rest)

    def _begin_bare(self, text: str) -> None:
        """An answer in a form without marks, or more of it behind a call."""
        if text.startswith("{"):
            self._part, self._call = "call", _Call(json=self._form.reader())
            self._write_call(text)
        else:
            self._part = "content"
            self._say_content(self._tail.push(text, self._stop))

    def _end_json(self, call: _Call, object: JsonCall) -> None:
        if not call.named:
            text = self._tail.push((object.raw + call.held).strip(), self._stop)
            self._say_content(self._tail.finish(text) if self._stop is None else text)
        self._call = None

    def _end_call(self) -> None:
        """The end of a call. One without a name is no call: what was written becomes part of the answer."""
        call = self._call
        assert call is not None
        self._write_call(self._detokeniser.finish())
        if call.json is not None:
            if self._call is call:
                self._end_json(call, call.json)
            return
        if call.began and call.fenced and not call.named and "\n" in call.held:
            name, _, rest = call.held.partition("\n")
            self._name(name.strip())
            self._say_arguments(rest.strip().removeprefix("```json").removesuffix("```").strip())
        if call.named:
            self._written.append((call.arguments, call.ids))
        else:
            self._say_content((call.header + call.held).strip())
        self._call = None

    def _leave(self) -> None:
        """The end of a part: what was held back is said, but for the whitespace after thinking."""
        text, self._held = self._held + self._detokeniser.finish(), ""
        if self._part == "content":
            self._say_content(self._tail.finish(text))
        elif self._part == "reasoning":
            self._say_reasoning(text.rstrip())
        elif self._call is not None:
            self._end_call()

    def _name(self, name: str) -> None:
        assert self._call is not None
        self._call.named = True
        call = CallDelta(len(self.calls), f"call_{secrets.token_hex(12)}", name)
        self.calls.append(call)
        self.pieces.append(Piece("call", call=call))
        self._delta.calls.append(CallDelta(call.index, call.id, call.name))

    def _say_arguments(self, text: str) -> None:
        if text and self._call is not None:
            self._call.arguments += text
            self.calls[-1].arguments += text
            self._add("call", text)
            self._delta.calls.append(CallDelta(self.calls[-1].index, arguments=text))

    def _say_reasoning(self, text: str) -> None:
        if text:
            self._reasoning.append(text)
            self._add("reasoning", text)
            self._delta.reasoning += text

    def _say_content(self, text: str) -> None:
        if text:
            self._content.append(text)
            self._add("content", text)
            self._delta.content += text

    def _add(self, part: Part, text: str) -> None:
        if not self.pieces or self.pieces[-1].part != part:
            self.pieces.append(Piece(part))
        self.pieces[-1].texts.append(text)
