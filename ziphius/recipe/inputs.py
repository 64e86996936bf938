"""The files that a recipe reads: checked before anything is trained, and chats made into samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        read = [(path, reader_for(Path(path), corpus.documents, corpus.field)) for path in corpus.files()]
        files[f"corpora.{name}.path"] = list(read)
    for name, stage in recipe.stages.items():
        if isinstance(stage, SFTStage):
            files[f"stages.{name}.path"] = [(path, Chats()) for path in stage.files()]
    return files


def chat_samples(
    paths: Sequence[str], tokenizer: Tokenizer, thinking: bool, seq_len: int
) -> tuple[list[Sample], list[str]]:
    """The chats of some files as samples, of which the responses are trained on.

    Returns:
        The samples of at most `seq_len` tokens, and where (file:line) the longer ones stand, which are left out.

    Raises:
        ValueError: a malformed line (file:line, what and the mend), no chat, or none that fits.
    """
    samples: list[Sample] = []
    longer: list[str] = []
    longest = 0
    for path in map(Path, paths):
        for chat in read_chats(path):
            sample = _sample(chat.prompt, chat.response, tokenizer, thinking)
            longest = max(longest, len(sample[0]))
            if len(sample[0]) <= seq_len:
                samples.append(sample)
            else:
                longer.append(f"{path}:{line_number(path, chat.start)}" if len(longer) < 3 else str(path))
    if not samples:
        what = f"all {len(longer)} chats are longer than seq_len {seq_len}; raise it to {longest}" if longer else ""
        raise ValueError(f"{paths[0]}: {what or 'no chat in it; give lines with a prompt and a response'}")
    return samples, longer


def _sample(prompt: str, response: str, tokenizer: Tokenizer, thinking: bool) -> Sample:
    thinks = thinking and "</think>" in response
    start = tokenizer.prompt_ids(prompt, thinking=thinks)
    text = response.removeprefix("<think>").lstrip("\n") if thinks else response.rpartition("</think>")[2].strip()
    answer = [*tokenizer.encode(text), tokenizer.eos_id]
    return start + answer, [0.0] * len(start) + [1.0] * len(answer)
