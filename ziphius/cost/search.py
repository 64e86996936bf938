"""`--parallel auto`: every sensible layout is priced; the fastest that fit are kept, and the reasons others lose."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from ziphius.cost.data import Data
from ziphius.cost.layout import Layout, Recompute, Schedule
from ziphius.cost.memory import capacity, memory_parts
from ziphius.cost.step import PYTORCH, Job, step_time
from ziphius.cost.train import GIB, TrainRequest, default_batch

SAME = 0.01  # layouts within a hundredth count as equal: the one with fewer axes wins


@dataclass(frozen=True)
class Candidate:
    """A layout, its step's seconds, its memory; `loses` says what costs it most against the best."""

    layout: Layout
    seconds: float
    memory_gib: float
    loses: str = ""


@dataclass(frozen=True)
class Search:
    """The best layouts first, the best ones that do not fit, and how many were looked at."""

    best: list[Candidate]
    too_large: list[Candidate]
    tried: int


def search_layouts(request: TrainRequest, data: Data, schedule: Schedule | None = None, keep: int = 4) -> Search:
    """Price all layouts of `request`. Raises ValueError where none fits, saying by how much and what would help."""
    batch = request.batch or default_batch(request)
    job = request.job(data, batch)
    limit = capacity(job)
    fitting: list[Candidate] = []
    large: list[Candidate] = []
    tried = 0
    for layout in _candidates(job, schedule):
        tried += 1
        need = sum(memory_parts(job, layout).values())
        if need > limit:
            large.append(Candidate(layout, step_time(job, layout).total, need / GIB))
        else:
            fitting.append(Candidate(layout, step_time(job, layout).total, need / GIB))
    if not fitting:
        raise ValueError(_nothing_fits(request, sorted(large, key=lambda c: c.memory_gib), limit))
    fitting.sort(key=lambda candidate: (candidate.seconds, _axes(candidate.layout)))
    fastest = fitting[0].seconds
    first = min((c for c in fitting if c.seconds <= fastest * (1 + SAME)), key=lambda c: _axes(c.layout))
    others = _distinct([c for c in fitting if c is not first])[: keep - 1]
    winner = step_time(job, first.layout).parts
    told = [Candidate(c.layout, c.seconds, c.memory_gib, _why(winner, step_time(job, c.layout).parts)) for c in others]
    smaller = [
        Candidate(c.layout, c.seconds, c.memory_gib, f"{c.memory_gib - limit / GIB:.1f} GiB too large")
        for c in sorted(large, key=lambda c: c.seconds)
        if c.memory_gib < 1.3 * limit / GIB and c.seconds < fastest
    ]
    return Search([first, *told], _distinct(smaller)[:3], tried)


def complete_layout(request: TrainRequest, layout: Layout, data: Data, zero: bool, recompute: bool) -> Layout:
    """`layout` with the fastest recomputation, and ZeRO stage, that fit, where `recompute` and `zero` leave them open.

    Where none fits, the one that needs least memory. Raises ValueError where the layout does not divide.
    """
    batch = request.batch or default_batch(request)
    layout.check(request.shape, request.gpus, batch)
    job = request.job(data, batch)
    stages = (layout.zero, 3) if zero and layout.pp == 1 and layout.tp == 1 else (layout.zero,)
    kinds: tuple[Recompute, ...] = ("none", "selective", "full") if recompute else (layout.recompute,)
    open_ = [replace(layout, zero=stage, recompute=kind) for stage, kind in product(stages, kinds)]
    need = {one: sum(memory_parts(job, one).values()) for one in open_}
    fitting = [one for one in open_ if need[one] <= capacity(job)]
    if not fitting:
        return min(open_, key=need.__getitem__)
    return min(fitting, key=lambda one: step_time(job, one).total)


def _candidates(job: Job, schedule: Schedule | None) -> Iterator[Layout]:
    shape, domain = job.shape, job.machine.accelerator.nvlink_domain
    widths = [w for w in (1, 2, 4, 8) if w <= min(domain, 8) and w <= job.gpus]
    contexts = [1] if job.seq <= 16384 else [c for c in (1, 2, 4, 8, 16, 32) if job.seq / c >= 4096]
    depths = [p for p in (1, 2, 4, 8, 16, 32) if p <= min(shape.layers, job.gpus)]
    experts = [e for e in (1, 2, 4, 8, 16, 32, 64, 128) if shape.experts and shape.experts % e == 0] or [1]
    for tp, cp, pp, ep in product(widths, contexts, depths, experts):
        if job.gpus % (tp * cp * pp) or job.gpus // pp % ep:
            continue
        pipelines = _pipelines(job, pp, schedule)
        for (kind, vpp), zero, microbatch in product(pipelines, (1, 3), (1, 2, 4, 8)):
            if zero == 3 and (pp > 1 or tp > 1 or (shape.experts and job.stack not in PYTORCH)):
                continue
            for recompute in ("none", "selective", "full"):
                layout = Layout(tp, cp, pp, vpp, ep, zero, microbatch, kind, recompute)
                try:
                    layout.check(shape, job.gpus, job.batch)
                except ValueError:
                    break  # the other recomputations divide no better
                yield layout


def _pipelines(job: Job, pp: int, schedule: Schedule | None) -> list[tuple[Schedule, int]]:
    if pp == 1:
        return [("1f1b", 1)]
    kinds: list[tuple[Schedule, int]] = []
    layers = job.shape.layers + job.shape.mtp_layers
    if schedule in (None, "1f1b"):
        kinds += [("1f1b", vpp) for vpp in (1, 2, 4, 8) if vpp * pp <= layers]
    if schedule in ("zb1p", "dualpipe"):
        kinds += [(schedule, 1)]
    elif schedule is None and job.stack == "deepseek":
        kinds += [("zb1p", 1), ("dualpipe", 1)]
    return kinds


def _axes(layout: Layout) -> tuple[int, int, int, int, int]:
    """Simpler first: fewer ways of splitting, less recomputation."""
    return (layout.tp * layout.cp, layout.pp * layout.vpp, layout.ep, layout.zero, layout.microbatch)


def _distinct(candidates: list[Candidate]) -> list[Candidate]:
    """One candidate for each way of splitting."""
    kept: dict[tuple[int, ...], Candidate] = {}
    for candidate in candidates:
        layout = candidate.layout
        kept.setdefault((layout.tp, layout.cp, layout.pp, layout.ep, layout.zero), candidate)
    return list(kept.values())


def _why(winner: dict[str, float], loser: dict[str, float]) -> str:
    """The part that costs the loser most."""
    part = max(loser, key=lambda name: loser[name] - winner[name])
    extra = (loser[part] - winner[part]) / sum(winner.values())
    return f"{part.replace('_', ' ')} +{extra:.1%} of the step"


def _nothing_fits(request: TrainRequest, large: list[Candidate], limit: float) -> str:
    name, gpus = request.accelerator.name, request.gpus
    if not large:
        return (
            f"no layout of {request.model} divides {gpus} GPUs with this batch; give --batch as a multiple of {gpus}, "
            "or a number of GPUs that is a power of two"
        )
    least = large[0]
    over = least.memory_gib - limit / GIB
    more = gpus * 2 ** max(1, math.ceil(math.log2(least.memory_gib * GIB / limit)))
    return (
        f"{request.model} does not fit {gpus} {name}: the smallest layout, {least.layout.axes()} with recompute "
        f"{least.layout.recompute}, needs {least.memory_gib:.1f} GiB of {limit / GIB:.1f}, {over:.1f} too much; about "
        f"{more} GPUs would fit"
    )
