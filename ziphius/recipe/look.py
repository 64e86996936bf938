"""`ziphius inspect`: files of chats as a model is going to read them, with what is trained on marked."""

from __future__ import annotations

from functools import partial
from itertools import groupby, islice
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ziphius.recipe.inputs import training_samples
from ziphius.recipe.schema import SMALLEST_VOCABULARY
from ziphius.text.chats import form_name, read_chats
from ziphius.text.learn import train_tokenizer
from ziphius.text.packing import Sample
from ziphius.text.paths import CHATS, expand
from ziphius.text.rows import where
from ziphius.text.tokenizer import Tokenizer

_MARKS = ("⟦", "⟧")  # where there is no colour


def show_chats(paths: list[str], model: Path | None, n: int, thinking: bool = True) -> None:
    """Print the first `n` conversations of each file.

    `model`: the folder whose tokenizer and chat template are used; without one it is this package's own template, and
    a token is a byte. Raises ValueError for files that training would refuse, as far as they are read.
    """
    console = Console()
    tokenizer = train_tokenizer([], SMALLEST_VOCABULARY) if model is None else Tokenizer.load(model)
    marked = "in green" if console.color_system else f"between {_MARKS[0]} and {_MARKS[1]}"
    unit = "tokens" if model is not None else "tokens (bytes: --model FOLDER takes its tokenizer and chat template)"
    for path in map(Path, expand(paths, CHATS)):
        console.print(
            f"{path}: {form_name(path) or 'no rows'}; what is trained on stands {marked}",
            style="bold",
            highlight=False,
            soft_wrap=True,
        )
        for chat, place in islice(read_chats(path), n):
            at = where(path, place)
            if chat.is_empty:
                console.print(
                    f"{at}: left out, for nothing is asked in it or nothing answered\n", style="yellow", highlight=False
                )
                continue
            for tokens, weights in training_samples(chat, tokenizer, thinking, partial(where, path, place)):
                trained = sum(weight > 0 for weight in weights)
                console.print(
                    f"{at}: {trained:,} of {len(tokens):,} {unit}", style="dim", highlight=False, soft_wrap=True
                )
                console.print(_marked((tokens, weights), tokenizer, bool(console.color_system)), soft_wrap=True)
                console.print()


def _marked(sample: Sample, tokenizer: Tokenizer, colour: bool) -> Text:
    """The text of a sample, its parts with a weight marked."""
    shown = Text()
    for trained, part in groupby(zip(*sample, strict=True), key=lambda pair: pair[1] > 0):
        text = tokenizer.decode([token for token, _ in part]).replace("\x1b", "␛")  # no orders to the terminal
        if trained and not colour:
            text = text.join(_MARKS)
        shown.append(text, style="green" if trained else "")
    return shown
