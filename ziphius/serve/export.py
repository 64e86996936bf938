"""A model folder handed on to another server as one GGUF file, and such a file taken in as a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ziphius.checkpoint.folder import load_config
from ziphius.checkpoint.gguf import Dtype, GGUFFile, WeightType, describe, write_folder, write_gguf
from ziphius.ledger.model import model_folder
from ziphius.serve.folders import run_of
from ziphius.text.from_gguf import GGUFTokenizerError, tokenizer_files
from ziphius.text.gguf import vocabulary_keys


def export_folder(folder: Path, out: Path, weight_type: WeightType) -> None:
    """Write the model in `folder` (of a run folder: its last stage) to `out`, and say what came of it."""
    folder = model_folder(folder)
    vocabulary = vocabulary_keys(folder, load_config(folder).vocab_size)
    run = run_of(folder)
    console = Console()
    with _progress(console, out) as on_progress:
        written = write_gguf(
            folder,
            out,
            weight_type,
            vocabulary or None,
            name=run.name if run is not None else None,
            on_progress=on_progress,
        )
    size = f"{written.size / 1e6:,.1f} MB"
    _say(
        console,
        f"{out}: {_millions(written.parameters)} weights in {written.tensors} tensors, {weight_type}, {size}",
        written.notes,
    )


def import_file(path: Path, folder: Path, dtype: Dtype) -> None:
    """Write the GGUF file `path` as the model folder `folder`, and say what came of it."""
    console = Console()
    with GGUFFile(path) as file:
        described = describe(file)
        notes = []
        try:
            files = tokenizer_files(file.keys)
            if not files:
                notes.append(f"no tokenizer in {path}: {folder} takes token ids, not text")
        except GGUFTokenizerError as error:
            files = {}
            notes.append(
                f"no tokenizer is written, for {error}; copy tokenizer.json and tokenizer_config.json of the model's "
                "original folder"
            )
        with _progress(console, folder) as on_progress:
            written = write_folder(file, described, folder, dtype, files, on_progress)
    kept, kinds = str(written).removeprefix("torch."), ", ".join(described.kinds)
    model = f"{described.config.model_type}, {_millions(described.parameters)} weights"
    _say(console, f"{folder}: {model}, {kept}, from {kinds}", notes)


@contextmanager
def _progress(console: Console, path: Path) -> Iterator[Callable[[int, int], None]]:
    """A bar for what is written to `path`; call what is yielded with the bytes done and all."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn(str(path)), *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:,.2f}M"


def _say(console: Console, line: str, notes: list[str]) -> None:
    for text in (line, *(f"Note: {note}" for note in notes)):
        console.print(text, soft_wrap=True, highlight=False, markup=False)
