"""The verbs. Parses, calls, prints; no logic. Imports torch only inside the verbs that need a model."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ziphius.cost.commands import AsJson, DataFiles, Html, Market, RateOption, plan
from ziphius.cost.owner_commands import claims, fleet
from ziphius.serve.commands import WeightsOption, chat, export, import_, key, serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Make, run and price DeepSeek-style reasoning models.",
)
app.add_typer(plan, name="plan")
plan.command()(fleet)
for verb in (serve, chat, key, export, claims):
    app.command()(verb)
app.command("import")(import_)
_debug = False

DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, or cuda:1 for one of several.")]


@app.callback()
def _options(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    global _debug
    _debug = debug


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, such as recipes/r1-cpu.toml.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder; runs/NAME-seedN otherwise.")] = None,
    name: Annotated[str | None, typer.Option(help="Another name, and with it another folder, e.g. more-steps.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="stage.key=value; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data and sampling.")] = None,
    until: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    control: Annotated[bool, typer.Option("--control", help="Also train the same without thinking.")] = False,
    device: DeviceOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print recipe, size, memory, time and cost only.")] = False,
) -> None:
    """Run a recipe: tokenizer, pretraining, fine-tuning, reinforcement learning, evaluation.

    Finished stages are not repeated, and a killed run goes on where it was. A stage whose settings have changed begins
    beside the old one, which stays until `ziphius clean`.

    Example: `ziphius run recipes/r1-cpu.toml --set rl.train.steps=40 --seed 1`
    """
    from ziphius.recipe.launch import launch
    from ziphius.recipe.plan import render_plan
    from ziphius.recipe.schema import RecipeError, load_recipe
    from ziphius.recipe.screen import show_summary

    flags = {"name": name, "machine.device": device}
    given = [f"{key}={value}" for key, value in flags.items() if value is not None]
    checked = load_recipe(recipe, [*(set_ or []), *given], seed)
    if until is not None and until not in checked.stages:
        raise RecipeError(f"--until {until}: the recipe has no such stage; it has {', '.join(checked.stages)}")
    if dry_run:
        render_plan(checked)
        return
    folder = out or Path("runs") / f"{checked.name}-seed{checked.seed}"
    code = launch(checked, folder, until, control, _debug)
    if code:
        raise typer.Exit(code)
    if os.environ.get("RANK", "0") == "0":
        show_summary(folder)


@app.command()
def tune(
    folder: Annotated[Path, typer.Argument(help="A model's folder, or a run's (its last stage is taken).")],
    data: Annotated[list[str], typer.Option(help="Chats to imitate, e.g. --data chats.jsonl. Repeatable.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder; runs/tune-FOLDER-seedN otherwise.")
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(min=0, help="Rank of low-rank updates; 0 trains all weights, as is done up to 1B of them."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often the chats are read.")] = 2,
    lr: Annotated[float | None, typer.Option(help="Learning rate, e.g. 1e-4; by size otherwise.")] = None,
    seq: Annotated[int | None, typer.Option(min=2, help="Tokens of a row; by the chats' lengths otherwise.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of order and of new factors.")] = 0,
    device: DeviceOption = None,
    force: Annotated[bool, typer.Option("--force", help="Write over another recipe in the run folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the recipe and print the plan only.")] = False,
) -> None:
    """Tune a model on chats: writes a recipe (tune.toml in the run's folder), prints its plan, and runs it.

    The chats may be in any of the usual forms; `ziphius inspect` shows what is trained on.

    Example: `ziphius tune SmolLM2-135M-Instruct --data chats.jsonl --lora 16 --epochs 3`
    """
    from ziphius.recipe.launch import launch
    from ziphius.recipe.plan import render_plan
    from ziphius.recipe.screen import show_summary
    from ziphius.recipe.tune import RECIPE, TuneOptions, tuning

    options = TuneOptions(data, out, lora, epochs, lr, seq, seed, device, force)
    recipe, run_folder = tuning(folder, options)
    render_plan(recipe)
    print(f"Recipe:  {run_folder / RECIPE}")
    if dry_run:
        return
    code = launch(recipe, run_folder, None, False, _debug)
    if code:
        raise typer.Exit(code)
    show_summary(run_folder)


@app.command()
def merge(
    folder: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or a run's.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
) -> None:
    """Write an adapter and its base as one model, which every program opens.

    Example: `ziphius merge runs/tune-model-seed0 tuned`
    """
    from ziphius.checkpoint.merge import merge_adapter

    merge_adapter(folder, out)


@plan.command()
def budget(
    dollars: Annotated[float, typer.Option(min=0.000001, help="What may be spent, e.g. 100.")],
    gpu: Annotated[str, typer.Option(help="An accelerator of the tables, e.g. h100; cpu measures this machine.")],
    hours: Annotated[float | None, typer.Option(min=0.001, help="At most so long on the clock, e.g. 8.")] = None,
    rate: RateOption = None,
    market: Market = None,
    seq: Annotated[int, typer.Option(min=16, help="Tokens of a sequence, e.g. 1024.")] = 1024,
    corpus: Annotated[
        list[str] | None, typer.Option(help="A text to learn from, e.g. --corpus books.txt. Repeatable.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("budget.toml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    data: DataFiles = None,
    json_: AsJson = False,
    html: Html = None,
) -> None:
    """What an amount of money buys: model, tokens and batch by a scaling rule, with a smaller and a larger neighbour.

    Writes a recipe that `ziphius run` takes. With `--gpu cpu` the speed is measured here, in about ten seconds.

    Example: `ziphius plan budget --dollars 100 --gpu h100 --hours 8 --out hundred.toml`
    """
    from ziphius.recipe.budget import BudgetOptions, run_budget

    options = BudgetOptions(dollars, gpu, hours, rate, market, seq, corpus or [], out, force, data or [])
    run_budget(options, json_, html)


@app.command("eval")
def evaluate_(
    folder: Annotated[Path, typer.Argument(help="A model folder (of this package or of Hugging Face).")],
    task: Annotated[str, typer.Option(help="A task family, such as leg_counting.")] = "leg_counting",
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value of the family; may be repeated.")] = None,
    n: Annotated[int, typer.Option(help="Problems asked.")] = 200,
    samples: Annotated[int, typer.Option(help="Sampled answers to each.")] = 4,
    temperature: Annotated[float, typer.Option()] = 0.6,
    top_p: Annotated[float, typer.Option()] = 0.95,
    max_new_tokens: Annotated[int, typer.Option()] = 256,
    thinking: Annotated[bool, typer.Option(help="Let it think before it answers.")] = True,
    split: Annotated[str, typer.Option(help="train, probe or test.")] = "test",
    seed: Annotated[int, typer.Option()] = 0,
    weights: WeightsOption = "auto",
    device: DeviceOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a model held-out problems: pass@1 sampled and greedy, pass@k, majority@k, with 95% intervals.

    Example: `ziphius eval runs/r1-cpu-seed0/stages/04-rl --task leg_counting --set max_animals=5`
    """
    from ziphius.evaluate.command import evaluate_folder
    from ziphius.evaluate.settings import EvaluationSettings
    from ziphius.recipe.schema import parse_settings
    from ziphius.recipe.screen import show_evaluation

    settings = EvaluationSettings(
        split=split, n=n, samples=samples, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens
    )
    found = evaluate_folder(
        folder, task, parse_settings(set_ or []), settings, thinking, seed, weights, device or "auto"
    )
    show_evaluation(found, as_json=json_)


@app.command()
def inspect(
    files: Annotated[list[str], typer.Argument(help="Files of chats, folders of them, or patterns in quotes.")],
    model: Annotated[
        Path | None, typer.Option(help="A folder whose tokenizer and chat template are used, e.g. that to be tuned.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="Conversations of each file.")] = 3,
    thinking: Annotated[bool, typer.Option(help="Keep the thinking in the answers.")] = True,
) -> None:
    """Show chats as an sft stage reads them, with what is trained on marked.

    Example: `ziphius inspect chats.jsonl --model runs/r1-cpu-seed0/stages/02-pretrain`
    """
    from ziphius.recipe.look import show_chats

    show_chats(files, model, n, thinking)


@app.command()
def doctor(run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]) -> None:
    """Say what is wrong with a run's training, reinforcement learning above all, and what to change.

    Example: `ziphius doctor runs/r1-cpu-seed0`
    """
    from ziphius.recipe.screen import show_findings

    show_findings(run_folder)


@app.command()
def clean(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it the list is only shown.")] = False,
) -> None:
    """List the stages that other settings left in a run's folder; with --yes delete them. What they cost stays billed.

    Example: `ziphius clean runs/r1-cpu-seed0`
    """
    from ziphius.recipe.clean import clean as clean_run

    clean_run(run_folder, yes)


@app.command()
def cost(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    rate: Annotated[
        float | None, typer.Option(min=0, help="Dollars an hour of the machine, instead of the recipe's; e.g. 2.5.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON; docs/COST.md has the schema.")] = False,
) -> None:
    """What a run took and cost, in the form of the V3 report's table, beside what was planned.

    Work that such tables leave out (data, evaluation, start-up, what was lost or done with other settings) has columns
    of its own.

    Example: `ziphius cost runs/r1-cpu-seed0 --rate 0.12`
    """
    from ziphius.recipe.costs import show_cost

    show_cost(run_folder, json_, rate)


def main() -> None:
    """The command `ziphius`: errors become one line, unless --debug asks for the traceback."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # none is used, and looking for them takes 30 ms
    try:
        sys.exit(app(standalone_mode=False))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:
        if _debug:
            raise
        show = getattr(error, "show", None)
        if show is not None:  # a mistake in the arguments: typer's own message
            show()
            sys.exit(getattr(error, "exit_code", 2))
        from ziphius.recipe.screen import one_line

        print(f"ziphius: {one_line(error)}", file=sys.stderr)
        sys.exit(1)
