"""What a recipe will do, need and cost, before it runs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tomli_w
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from ziphius.cost.flops import count_parameters, forward_flops_per_token, train_flops_per_token
from ziphius.model.config import ModelConfig
from ziphius.recipe.memory import LIBRARIES_GIB, StageMemory, stage_memory
from ziphius.recipe.schema import SMALLEST_VOCABULARY, GRPOStage, PretrainStage, Recipe, SFTStage, TokenizerStage

# Tokens per second and active parameter that training reached per process on a two-core cloud CPU (docs/LOG.md,
# "speed of the loop"): small networks are bound by memory passes, which grow with the parameters a token meets.
_CPU_FLOPS_PER_SECOND = 60e9
_CPU_DECODE_TOKENS_PER_SECOND = 30000.0


@dataclass
class StagePlan:
    """Expected size of a stage: an upper bound where a gate may end it early."""

    name: str
    kind: str
    steps: int
    tokens: float
    flops: float
    seconds: float


def network(recipe: Recipe) -> ModelConfig:
    """The network's shape, with the vocabulary that is asked for where the recipe makes its own tokenizer."""
    made = [stage.vocab_size for stage in recipe.stages.values() if isinstance(stage, TokenizerStage)]
    return recipe.model.config(made[0] if made else SMALLEST_VOCABULARY)


def plan_stages(recipe: Recipe) -> list[StagePlan]:
    """One row a stage. Times are for a two-core CPU, within about a factor of two."""
    config = network(recipe)
    plans = []
    for name, stage in recipe.stages.items():
        steps, tokens, length, rollout = 0, 0.0, 1, 0.0
        if isinstance(stage, PretrainStage | SFTStage):
            steps = sft_steps(stage) if isinstance(stage, SFTStage) else stage.train.steps
            length = stage.seq_len
            tokens = steps * stage.rows * length
        elif isinstance(stage, GRPOStage):
            g = stage.grpo
            steps, length = stage.train.steps, 2 * g.max_new_tokens
            rollout = steps / g.mini_batches * g.prompts_per_step * g.group_size * g.max_new_tokens
            tokens = 2 * rollout
        frozen = isinstance(stage, SFTStage | GRPOStage) and stage.train.lora is not None
        flops = tokens * train_flops_per_token(config, length, mtp=not frozen, frozen=frozen)
        seconds = flops / (recipe.machine.train_flops_per_second or _CPU_FLOPS_PER_SECOND)
        seconds += rollout / _CPU_DECODE_TOKENS_PER_SECOND
        plans.append(StagePlan(name, stage.kind, steps, tokens, flops, seconds))
        if isinstance(stage, SFTStage | GRPOStage) and recipe.evaluation.tasks:
            plans.append(_plan_evaluation(recipe, config, name))
    return plans


def sft_steps(stage: SFTStage) -> int:
    """As many as are asked for, or fewer: where the epochs end if every sample takes a row for itself."""
    most = _most_steps(stage)
    return min(stage.train.steps or most, most)


def _most_steps(stage: SFTStage) -> int:
    return stage.epochs * -(-_samples(stage) // stage.rows)


def _samples(stage: SFTStage) -> int:
    if stage.path is None:
        return stage.examples
    from ziphius.text.rows import count_rows  # takes a moment to import

    return sum(count_rows(Path(path)) for path in stage.files())


def _what_binds(name: str, stage: SFTStage) -> str:
    """Whether a stage's epochs or its steps will end it."""
    most = _most_steps(stage)
    epochs = f"{stage.epochs} epoch{'s' * (stage.epochs > 1)} of {_samples(stage)} samples"
    asked = stage.train.steps
    if asked is None or asked >= most:
        before = "" if asked is None else f" of the {asked} asked for"
        return f"{name}: {epochs} end it after at most {most} steps{before}, fewer where samples share rows."
    return f"{name}: {asked} steps asked for end it, or {epochs} where samples share rows."


def _plan_evaluation(recipe: Recipe, config: ModelConfig, after: str) -> StagePlan:
    """Every answer as long as it may be, each problem's samples and one greedy answer."""
    asked = recipe.evaluation
    tokens = float(len(asked.tasks) * asked.n * (asked.samples + 1) * asked.max_new_tokens)
    flops = tokens * forward_flops_per_token(config, asked.max_new_tokens)
    return StagePlan(f"evaluate {after}", "evaluation", 0, tokens, flops, tokens / _CPU_DECODE_TOKENS_PER_SECOND)


def memory_by_stage(recipe: Recipe) -> dict[str, StageMemory]:
    """What a process needs in each stage that trains."""
    config = network(recipe)
    trained = {n: s for n, s in recipe.stages.items() if not isinstance(s, TokenizerStage)}
    return {name: stage_memory(recipe, stage, config) for name, stage in trained.items()}


def memory_gib(recipe: Recipe) -> float:
    """The most that a process needs in any stage."""
    return max((memory.total for memory in memory_by_stage(recipe).values()), default=LIBRARIES_GIB)


def render_plan(recipe: Recipe) -> None:
    """Print the resolved recipe, the sizes and the expected time and cost."""
    console = Console()
    resolved = recipe.model_dump(mode="json", exclude_none=True)
    console.print(Syntax(tomli_w.dumps(resolved), "toml", background_color="default"))
    config = network(recipe)
    counts = count_parameters(config)
    rate = recipe.price.dollars_per_hour
    speed = recipe.machine.train_flops_per_second
    machine = f"training at {speed / 1e12:.3g} TFLOP/s" if speed else "a two-core CPU"
    table = Table(title=f"Plan of {recipe.name} ({machine}; upper bounds where a gate may end a stage)")
    for heading in ("stage", "kind", "steps", "tokens", "PFLOP", "minutes", "dollars"):
        table.add_column(heading, justify="left" if heading in ("stage", "kind") else "right")
    plans = plan_stages(recipe)
    for p in plans:
        cost = f"{p.seconds / 3600 * rate:.4f}"
        table.add_row(
            p.name, p.kind, str(p.steps), f"{p.tokens:,.0f}", f"{p.flops / 1e15:.3f}", f"{p.seconds / 60:.1f}", cost
        )
    total = sum(p.seconds for p in plans)
    table.add_section()
    table.add_row("total", "", "", "", "", f"{total / 60:.1f}", f"{total / 3600 * rate:.4f}")
    console.print(table)
    for name, stage in recipe.stages.items():
        if isinstance(stage, SFTStage):
            console.print(_what_binds(name, stage), highlight=False)
    console.print(_memory_table(recipe))
    console.print(
        f"Parameters: {counts.total + counts.mtp_total:,} with multi-token prediction, {counts.active:,} active per "
        f"token. Times are rough (a factor of two either way); rate ${rate}/h"
        f"{': ' + recipe.price.what if rate else ''}.",
        highlight=False,
    )


def _memory_table(recipe: Recipe) -> Table:
    stages = memory_by_stage(recipe)
    parts = list(dict.fromkeys(part for memory in stages.values() for part in memory.parts))
    table = Table(title="Memory of a process on a CPU, GiB (within 15%)")
    table.add_column("")
    for name in stages:
        table.add_column(name, justify="right")
    for part in parts:
        table.add_row(part, *[f"{m.parts[part]:.2f}" if part in m.parts else "" for m in stages.values()])
    table.add_section()
    table.add_row("total", *[f"{memory.total:.2f}" for memory in stages.values()])
    return table
