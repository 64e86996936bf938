"""Conversations as training samples: the text that the chat template makes of them, and which tokens are the answers.

Source of the spans: the template's own `{% generation %}` tags where it has them; else what a rendering with an answer
has more than the prompt for that answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ziphius.text.chat import calls_as_read, marks_answers
from ziphius.text.plain import free_marks
from ziphius.text.thinking import split_thought
from ziphius.text.tokens import END_THINK, THINK

if TYPE_CHECKING:
    from ziphius.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


@dataclass
class _Sample:
    """Pieces of text, each with the weight of its tokens."""

    pieces: list[tuple[str, float]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


def training_samples(
    tokenizer: Tokenizer, messages: Messages, tools: Sequence[Mapping[str, Any]] | None, thinking: bool | None
) -> list[tuple[list[int], list[float]]]:
    """See `Tokenizer.render_training`."""
    if not any(message.get("role") == "assistant" for message in messages):
        raise ValueError("the conversation has no assistant message, so there is nothing to learn")
    (mark,) = free_marks(json.dumps((messages, tools), ensure_ascii=False, default=str), 1)
    template = tokenizer.template_for(tools)
    shown = tokenizer.breaker.broken([calls_as_read(_parted(message), template) for message in messages], mark)
    told = tokenizer.breaker.broken(list(tools), mark) if tools else None
    make = _by_tags if marks_answers(template) else _by_prompts
    return [_encoded(tokenizer, sample, mark) for sample in make(tokenizer, shown, told, thinking)]


def _parted(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message; an assistant's with its thinking apart from its answer."""
    parted = dict(message)
    if parted.get("role") != "assistant" or not isinstance(parted.get("content"), str):
        return parted
    thought, answer = split_thought(parted["content"])
    if thought or answer != parted["content"]:
        parted["content"] = answer
        parted.setdefault("reasoning_content", thought)
    return parted


def _by_tags(
    tokenizer: Tokenizer, messages: Messages, tools: Sequence[Mapping[str, Any]] | None, thinking: bool | None
) -> list[_Sample]:
    text, spans = tokenizer.render_spans(messages, thinking, tools)
    sample, place = _Sample(), 0
    for begin, end in spans:
        end += _ending(tokenizer, text[end:])  # some leave the end of the turn outside
        sample.pieces += [(text[place:begin], 0.0), (text[begin:end], 1.0)]
        place = end
    if not spans:
        raise ValueError("the chat template's generation tags enclose nothing of this conversation")
    return [sample]


def _by_prompts(
    tokenizer: Tokenizer, messages: Messages, tools: Sequence[Mapping[str, Any]] | None, thinking: bool | None
) -> list[_Sample]:
    samples: list[_Sample] = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, answer = _turn(tokenizer, messages[: place + 1], tools, thinking)
        last = samples[-1].text if samples else None
        if last is not None and prompt.startswith(last):
            samples[-1].pieces.append((prompt[len(last) :], 0.0))
        else:  # the template writes earlier turns anew
            samples.append(_Sample([(prompt, 0.0)]))
        samples[-1].pieces.append((answer, 1.0))
    return samples


def _turn(
    tokenizer: Tokenizer, messages: Messages, tools: Sequence[Mapping[str, Any]] | None, thinking: bool | None
) -> tuple[str, str]:
    """The prompt for the last message, and what the model is to write then, its end token included."""
    message = dict(messages[-1])
    if thinking is False:
        message.pop("reasoning_content", None)
    thought = (message.get("reasoning_content") or "").strip()
    thinks = bool(thought) if thinking is None else thinking
    turn = tokenizer.open_turn(messages[:-1], thinks, tools)
    whole = tokenizer.render([*messages[:-1], message], thinks, add_generation_prompt=False, tools=tools)
    if not whole.startswith(turn.head):
        raise ValueError(
            f"the chat template writes assistant message {len(messages) - 1} in another way than it opens a turn, "
            "so that its answer cannot be told from the prompt; put {% generation %} tags around it"
        )
    rest = whole[len(turn.head) :]
    block, answer = _block(rest)
    if turn.thinking:
        gap = "\n" if turn.text.endswith("\n") else ""
        answer = f"{thought}{gap}{END_THINK}{gap * 2}{answer}"
    elif thought and thought not in block:
        raise ValueError("the chat template leaves the thinking out, and its prompt does not open it")
    elif turn.thinking is None:
        answer = rest
    elif whole.startswith(turn.text):
        answer = whole[len(turn.text) :]
    return turn.text, _ended(tokenizer, answer)


def _block(text: str) -> tuple[str, str]:
    """The thinking block that a text begins with, and what follows it."""
    begun = text.lstrip()
    if begun.startswith(END_THINK):
        return END_THINK, begun[len(END_THINK) :].lstrip("\n")
    if begun.startswith(THINK) and END_THINK in begun:
        block, _, rest = begun.partition(END_THINK)
        return block, rest.lstrip("\n")
    return "", text


def _ended(tokenizer: Tokenizer, answer: str) -> str:
    """The answer up to the last token that ends a turn; with eos where the template writes none."""
    places = [answer.rfind(spelling) + len(spelling) for spelling in tokenizer.end_spellings if spelling in answer]
    return answer[: max(places)] if places else answer + tokenizer.end_spellings[0]


def _ending(tokenizer: Tokenizer, text: str) -> int:
    """The length of the end token that a text begins with."""
    return max((len(spelling) for spelling in tokenizer.end_spellings if text.startswith(spelling)), default=0)


def _encoded(tokenizer: Tokenizer, sample: _Sample, mark: str) -> tuple[list[int], list[float]]:
    """Each piece is encoded by itself, as a prompt and the answer to it are."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in sample.pieces:
        first = tokenizer.encode_more if ids else tokenizer.encode
        new = tokenizer.breaker.encode(text, mark, first, tokenizer.encode_more)
        ids += new
        weights += [weight] * len(new)
    return ids, weights
