"""The claims as text, JSON and a page."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ziphius.cost.claims.all import all_claims, answer
from ziphius.cost.claims.claim import Claim, Evidence, Verdict

if TYPE_CHECKING:
    from ziphius.cost.page import Table

TONES = {Verdict.HOLDS: "good", Verdict.ONLY_FOR: "warn", Verdict.UNKNOWN: "soft", Verdict.CONTRADICTED: "bad"}
_COLOURS = {"good": "green", "warn": "yellow", "soft": "cyan", "bad": "red"}
_CONFIDENCE = {"read": "", "second-hand": ", second-hand", "computed": "", "memory": ", from memory"}


def chosen(evidence: Evidence, names: Sequence[str]) -> list[Claim]:
    """The claims called `names`, or all. Raises ValueError listing the names when one is unknown."""
    claims = {claim.name: claim for claim in all_claims(evidence)}
    unknown = [name for name in names if name not in claims]
    if unknown:
        raise ValueError(f"no claim is called {unknown[0]!r}; there are {', '.join(claims)}")
    return [claim for name, claim in claims.items() if not names or name in names]


def claims_json(evidence: Evidence, claims: Sequence[Claim]) -> dict[str, Any]:
    """The form of `ziphius claims --json`."""
    return {"answer": answer(evidence), "claims": [claim.as_dict() for claim in claims]}


def show_claims(evidence: Evidence, claims: Sequence[Claim]) -> None:
    """Print what was said, the arithmetic, the verdict and why; then the sources."""
    _say(answer(evidence))
    for claim in claims:
        _say(f"\n{claim.title}  ({claim.name})", bold=True)
        _say(f"{claim.who}: {claim.said}", dim=True)
        _say(claim.words, bold=True, fg=_COLOURS[TONES[claim.verdict]])
        for step in claim.working.steps:
            typer.secho(f"    {step.label}: {step.formula}", dim=True)
        _say(claim.because)
    sources = sorted({line for claim in claims for line in _sources(claim)})
    if sources:
        _say("\nInputs and their sources", bold=True)
    for line in sources:
        typer.echo(f"  {line}")


def _say(text: str, **style: Any) -> None:
    """A paragraph as wide as the terminal, up to what is good to read; rich would take longer than the arithmetic."""
    width = min(shutil.get_terminal_size().columns, 100)
    typer.secho("\n".join(textwrap.fill(line, width) for line in text.split("\n")), **style)


def write_claims_page(evidence: Evidence, claims: Sequence[Claim], path: Path) -> None:
    """Write the page: the answer, the three pictures, and a section a claim."""
    from ziphius.cost.claims.pictures import figures
    from ziphius.cost.page import Section, Table, write_page

    verdicts = [[claim.title, claim.words] for claim in claims]
    sections = [
        Section("In short", tables=[Table(["what was said", "what remains of it"], verdicts, text_columns=2)]),
        Section("In three pictures", figures=figures(evidence)),
    ]
    for claim in claims:
        steps = [[step.label, step.formula] for step in claim.working.steps]
        sections.append(
            Section(
                claim.title,
                [claim.because],
                [Table(["what is computed", "how"], steps, text_columns=2)] if steps else [],
                badge=(claim.words, TONES[claim.verdict]),
                quote=f"{claim.said} ({claim.who})",
                details=_inputs(claim),
            )
        )
    write_page(path, "What did DeepSeek's model cost?", [answer(evidence), _how_to_read()], sections)


def _how_to_read() -> str:
    return (
        "Each claim of the press is held to published figures. The verdict says what remains of it: it holds, it holds "
        "only for something narrower than was said, it cannot be known from what has been published, or something "
        "published contradicts it. Every number on this page is computed from the inputs named under it."
    )


def _inputs(claim: Claim) -> Table | None:
    from ziphius.cost.page import Table

    rows = [[n.title, str(n), n.source + _CONFIDENCE.get(n.confidence, "")] for n in claim.working.inputs.values()]
    return Table(["input", "value", "source"], rows, "Inputs and their sources", text_columns=3) if rows else None


def _sources(claim: Claim) -> list[str]:
    return [
        f"{number.title}: {number} ({number.source}{_CONFIDENCE.get(number.confidence, '')})"
        for number in claim.working.inputs.values()
    ]
