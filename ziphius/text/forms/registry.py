"""Which form a file of conversations has: a row each, known by the keys of the file's first row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ziphius.text.forms import alpaca, completion, messages, response, sharegpt
from ziphius.text.forms.conversation import Conversation


@dataclass(frozen=True)
class Form:
    """`read(row)` makes the conversation of a row that has all of `keys`; ValueError says what is wrong with it."""

    name: str
    keys: tuple[str, ...]
    read: Callable[[dict[str, Any]], Conversation]


FORMS = (
    Form("messages", ("messages",), messages.read),
    Form("ShareGPT", ("conversations",), sharegpt.read),
    Form("prompt and completion", ("prompt", "completion"), completion.read),
    Form("prompt and response", ("prompt", "response"), response.read),
    Form("Alpaca", ("instruction", "output"), alpaca.read),
)


def form_of(row: dict[str, Any]) -> Form:
    """The form of a file that begins with `row`; ValueError names the keys of the forms there are."""
    for form in FORMS:
        if all(key in row for key in form.keys):
            return form
    known = ", ".join("+".join(form.keys) for form in FORMS)
    raise ValueError(f"the keys {sorted(row)} are those of no known form; a row needs one of {known}")
