"""The files that a recipe reads: checked before anything is trained, and chats made into samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

from ziphius.recipe.schema import Recipe, RecipeError, SFTStage
from ziphius.text.chats import Chats, form_name, read_chats
from ziphius.text.check import Inspected, inspect
from ziphius.text.decontaminate import Decontaminator
from ziphius.text.files import Reader, reader_for
from ziphius.text.forms.conversation import Conversation
from ziphius.text.packing import Sample
from ziphius.text.rows import where
from ziphius.text.tokenizer import Tokenizer

_FIRST = 100  # conversations of a file that show what it is like
Inspect = Callable[[Path, Reader], Inspected]
Where = Callable[[], str]  # finds out where something stands, which takes a look into the file


def check_inputs(recipe: Recipe, inspect: Inspect = inspect) -> dict[str, Inspected]:
    """Reads each file of a recipe once; what was found, by path.

    Args:
        inspect: `text.check.inspect`, or something that remembers what it found.

    Raises:
        RecipeError: a file that cannot be read (file:line, what, the mend), or a corpus or stage without a document.
    """
    found: dict[str, Inspected] = {}
    for key, files in _readers(recipe).items():
        for path, reader in files:
            try:
                found[path] = inspect(Path(path), reader)
            except (ValueError, OSError) as error:
                raise RecipeError(f"{key}: {error}") from error
        if files and not any(found[path].documents for path, _ in files):
            shown = files[0][0] if len(files) == 1 else f"all {len(files)} files"
            raise RecipeError(f"{key}: no text in {shown}; give files with something in them")
    return found


def _readers(recipe: Recipe) -> dict[str, list[tuple[str, Reader]]]:
    """The files of each corpus and stage, with how they are read."""
    files: dict[str, list[tuple[str, Reader]]] = {}
    for name, corpus in recipe.corpora.items():
        files[f"corpora.{name}.path"] = [
            (path, reader_for(Path(path), corpus.documents, corpus.field)) for path in corpus.files()
        ]
    for name, stage in recipe.stages.items():
        if isinstance(stage, SFTStage):
            files[f"stages.{name}.path"] = [(path, Chats()) for path in stage.files()]
    return files


def most_think(paths: Sequence[str]) -> bool:
    """Whether most of the first conversations of some files end with an answer that thinks.

    Raises ValueError for a malformed row.
    """
    chats = (chat for path in paths for chat, _ in islice(read_chats(Path(path)), _FIRST))
    think = [any(m.get("reasoning_content") for m in chat.messages[-1:]) for chat in chats if not chat.is_empty]
    return 2 * sum(think) > len(think)


def chat_samples(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    thinking: bool,
    decontaminator: Decontaminator | None,
    counts: Counter[str],
    say: list[str],
) -> Iterator[tuple[Sample, Where]]:
    """The conversations of some files as samples, of which the answers are trained on, each with its file:line.

    Those without an answer, and those that overlap with an evaluation, are left out and counted.

    Args:
        thinking: False leaves the thinking out of the answers.
        counts: gets the numbers of `conversations`, and of those `empty` and `contaminated`.
        say: gets a sentence on the form of the files.

    Raises:
        ValueError: a malformed row, or one that the chat template refuses (file:line, what and the mend).
    """
    counts.update(conversations=0, empty=0, contaminated=0)
    forms: dict[str, list[str]] = {}
    for path in map(Path, paths):
        forms.setdefault(form_name(path) or "nothing", []).append(path.name)
        for chat, place in read_chats(path):
            counts["conversations"] += 1
            if chat.is_empty:
                counts["empty"] += 1
            elif decontaminator is not None and decontaminator.is_contaminated(chat.text):
                counts["contaminated"] += 1
            else:
                at = partial(where, path, place)
                yield from ((sample, at) for sample in training_samples(chat, tokenizer, thinking, at))
    say += [f"{_some(names)} hold{'s' * (len(names) == 1)} {form}" for form, names in forms.items()]


def training_samples(chat: Conversation, tokenizer: Tokenizer, thinking: bool = True, at: Where = str) -> list[Sample]:
    """A conversation in the tokenizer's chat template; ValueError, with where it stands, if that refuses it."""
    if not thinking:
        chat = chat.without_thinking()
    try:
        return tokenizer.render_training(chat.messages, chat.tools, None if thinking else False)
    except ValueError as error:
        raise ValueError(f"{at()}: {error}") from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
