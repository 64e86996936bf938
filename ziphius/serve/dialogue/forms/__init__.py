"""How families of models write a tool call: one file a form, and one row here. Imports no torch."""

from __future__ import annotations

from ziphius.serve.dialogue.forms import deepseek, hermes, llama
from ziphius.serve.dialogue.forms.form import CallForm
from ziphius.text.tokenizer import Tokenizer

_FORMS = (deepseek.find, hermes.find, llama.find)


def form_of(tokenizer: Tokenizer) -> CallForm | None:
    """The form that a folder's chat template and tokens show; None where they show none."""
    return next((form for find in _FORMS if (form := find(tokenizer)) is not None), None)
