"""The files that a recipe reads: checked before anything is trained, and chats made into samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from ziphius.recipe.schema import Recipe, RecipeError, SFTStage
from ziphius.text.chats import Chats, read_chats
from ziphius.text.check import Inspected, inspect
from ziphius.text.files import Reader, line_number, reader_for
from ziphius.text.packing import Sample
from ziphius.text.tokenizer import Tokenizer

Inspect = Callable[[Path, Reader], Inspected]


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


def chat_samples(paths: Sequence[str], tokenizer: Tokenizer, thinking: bool) -> list[Sample]:
    """The chats of some files as samples, of which the responses are trained on.

    Raises ValueError for a malformed line (file:line, what and the mend).
    """
    chats = (chat for path in paths for chat in read_chats(Path(path)))
    return [_sample(chat.prompt, chat.response, tokenizer, thinking) for chat in chats]


def place_of_chat(paths: Sequence[str], index: int) -> str:
    """Where (file:line) number `index` of the samples that `chat_samples` makes of these files stands."""
    starts = ((path, chat.start) for path in map(Path, paths) for chat in read_chats(path))
    path, start = next(islice(starts, index, None))
    return f"{path}:{line_number(path, start)}"


def _sample(prompt: str, response: str, tokenizer: Tokenizer, thinking: bool) -> Sample:
    thinks = thinking and "</think>" in response
    start = tokenizer.prompt_ids(prompt, thinking=thinks)
    text = response.removeprefix("<think>").lstrip("\n") if thinks else response.rpartition("</think>")[2].strip()
    answer = [*tokenizer.encode(text), tokenizer.eos_id]
    return start + answer, [0.0] * len(start) + [1.0] * len(answer)
