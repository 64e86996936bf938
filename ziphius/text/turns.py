"""How a chat template opens and ends the assistant's turn, found by rendering, whatever family it is of."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ziphius.text.tokens import END_THINK, THINK

_ASKED, _SAID, _NEXT = "\ufdd0", "\ufdd1", "\ufdd2"  # noncharacters, so that no template holds them


class Opened(NamedTuple):
    """A prompt that awaits the answer. `head` is its part before the thinking; `thinking` says whether a block of it is
    open; None, that there is none."""

    text: str
    head: str
    thinking: bool | None


def opened(told: str, prompt: str) -> Opened:
    """`told` is the conversation as rendered without, `prompt` with a generation prompt."""
    lead = prompt[_same(told, prompt) :]
    marks = [place for place in (lead.find(THINK), lead.find(END_THINK)) if place >= 0]
    if not marks:
        return Opened(prompt, prompt, None)
    head = prompt[: len(prompt) - len(lead) + min(marks)]
    return Opened(prompt, head, lead.rfind(THINK) > lead.rfind(END_THINK))


def _same(told: str, prompt: str) -> int:
    """How many letters two texts begin with alike."""
    if prompt.startswith(told):
        return len(told)
    return bisect_left(range(1, len(told) + 1), True, key=lambda length: not prompt.startswith(told[:length]))


def set_thinking(turn: Opened, thinking: bool | None, switched: bool) -> Opened:
    """The prompt as the caller wants it, where the template has no say in thinking.

    `switched`: it has, and then its silence means that the model opens the thinking itself.
    """
    if thinking is None or thinking == bool(turn.thinking):
        return turn
    if not thinking:
        return Opened(f"{turn.text}\n{END_THINK}", turn.head, False)
    if turn.thinking is None and switched:
        return turn
    return Opened(f"{turn.text.removesuffix(END_THINK)}{THINK}\n", turn.head, True)


class Ends(NamedTuple):
    """Ids. `end` is what the template writes behind an answer, `next` what it opens the user's next turn with; each
    None where that is not a token of its own."""

    end: int | None
    next: int | None


def find_ends(
    render: Callable[[Sequence[Mapping[str, Any]]], str], encode: Callable[[str], list[int]], added: Sequence[int]
) -> Ends:
    """`added` are the ids of the added tokens."""
    turns = (("user", _ASKED), ("assistant", _SAID), ("user", _NEXT))
    try:
        text = render([{"role": role, "content": content} for role, content in turns])
    except ValueError:  # a template for something else than a conversation
        return Ends(None, None)
    between = text.partition(_SAID)[2].partition(_NEXT)[0]
    own = [token for token in encode(between.lstrip()) if token in set(added)]
    first = encode(between.lstrip())[:1]
    end = own[0] if own and first == own[:1] else None
    return Ends(end, next((token for token in own if token != end), None))
