"""`ziphius plan fleet`: what a whole fleet costs and does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ziphius.cost.commands import AsJson, Html


def fleet(
    file: Annotated[Path | None, typer.Argument(help="A fleet's TOML; the shipped example otherwise.")] = None,
    utilisation: Annotated[
        list[float] | None, typer.Option(min=0.01, max=1, help="Share of hours in use, e.g. 0.6. Repeatable.")
    ] = None,
    print_example: Annotated[
        bool, typer.Option("--print-example", help="Print the example's file, to copy and change.")
    ] = False,
    json_: AsJson = False,
    html: Html = None,
) -> None:
    """Total cost of ownership of a fleet, dollars per GPU-hour by type, and the share that its jobs take by month.

    Without a file it prices the 60,000 GPUs that the press's "$1.6 billion" stands for.

    Example: `ziphius plan fleet --print-example > fleet.toml; ziphius plan fleet fleet.toml --utilisation 0.6`
    """
    import json

    from ziphius.cost.fleet import example_text, load_fleet
    from ziphius.cost.fleet_screen import fleet_json, show_fleet, write_fleet_page

    if print_example:
        print(example_text(), end="")
        return
    found = load_fleet(file)
    shares = utilisation or [1.0, 0.7, 0.4]
    if html is not None:
        write_fleet_page(found, shares, html)
    if json_:
        print(json.dumps(fleet_json(found, shares), indent=1))
    else:
        show_fleet(found, shares)
