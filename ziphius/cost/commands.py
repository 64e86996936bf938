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
    recompute: Annotated[str, typer.Option(help="none, selective, full, or auto: the fastest that fits.")] = "auto",
    stack: Annotated[
        str | None,
        typer.Option(
            help="Kernels: deepseek (unset: for DeepSeek's models on H800, and dualpipe), tuned (Megatron; else), "
            "compiled or eager (PyTorch); e.g. compiled."
        ),
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


@plan.command()
def serve(
    model: Model,
    gpu: Gpu,
    input_: Annotated[float, typer.Option("--input", min=1, help="Tokens of a request, e.g. 3600.")] = 2000,
    output: Annotated[float, typer.Option(min=1, help="Tokens of an answer, e.g. 1000.")] = 1000,
    hit: Annotated[float, typer.Option(min=0, max=0.999, help="Share of input that is cached, e.g. 0.563.")] = 0.0,
    context: Annotated[
        float | None, typer.Option(min=1, help="Mean tokens attended to while writing; input + output/2 otherwise.")
    ] = None,
    user_speed: Annotated[float, typer.Option(min=0, help="Tokens/s that a user must get, e.g. 20.")] = 20.0,
    ttft: Annotated[float | None, typer.Option(min=0, help="Seconds to the first token at most, e.g. 2.")] = None,
    requests: Annotated[
        float | None, typer.Option(min=0, help="Requests a second, the day's mean, e.g. 1944: sizes the fleet.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of weights and products: bf16, fp8 or fp4.")] = "fp8",
    kv: Annotated[str, typer.Option(help="Of keys and values: bf16 or fp8.")] = "bf16",
    acceptance: Annotated[
        float, typer.Option(min=0, max=1, help="Share of MTP-drafted tokens kept, e.g. 0.85; 0 drafts none.")
    ] = 0.0,
    prefill_gpus: Annotated[int | None, typer.Option(min=1, help="Devices of a prefill pool, e.g. 32.")] = None,
    prefill_tp: Annotated[int, typer.Option(min=1, help="Tensor parallelism of its attention, e.g. 1.")] = 1,
    decode_gpus: Annotated[int | None, typer.Option(min=1, help="Devices of a decoding pool, e.g. 144.")] = None,
    decode_tp: Annotated[int, typer.Option(min=1, help="Tensor parallelism of its attention, e.g. 1.")] = 1,
    colocated: Annotated[bool, typer.Option("--colocated", help="One pool reads and writes (--decode-gpus).")] = False,
    concurrency: Annotated[
        float | None, typer.Option(min=1, help="Requests that a decoding pool works on, e.g. 64; else the best.")
    ] = None,
    utilisation: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Fleet average over full pools, e.g. 0.74.")
    ] = None,
    price_list: Annotated[
        str | None, typer.Option("--price", help="Sold at a list price: MODEL@DAY, e.g. deepseek-r1@2025-02-28.")
    ] = None,
    imbalance: Annotated[float, typer.Option(min=1, help="Load of the busiest experts over the mean.")] = 1.15,
    software: SoftwareOption = None,
    rate: RateOption = None,
    market: Market = None,
    data: DataFiles = None,
    json_: AsJson = False,
    html: Html = None,
) -> None:
    """Prefill and decoding pools, batch, speed, latency, cost per million tokens and margin, with 80% intervals.

    Example, DeepSeek's published day: `ziphius plan serve --model deepseek-r1 --gpu h800 --prefill-gpus 32
    --decode-gpus 144 --input 3619 --hit 0.5625 --output 1000 --context 4989 --user-speed 20 --requests 1944
    --software 2025-02 --rate 2 --price deepseek-r1@2025-02-27`
    """
    from ziphius.cost.serve_verb import ServeOptions, run_serve

    run_serve(
        ServeOptions(
            model=model, gpu=gpu, input=input_, output=output, hit=hit, context=context, user_speed=user_speed,
            ttft=ttft, requests=requests, precision=precision, kv=kv, acceptance=acceptance, prefill_gpus=prefill_gpus,
            prefill_tp=prefill_tp, decode_gpus=decode_gpus, decode_tp=decode_tp, colocated=colocated,
            concurrency=concurrency, utilisation=utilisation,
            price=price_list, imbalance=imbalance, software=software, rate=rate, market=market, data=data or [],
        ),
        as_json=json_,
        html=html,
    )  # fmt: skip


@plan.command()
def rl(
    model: Model,
    gpu: Gpu,
    gpus: Annotated[int, typer.Option(min=1, help="How many, e.g. 512.")],
    steps: Annotated[int, typer.Option(min=1, help="Updates, e.g. 10400.")],
    questions: Annotated[int, typer.Option(min=1, help="Questions a step, e.g. 32.")] = 32,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each, e.g. 16.")] = 16,
    rollout: Annotated[int, typer.Option(min=1, help="Answers written before they are trained on.")] = 8192,
    prompt: Annotated[float, typer.Option(min=1, help="Tokens of a question, e.g. 512.")] = 512,
    length: Annotated[float, typer.Option(min=1, help="Mean tokens of an answer over the stage, e.g. 6000.")] = 6000,
    max_length: Annotated[float, typer.Option(min=1, help="Tokens of the longest answer, e.g. 32768.")] = 32768,
    reward_seconds: Annotated[float, typer.Option(min=0, help="Checking a rollout, beyond what writing hides.")] = 60,
    precision: Annotated[str, typer.Option(help="Of the matrix products: bf16 or fp8.")] = "fp8",
    acceptance: Annotated[float, typer.Option(min=0, max=1, help="Share of MTP-drafted tokens kept, e.g. 0.85.")] = 0.0,
    decode_gpus: Annotated[int, typer.Option(min=1, help="Devices of a pool that writes, e.g. 32.")] = 32,
    parallel: Annotated[str, typer.Option(help="Layout of the updates, e.g. pp16,ep32,zero1.")] = "pp16,ep32,zero1",
    software: SoftwareOption = None,
    rate: RateOption = None,
    market: Market = None,
    data: DataFiles = None,
    json_: AsJson = False,
) -> None:
    """GPU-hours and money of a GRPO stage: rollouts with their long tail, rewards, log-probabilities, updates.

    Unset options are R1-Zero's (Nature 2025, Methods); the mean length is assumed.

    Example: `ziphius plan rl --model deepseek-v3 --gpu h800 --gpus 512 --steps 10400 --software 2024-12 --rate 2`
    """
    from ziphius.cost.data import Data
    from ziphius.cost.money import rental_rate
    from ziphius.cost.quantity import parse_day
    from ziphius.cost.quantity import precision as checked
    from ziphius.cost.rl import RLRequest, rl_plan
    from ziphius.cost.rl_screen import show_rl

    tables = Data(data or [])
    accelerator, shape = tables.accelerator(gpu), tables.shape(model)
    request = RLRequest(
        model, shape, accelerator, gpus, steps, questions, samples, rollout, prompt, length, max_length, reward_seconds,
        checked(precision), acceptance, decode_gpus, parallel,
        parse_day(software, "--software") if software else None,
    )  # fmt: skip
    show_rl(rl_plan(request, tables, rental_rate(accelerator, tables, rate, market)), as_json=json_)


@plan.command()
def accuracy(
    data: DataFiles = None,
    own: Annotated[bool, typer.Option("--own", help="Only the published rows of your --data files.")] = False,
    leave_out: Annotated[bool, typer.Option(help="Also set the fitted constants again without each row.")] = True,
    json_: AsJson = False,
) -> None:
    """Every published result that the planner can express: predicted, published, inside the interval or not.

    Example: `ziphius plan accuracy --data my-results.toml --own`, with rows such as those of cost/data/published.toml
    """
    import json

    from ziphius.cost.accuracy import accuracy as measure
    from ziphius.cost.accuracy import accuracy_json, show_accuracy
    from ziphius.cost.data import Data

    found = measure(Data(data or []), own, leave_out)
    print(json.dumps(accuracy_json(found), indent=1)) if json_ else show_accuracy(found)


@plan.command()
def count(
    model: Model,
    seq: Annotated[int, typer.Option(min=2, help="Tokens of a training sequence, e.g. 4096.")] = 4096,
    context: Annotated[int, typer.Option(min=1, help="Tokens attended to while serving, e.g. 8192.")] = 4096,
    data: DataFiles = None,
    json_: AsJson = False,
) -> None:
    """Parameters, FLOPs per token, bytes of weights and of the cache: exact counts, no prediction.

    Example: `ziphius plan count --model deepseek-v3`
    """
    from ziphius.cost.count_screen import show_counts
    from ziphius.cost.data import Data

    show_counts(model, Data(data or []).shape(model), seq, context, as_json=json_)
