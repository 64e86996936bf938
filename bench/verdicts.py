"""Verdicts a second: through confined worker processes, and by the same checkers called directly, unconfined.

    python bench/verdicts.py

Mathematical answers of all kinds (`math`: the table of tests/tasks/maths_pairs.jsonl, of which many are judged on the
spot) and such as all take algebra (`algebra`), answers whose checker would evaluate them (`countdown`: in a worker,
behind a gate) and answers that are only compared (`leg_counting`: in this process). All are different.
The peer of each is what it is without workers: math-verify by its README (with its own alarm, which counts a check that
takes too long as wrong), and reasoning-gym's `score_answer`. Batches are of the size of a step of reinforcement
learning; workers are up, as they are after the first batch, whose time is given apart.

Writes bench/results/verdicts-MACHINE.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import Contestant, arguments, best, console, ratio_of, take_turns, timed, write_results
from math_verify import parse, verify
from rich.table import Table

from ziphius.tasks import Family, Problem, make_family
from ziphius.tasks.mathematics import MathFamily, verify_math
from ziphius.tasks.pool import close, shared_pool

FAMILIES = ("math", "algebra", "countdown", "leg_counting")
TABLE = Path(__file__).parents[1] / "tests" / "tasks" / "maths_pairs.jsonl"
Pairs = list[tuple[Problem, str]]


class Maths(MathFamily):
    """The family `math` without a file."""

    def __init__(self) -> None:
        self._limit_s = 5.0


def pairs_of(name: str, family: Family, count: int) -> Pairs:
    """Problems with answers; but for the table, half of them are that of the next problem."""
    if name == "math":
        rows = [json.loads(line) for line in TABLE.read_text(encoding="utf-8").splitlines()]
        return [(Problem("math", "", row["gold"]), row["answer"]) for row in rows[:count]]
    if name == "algebra":
        sizes = range(2, count // 2 + 3)
        problems = [Problem("math", "", rf"{k}\sqrt{{3}}") for k in sizes]
        right = [rf"\sqrt{{{3 * k * k}}}" for k in sizes]
    else:
        problems = [family.draw(ticket) for ticket in range(count // 2 + 1)]
        right = [problem.answer for problem in problems]
    return [(problem, answer) for i, problem in enumerate(problems[:-1]) for answer in right[i : i + 2]]


def directly(family: Any, pairs: Pairs) -> list[float]:
    """The scores of the same checker without workers and gates."""
    if isinstance(family, Maths):
        return [float(verify(parse(f"${p.answer}$"), parse(f"${answer}$"))) for p, answer in pairs]
    entries = [{"question": p.prompt, "answer": p.answer, "metadata": p.metadata} for p, _ in pairs]
    scores = zip(entries, pairs, strict=True)
    return [family._dataset.score_answer(answer, entry) for entry, (_, answer) in scores]


def contestants(name: str, count: int) -> tuple[list[Contestant], float]:
    """Ours and the peer on the same answers, and the seconds of our first batch, workers started with it."""
    family = Maths() if name in ("math", "algebra") else make_family(name)
    pairs = pairs_of(name, family, count)
    close()
    first = timed(lambda: family.verify_all(pairs))
    ours, theirs = [v.score for v in family.verify_all(pairs)], directly(family, pairs)
    differing = sum((one == 1.0) != (other == 1.0) for one, other in zip(ours, theirs, strict=True))
    if differing:
        console.print(
            f"{name}: {differing} of {len(pairs)} verdicts differ from the peer's (the tests say which and why)"
        )
    run = lambda: family.verify_all(pairs)
    return [
        Contestant("ours", "ours", name, run, len(pairs)),
        Contestant("direct", "peer", name, lambda: directly(family, pairs), len(pairs)),
    ], first


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--answers", type=int, default=512, help="answers in a batch")
    options = parser.parse_args()
    count = 32 if options.quick else options.answers
    table = Table(title=f"Verdicts a second, batches of {count}, at most {shared_pool().size} workers")
    for column in ("family", "ours", "directly", "ratio", "first batch"):
        table.add_column(column, justify="left" if column == "family" else "right")
    rows = []
    for name in FAMILIES:
        sides, first = contestants(name, count)
        take_turns(sides, 3 if options.quick else 7)
        ours, peer = (best(sides, side, name) for side in ("ours", "peer"))
        assert ours is not None
        assert peer is not None
        ratio = ratio_of(ours, peer)
        table.add_row(name, f"{ours.rate:,.0f}", f"{peer.rate:,.0f}", f"{ratio['ratio']:.2f}x", f"{first:.2f} s")
        rows.append(
            {"family": name, "first_batch_seconds": first, "ratio": ratio, "sides": [s.as_dict() for s in sides]}
        )
    console.print(table)
    hang = timed(lambda: verify_math(r"9^{9^{9^{9}}}", r"\sqrt{3}", limit_s=1.0))
    after = timed(lambda: verify_math(r"\sqrt{12}", r"2\sqrt{3}"))
    console.print(f"An answer that hangs, with a limit of 1 s: {hang:.2f} s; the answer after it: {after:.2f} s")
    write_results("verdicts", options, {"families": rows, "hang_seconds": hang, "after_hang_seconds": after})
    close()


if __name__ == "__main__":
    main()
