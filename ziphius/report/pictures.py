"""Which pictures a run's page shows, with captions for people who see such a page for the first time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from ziphius.report.drawing import Dot, Line, Picture
from ziphius.report.folder import Run, Stage, along, length

LEARNING, REINFORCED = ("pretrain", "sft"), ("grpo",)


def pictures(run: Run) -> list[Picture]:
    """The pictures that this run has numbers for."""
    taught = [stage for stage in run.stages if stage.kind in LEARNING]
    rl = [stage for stage in run.stages if stage.kind in REINFORCED]
    control = [stage for stage in run.control if stage.kind in REINFORCED]
    trained = [stage for stage in run.stages if stage.kind in LEARNING + REINFORCED]
    drawn = [*_teaching(taught), *_reinforcement(run, rl, control), *_machinery(trained, rl)]
    return [picture for picture in drawn if picture.has_data]


def _teaching(taught: list[Stage]) -> Iterator[Picture]:
    yield Picture(
        "Loss while reading and imitating",
        "How surprised the model is by the next token (a piece of a word) of its training text; lower is better. The "
        "other line is the extra module that guesses one token further ahead (multi-token prediction). Where a new "
        "stage brings new text, the lines jump.",
        [
            Line("next token", along(taught, "loss", "seconds")),
            Line("token after it", along(taught, "mtp_loss", "seconds"), 1),
        ],
        marks=_marks(taught, "seconds"),
        x_label="seconds",
    )
    yield Picture(
        "Skill before it is asked anything",
        "During pretraining the model reads worked solutions it has never seen; this is the share of them in which its "
        "best guess is right. Training moves on once it is good enough.",
        [Line("skill", along(taught, "probe", "seconds"))],
        x_label="seconds",
        percent=True,
    )


def _reinforcement(run: Run, rl: list[Stage], control: list[Stage]) -> Iterator[Picture]:
    marks = _marks(rl)
    yield Picture(
        "Right answers",
        "The share of right answers. The line is measured on the practice problems of each step; the points are "
        "problems it has never practised, before and after, with bars that hold the true value 95 times in 100. "
        "Sampled: answers drawn by chance, as in practice; greedy: always the likeliest token."
        + (" Dashed: the same model trained to answer at once, without thinking." if control else ""),
        _both(rl, control, "reward_accuracy", "practice"),
        dots=[*_dots(run.stages, "", 0), *_dots(run.control, " (no thinking)", 1)],
        marks=marks,
        percent=True,
    )
    yield Picture(
        "What it was rewarded for",
        "Nobody shows the model how to think in this stage: it tries, and a rule pays for a right answer and for the "
        "right form (thinking first, then the answer). Healthy: right answers rise along with the whole reward.",
        [
            Line("whole reward", along(rl, "reward")),
            Line("right answer", along(rl, "reward_accuracy"), 1),
            Line("right form", along(rl, "reward_format"), 2),
            Line("right language", _if_it_varies(along(rl, "reward_language")), 3),
        ],
        marks=marks,
    )
    yield Picture(
        "Length of an answer",
        "How many tokens the model spends on thinking and answering, on average. If thinking longer pays, it learns to "
        "do so by itself.",
        _both(rl, control, "response_length", "tokens"),
        marks=marks,
    )
    yield Picture(
        "Entropy: how open its choices are",
        "How undecided the model is at each token, in nats. It falls slowly as the model grows sure; at zero it no "
        "longer tries anything new, and a sharp rise means that it has begun to babble.",
        _both(rl, control, "entropy", "entropy"),
        marks=marks,
    )


def _machinery(trained: list[Stage], rl: list[Stage]) -> Iterator[Picture]:
    yield Picture(
        "Sampler against trainer",
        "Answers are written by one part of the program and learned from by another. This is how far apart the two put "
        "the same token's log-probability (mean difference, in nats); the nearer to zero the better.",
        [Line("difference", along(rl, "mismatch"))],
        marks=_marks(rl),
    )
    yield Picture(
        "Balance of the experts",
        "Each token is sent to a few of the network's experts. This is how far the busiest one is above an even share, "
        "in the worst layer: 0 is even, 1 is twice its share.",
        [Line("load violation", along(trained, "load_violation", "seconds"))],
        marks=_marks(trained, "seconds"),
        x_label="seconds",
    )
    yield Picture(
        "Updates left out",
        "How many updates of a stage were skipped so far, because their gradient was a sudden spike or their loss was "
        "not a number. A few do no harm; a line that goes on climbing means that training has come apart.",
        [Line("skipped", _if_it_varies(along(trained, "skipped", "seconds")))],
        marks=_marks(trained, "seconds"),
        x_label="seconds",
    )
    yield Picture(
        "Speed",
        "Tokens trained on in each second. In reinforcement learning it is lower, since writing the answers takes most "
        "of the time.",
        [Line("tokens per second", along(trained, "tokens_per_second", "seconds"))],
        marks=_marks(trained, "seconds"),
        x_label="seconds",
    )
    yield Picture(
        "Use of the machine (MFU)",
        "The arithmetic that the model needs, in each second, as a share of what this machine reached in plain matrix "
        "products of the same precision. Basis: causal attention, with multi-token prediction, without the input "
        "embedding; writing answers counts as time but not as work.",
        [Line("MFU", along(trained, "mfu", "seconds"))],
        marks=_marks(trained, "seconds"),
        x_label="seconds",
        percent=True,
    )


def _both(rl: list[Stage], control: list[Stage], key: str, label: str) -> list[Line]:
    return [
        Line(label, along(rl, key)),
        Line(f"{label} (no thinking)", along(control, key), 1, dashed=True),
    ]


def _dots(stages: Sequence[Stage], note: str, colour: int) -> Iterator[Dot]:
    """The evaluations on the first task, each at the RL step after which it was made; none without an RL stage."""
    if not any(stage.kind in REINFORCED for stage in stages):
        return
    done = 0.0
    for stage in stages:
        done += length(stage) if stage.kind in REINFORCED else 0.0
        for entry in stage.evaluations[:1]:
            yield Dot(f"held-out, sampled{note}", done, entry["pass_at_1"], entry["ci95"], colour)
            yield Dot(f"held-out, greedy{note}", done, entry["greedy"], entry["greedy_ci95"], colour, hollow=True)


def _marks(stages: Sequence[Stage], by: str = "step") -> list[tuple[float, str]]:
    """Where each stage begins, if there are several."""
    begins = accumulate((length(stage, by) for stage in stages), initial=0.0)
    return [(x, stage.name) for x, stage in zip(begins, stages, strict=False)] if len(stages) > 1 else []


def _if_it_varies(points: list) -> list:
    return points if len({value for _, value in points}) > 1 else []
