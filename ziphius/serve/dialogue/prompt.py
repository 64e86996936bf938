"""Messages to token ids: nothing a person writes can forge a turn, and what the model wrote is read as it wrote it."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ziphius.serve.contracts.messages import AssistantMessage, Message, plain_message
from ziphius.serve.dialogue.remembered import Remembered
from ziphius.text import tokens
from ziphius.text.tokenizer import Tokenizer

_OVERHEAD = 48  # what an entry of the memory takes beside its tokens, in tokens
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # Unicode's noncharacters, which no text is meant to hold


@dataclass(frozen=True)
class Prompt:
    """What the engine reads. `turn`: where the reply will stand.

    `thinking`: whether it ends inside an open thinking block; None where the model is free to open one itself.
    `begun` is the part of the reply that the caller gave.
    """

    ids: list[int]
    thinking: bool | None
    turn: bytes
    begun: str = ""


class ReplyMemory:
    """The token ids of replies, found again by the turn they were given in and their text; those unused for longest
    are dropped.

    A text has more than one tokenisation, and the model need not write the shortest. Read back as written, the next
    turn finds its prefix in the cache. A reply with one of the tokens in `control` is not kept: what it says comes back
    as text, whoever made the model say it.
    """

    def __init__(self, max_tokens: int = 1_000_000, control: Iterable[int] = ()) -> None:
        self._control = frozenset(control)
        self._replies: Remembered[tuple[bytes, bytes], array[int]] = Remembered(max_tokens)

    def keep(self, turn: bytes, text: str, ids: Sequence[int]) -> None:
        if self._control.isdisjoint(ids):
            self._replies.keep((turn, _digest(text)), array("l", ids), _OVERHEAD + len(ids))

    def find(self, turn: bytes, text: str) -> list[int] | None:
        ids = self._replies.find((turn, _digest(text)))
        return None if ids is None else list(ids)


class Prompts:
    """Builds prompts with a folder's tokenizer and chat template."""

    def __init__(self, tokenizer: Tokenizer, memory: ReplyMemory | None = None) -> None:
        self.tokenizer = tokenizer
        self.memory = memory or ReplyMemory(control=tokenizer.added_ids)
        added = sorted((token.content for token in tokenizer.inner.get_added_tokens_decoder().values()), key=len)
        self._special = re.compile("|".join(map(re.escape, reversed(added))))
        ids = {name: tokenizer.inner.token_to_id(name) for name in (*tokens.MARKUP, tokens.EOS)}
        self.think_id, self.end_think_id = ids[tokens.THINK], ids[tokens.END_THINK]
        self._turns = {ids[name] for name in (tokens.USER, tokens.ASSISTANT, tokens.EOS, tokens.OUTPUTS_END)} - {None}
        self._fim = [ids[name] for name in (tokens.FIM_BEGIN, tokens.FIM_HOLE, tokens.FIM_END)]

    def chat(
        self,
        messages: Sequence[Message],
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """The prompt of a conversation. `thinking` None leaves it to the template.

        Raises ValueError where the template refuses, or the model cannot think and is asked to.
        """
        last = messages[-1]
        prefix = last if isinstance(last, AssistantMessage) and last.prefix else None
        plain = [plain_message(message) for message in (messages[:-1] if prefix else messages)]
        text = json.dumps((plain, tools), ensure_ascii=False)
        marks = [mark for mark in _MARKS if mark not in text]
        if len(marks) < 2:
            raise ValueError("the messages hold all of Unicode's noncharacters U+FDD0 to U+FDEF; leave some out")
        cut, splice = marks[:2]
        turns = _turns(plain, tools)
        replies: list[list[int]] = []
        shown = [self._break(message, cut) for message in plain]
        for turn, message, safe in zip(turns, plain, shown, strict=False):
            if message["role"] == "assistant":
                self._splice(turn, message, safe, "content", splice, replies)
                for call, safe_call in zip(message.get("tool_calls", ()), safe.get("tool_calls", ()), strict=True):
                    self._splice(turn, call["function"], safe_call["function"], "arguments", splice, replies)
        rendered = self.tokenizer.render(shown, thinking, tools=self._break(list(tools), cut) if tools else None)
        prompt: list[int] = []
        for place, piece in enumerate(rendered.split(splice)):
            if place % 2:
                prompt += replies[int(piece)]
            else:
                for part in piece.split(cut):
                    prompt += self.tokenizer.encode(part)
        prompt = self._set_thinking(prompt, thinking)
        begun = ""
        if prefix is not None:
            prompt, begun = self._begin(prompt, prefix), prefix.content or ""
        free = thinking is None and not begun and self._is_open(prompt) is None
        return Prompt(prompt, None if free else bool(self._is_open(prompt)), turns[-1], begun)

    def _splice(
        self, turn: bytes, said: dict[str, Any], shown: dict[str, Any], key: str, mark: str, replies: list[list[int]]
    ) -> None:
        """Put a place-holder where the tokens of what was said are known, and add them to `replies`."""
        ids = self.memory.find(turn, said[key]) if said[key] else None
        if ids is not None:
            shown[key] = f"{mark}{len(replies)}{mark}"
            replies.append(ids)

    def text(self, prompt: str | list[int], suffix: str | None = None) -> list[int]:
        """The ids of a text to be continued, begun by bos; with `suffix`, of the hole before it (V3 §4.1, PSM).

        Raises ValueError for ids that the vocabulary lacks, or a tokenizer without the tokens of the middle.
        """
        bos = self.tokenizer.bos_id
        if isinstance(prompt, str):
            if suffix is not None:
                begin, hole, end = self._fim
                if begin is None or hole is None or end is None:
                    raise ValueError("suffix is not offered: the tokenizer has no fill-in-the-middle tokens")
                return [bos, begin, *self.plain_ids(prompt), hole, *self.plain_ids(suffix), end]
            ids = self.tokenizer.encode(prompt)
            return ids if ids[:1] == [bos] else [bos, *ids]
        wrong = [token for token in prompt if not 0 <= token < self.tokenizer.vocab_size]
        if wrong:
            raise ValueError(f"prompt holds the token id {wrong[0]}; ids run from 0 to {self.tokenizer.vocab_size - 1}")
        return prompt or [bos]

    def plain_ids(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are text like any other."""
        mark = next((mark for mark in _MARKS if mark not in text), None)
        if mark is None:
            raise ValueError("the text holds all of Unicode's noncharacters U+FDD0 to U+FDEF; leave some out")
        return [token for part in self._break(text, mark).split(mark) for token in self.tokenizer.encode(part)]

    def _break(self, value: Any, mark: str) -> Any:
        """`value` with `mark` inside every special token that its strings spell."""
        if isinstance(value, str):
            return self._special.sub(lambda found: found[0][0] + mark + found[0][1:], value)
        if isinstance(value, dict):
            return {self._break(key, mark): self._break(part, mark) for key, part in value.items()}
        return [self._break(part, mark) for part in value] if isinstance(value, list) else value

    def _is_open(self, prompt: Sequence[int]) -> bool | None:
        """Whether the last turn has an open thinking block; None where it has none, and could."""
        for token in reversed(prompt):
            if token == self.think_id:
                return True
            if token == self.end_think_id:
                return False
            if token in self._turns:
                break
        return False if None in (self.think_id, self.end_think_id) else None

    def _set_thinking(self, prompt: list[int], thinking: bool | None) -> list[int]:
        """The prompt as the caller wants it, where the template has no say in thinking."""
        if thinking is None or thinking == bool(self._is_open(prompt)):
            return prompt
        if self.think_id is None or self.end_think_id is None:
            raise ValueError("this model has no thinking tokens; leave thinking out")
        if thinking:
            closed = prompt[-1] == self.end_think_id
            return [*(prompt[:-1] if closed else prompt), self.think_id, *self.tokenizer.encode("\n")]
        return [*prompt, *self.tokenizer.encode("\n"), self.end_think_id]

    def _begin(self, prompt: list[int], prefix: AssistantMessage) -> list[int]:
        """The prompt with the beginning of the reply that the caller gives: of its thinking, of its answer, or both."""
        if prefix.reasoning_content is not None:
            if not self._is_open(prompt):
                raise ValueError("the last message's reasoning_content needs thinking, which is off")
            prompt = [*prompt, *self.plain_ids(prefix.reasoning_content)]
        if prefix.content is None:
            return prompt
        if self._is_open(prompt) and self.think_id is not None and self.end_think_id is not None:
            if prefix.reasoning_content is not None:
                prompt = [*prompt, *self.tokenizer.encode("\n"), self.end_think_id, *self.tokenizer.encode("\n\n")]
            else:  # a block with nothing in it is written as a closed one
                start = len(prompt) - 1 - prompt[::-1].index(self.think_id)
                prompt = [*prompt[:start], self.end_think_id]
        return [*prompt, *self.plain_ids(prefix.content)]


def _turns(messages: Sequence[Mapping[str, Any]], tools: Any) -> list[bytes]:
    """What tells each place of a conversation from all others, the place behind the last message included."""
    so_far = hashlib.blake2b(repr(tools).encode("utf-8", "surrogatepass"), digest_size=16)
    turns = [so_far.digest()]
    for message in messages:
        so_far.update(repr(message).encode("utf-8", "surrogatepass"))
        turns.append(so_far.digest())
    return turns


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
