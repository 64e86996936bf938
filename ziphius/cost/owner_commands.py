"""`ziphius plan fleet` and `ziphius claims`: what an owner pays, and what the press made of it."""

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


def claims(
    names: Annotated[list[str] | None, typer.Argument(help="Claims by name, e.g. six-million; all otherwise.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace an input: e.g. v3_tokens=1e12. Repeatable.")
    ] = None,
    json_: AsJson = False,
    html: Html = None,
) -> None:
    """What the press said DeepSeek's model cost, claim by claim, held to published figures.

    Each claim shows its arithmetic, its inputs with sources, and a verdict.

    Example: `ziphius claims six-million`, or `ziphius claims --html claims.html`
    """
    import json

    from ziphius.cost.claims.claim import Evidence
    from ziphius.cost.claims.show import chosen, claims_json, show_claims, write_claims_page

    evidence = Evidence(_numbers(set_ or []))
    found = chosen(evidence, names or [])
    if html is not None:
        write_claims_page(evidence, found, html)
    if json_:
        print(json.dumps(claims_json(evidence, found), indent=1))
    else:
        show_claims(evidence, found)


def _numbers(pairs: list[str]) -> dict[str, float]:
    values = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            values[name.strip()] = float(text)
        except ValueError:
            raise ValueError(f"--set {pair}: write it as name=number, for instance v3_gpus=2048") from None
    return values
