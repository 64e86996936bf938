"""Where thinking begins and ends in the tokens of a reply: one rule for who draws them and for who reads them."""

from __future__ import annotations


def thinks_after(token: int, thinking: bool, may_open: bool, think_id: int | None, end_think_id: int | None) -> bool:
    """Whether a reply thinks behind `token`.

    The first `</think>` ends the thinking. `<think>` begins it where it `may_open`: before the answer has begun. At any
    other place both are text. A tokenizer without the tags has None.
    """
    if thinking:
        return token != end_think_id
    return may_open and token == think_id
