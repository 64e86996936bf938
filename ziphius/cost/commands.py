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
Model = Annotated[str, typer.Option(help="A published shape, or a folder with a config.json; e.g. deepseek-v3.")]
Gpu = Annotated[str, typer.Option(help="An accelerator of the tables, e.g. h800.")]
RateOption = Annotated[float | None, typer.Option(min=0, help="Dollars per GPU-hour, e.g. 2; a quote otherwise.")]
Market = Annotated[str | None, typer.Option(help="Which quote of the rental table, e.g. 'on demand'.")]
SoftwareOption = Annotated[str | None, typer.Option(help="Age of the software, e.g. 2024-12; the newest otherwise.")]


@plan.callback()
def _plan() -> None:
    """Keeps `plan` a group of verbs."""


@plan.command()
def train(
    model: Model,
    gpu: Gpu,
    gpus: Annotated[int, typer.Option(min=1, help="How many, e.g. 2048.")],
    tokens: Annotated[str | None, typer.Option(help="Tokens trained on, e.g. 14.8T; phases bring their own.")] = None,
    precision: Annotated[str, typer.Option(help="Of the matrix products: bf16, fp8 or fp4.")] = "bf16",
    parallel: Annotated[str, typer.Option(help="Layout such as pp16,ep64,zero1, or auto to search.")] = "auto",
    seq: Annotated[int, typer.Option(min=2, help="Tokens of a sequence, e.g. 4096.")] = 4096,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences a step, e.g. 15360.")] = None,
    microbatch: Annotated[int | None, typer.Option(min=1, help="Sequences at once on a device, e.g. 1.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Pipeline: 1f1b, zb1p or dualpipe.")] = None,
    recompute: Annotated[str, typer.Option(help="none, selective or full; e.g. full where memory is short.")] = (
        "selective"
    ),
    stack: Annotated[
        str | None,
        typer.Option(help="Kernels: deepseek, tuned (Megatron), compiled or eager (PyTorch); e.g. compiled."),
    ] = None,
    software: SoftwareOption = None,
    mtp: Annotated[bool, typer.Option(help="Train the model's prediction modules too.")] = True,
    imbalance: Annotated[float, typer.Option(min=1, help="Load of the busiest experts over the mean, e.g. 1.05.")] = (
        1.05
    ),
    watts: Annotated[float | None, typer.Option(min=1, help="Power cap of a device, e.g. 500.")] = None,
    phases: Annotated[
        str | None, typer.Option(help="Several phases as one plan: deepseek-v3, or a TOML of [[phase]] rows.")
    ] = None,
    rate: RateOption = None,
    market: Market = None,
    data: DataFiles = None,
    json_: AsJson = False,
    html: Html = None,
) -> None:
    """Step time, memory, speed, GPU-hours, energy and money of a training run, with 80% intervals.

    Example: `ziphius plan train --model deepseek-v3 --gpu h800 --gpus 2048 --tokens 14.8T --precision fp8
    --parallel pp16,ep64,zero1 --schedule dualpipe --batch 15360 --software 2024-12`
    """
    from ziphius.cost.train_verb import TrainOptions, run_train

    run_train(
        TrainOptions(
            model=model, gpu=gpu, gpus=gpus, tokens=tokens, precision=precision, parallel=parallel, seq=seq,
            batch=batch, microbatch=microbatch, schedule=schedule, recompute=recompute, stack=stack, software=software,
            mtp=mtp, imbalance=imbalance, watts=watts, phases=phases, rate=rate, market=market, data=data or [],
        ),
        as_json=json_,
        html=html,
    )  # fmt: skip
