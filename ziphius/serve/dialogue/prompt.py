"""Messages to token ids: nothing a person writes can forge a turn, and what the model wrote is read as it wrote it."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ziphius.serve.contracts.messages import AssistantMessage, Message, plain_message
from ziphius.serve.dialogue.remembered import Remembered
from ziphius.text import tokens
from ziphius.text.chat import calls_as_read, reads_objects
from ziphius.text.plain import free_marks
from ziphius.text.tokenizer import Tokenizer
from ziphius.text.turns import Opened

_OVERHEAD = 48  # what an entry of the memory takes beside its tokens, in tokens


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
        self._break = tokenizer.breaker.broken

    def chat(
        self,
        messages: Sequence[Message],
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """The prompt of a conversation. `thinking` None leaves it to the template.

        Raises ValueError where there is no template, or it refuses.
        """
        last = messages[-1]
        prefix = last if isinstance(last, AssistantMessage) and last.prefix else None
        plain = [plain_message(message) for message in (messages[:-1] if prefix else messages)]
        cut, splice = free_marks(json.dumps((plain, tools, prefix and prefix.model_dump()), ensure_ascii=False), 2)
        turns = _turns(plain, tools)
        replies: list[list[int]] = []
        template = self.tokenizer.template_for(tools)
        shown = [self._break(calls_as_read(message, template), cut) for message in plain]
        as_text = not reads_objects(template)
        for turn, message, safe in zip(turns, plain, shown, strict=False):
            if message["role"] == "assistant":
                self._splice(turn, message, safe, "content", splice, replies)
                for call, safe_call in zip(message.get("tool_calls", ()), safe.get("tool_calls", ()), strict=True):
                    if as_text:
                        self._splice(turn, call["function"], safe_call["function"], "arguments", splice, replies)
        opened = self.tokenizer.open_turn(shown, thinking, self._break(list(tools), cut) if tools else None)
        begun = ""
        if prefix is not None:
            opened, begun = self._begin(opened, prefix, thinking, cut), prefix.content or ""
        prompt: list[int] = []
        for place, piece in enumerate(opened.text.split(splice)):
            if place % 2:
                prompt += replies[int(piece)]
            else:
                first = self.tokenizer.encode_more if place else self.tokenizer.encode
                prompt += self.tokenizer.breaker.encode(piece, cut, first, self.tokenizer.encode_more)
        # A template that writes no block leaves it to the model, where that is known to think
        free = opened.thinking is None and not begun and (thinking or (thinking is None and self.tokenizer.can_think))
        return Prompt(prompt, None if free else bool(opened.thinking), turns[-1], begun)

    def _splice(
        self, turn: bytes, said: dict[str, Any], shown: dict[str, Any], key: str, mark: str, replies: list[list[int]]
    ) -> None:
        """Put a place-holder where the tokens of what was said are known, and add them to `replies`."""
        ids = self.memory.find(turn, said[key]) if said[key] else None
        if ids is not None:
            shown[key] = f"{mark}{len(replies)}{mark}"
            replies.append(ids)

    def text(self, prompt: str | list[int], suffix: str | None = None) -> list[int]:
        """The ids of a text to be continued, begun by bos where the model has it so; with `suffix`, of the hole before
        it (V3 §4.1, PSM).

        Raises ValueError for ids that the vocabulary lacks, or a tokenizer without the tokens of the middle.
        """
        begin = self.tokenizer.begin
        if isinstance(prompt, str):
            if suffix is not None:
                find = self.tokenizer.inner.token_to_id
                start, hole, end = map(find, (tokens.FIM_BEGIN, tokens.FIM_HOLE, tokens.FIM_END))
                if start is None or hole is None or end is None:
                    raise ValueError("suffix is not offered: the tokenizer has no fill-in-the-middle tokens")
                return [*begin, start, *self.plain_ids(prompt), hole, *self.plain_ids(suffix), end]
            ids = self.tokenizer.encode(prompt)
            prompt = ids if ids[:1] == begin else [*begin, *ids]
        wrong = [token for token in prompt if not 0 <= token < self.tokenizer.vocab_size]
        if wrong:
            raise ValueError(f"prompt holds the token id {wrong[0]}; ids run from 0 to {self.tokenizer.vocab_size - 1}")
        return prompt or begin or [self.tokenizer.eos_id]  # a text begins where another has ended

    def plain_ids(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are text like any other."""
        (mark,) = free_marks(text, 1)
        encode = self.tokenizer.encode
        return self.tokenizer.breaker.encode(self._break(text, mark), mark, encode, self.tokenizer.encode_more)

    def _begin(self, turn: Opened, prefix: AssistantMessage, thinking: bool | None, cut: str) -> Opened:
        """The prompt with the beginning of the reply that the caller gives: of its thinking, of its answer, or both."""
        text, open = turn.text, turn.thinking
        if prefix.reasoning_content is not None:
            if open is None and thinking:
                text, open = f"{text}{tokens.THINK}\n", True
            if not open:
                raise ValueError("the last message's reasoning_content needs thinking, which is off")
            text += cut + self._break(prefix.reasoning_content, cut)
        if prefix.content is None:
            return Opened(text, turn.head, open)
        if open and prefix.reasoning_content is not None:
            text += f"{cut}\n{tokens.END_THINK}\n\n"
        elif open:  # a block with nothing in it is written as a closed one
            text = turn.head + tokens.END_THINK
        return Opened(text + cut + self._break(prefix.content, cut), turn.head, False)


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
