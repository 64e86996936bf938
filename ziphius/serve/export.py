"""A model folder handed on to another server: as one GGUF file."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from ziphius.checkpoint.folder import load_config, model_folder
from ziphius.checkpoint.gguf import WeightType, write_gguf
from ziphius.serve.folders import run_of
from ziphius.text.gguf import vocabulary_keys


def export_folder(folder: Path, out: Path, weight_type: WeightType) -> None:
    """Write the model in `folder` (of a run folder: its last stage) to `out`, and say what came of it."""
    folder = model_folder(folder)
    vocabulary = vocabulary_keys(folder, load_config(folder).vocab_size)
    run = run_of(folder)
    console = Console()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn(str(out)), *columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        written = write_gguf(
            folder,
            out,
            weight_type,
            vocabulary or None,
            name=run.name if run is not None else None,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    console.print(
        f"{out}: {written.parameters / 1e6:,.2f}M weights in {written.tensors} tensors, {weight_type}, "
        f"{written.size / 1e6:,.1f} MB",
        soft_wrap=True,
        highlight=False,
    )
    for note in written.notes:
        console.print(f"Note: {note}", soft_wrap=True, highlight=False)
