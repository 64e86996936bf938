"""`ziphius plan …`: what training and serving a model takes and costs, before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

plan = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Price a model before it is run: training, reinforcement learning, serving, a fleet, a budget.",
)

DataFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", help="Your own rows of accelerators and prices (TOML); e.g. --data my-gpus.toml. Repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; docs/COST.md has the schema.")]
Html = Annotated[Path | None, typer.Option("--html", help="Also write a page with pictures, e.g. --html plan.html.")]


@plan.callback()
def _plan() -> None:
    """Keeps `plan` a group of verbs."""
