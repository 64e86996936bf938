"""Whether the memory that is free holds a stage, and what would make it fit. Imports no torch."""

from __future__ import annotations

from ziphius.disk.memory import free_gib
from ziphius.recipe.memory import LIBRARIES_GIB, micro_batch
from ziphius.recipe.plan import memory_by_stage
from ziphius.recipe.schema import GRPOStage, Recipe, RecipeError, SFTStage, TokenizerStage, changed_recipe

_BAND = 1.15  # the plan may be as much too high


def refuse_too_large(recipe: Recipe, name: str, processes: int, free: float | None = None) -> None:
    """Raise RecipeError where `processes` that have loaded their libraries find too little memory for stage `name`.

    `free`: GiB, measured unless given.
    """
    room = ((free_gib() if free is None else free) + processes * LIBRARIES_GIB) / processes
    need = memory_by_stage(recipe)[name]
    if need.total <= room * _BAND:
        return
    largest = sorted(need.parts, key=need.parts.__getitem__, reverse=True)[:3]
    shown = ", ".join(f"{part} {need.parts[part]:.1f}" for part in largest)
    each = f" in each of {processes} processes" if processes > 1 else ""
    raise RecipeError(
        f"{name} needs about {need.total:.1f} GiB{each} ({shown}), and there are {room:.1f}; "
        + _mend(recipe, name, processes, room)
    )


def _mend(recipe: Recipe, name: str, processes: int, room: float) -> str:
    """The fewest changes that fit, cheapest first: smaller micro-batches, recomputation, low-rank updates."""
    raw, total = recipe.model_dump(mode="json"), memory_by_stage(recipe)[name].total
    tried: list[str] = []
    for change in _changes(recipe, name):
        changed = changed_recipe(raw, change)
        raw = changed.model_dump(mode="json")
        tried.append(f"--set {change}")
        total = memory_by_stage(changed)[name].total
        if total <= room:
            return f"with {' '.join(tried)} it needs {total:.1f}"
    if processes > 1:
        return "use fewer processes (--set machine.processes=1)"
    even = f"even with {' '.join(tried)}" if tried else "with nothing left to save"
    return f"{even} it needs {total:.1f}: use a machine with more memory, or a smaller network"


def _changes(recipe: Recipe, name: str) -> list[str]:
    stage = recipe.stages[name]
    assert not isinstance(stage, TokenizerStage)
    rows, length = micro_batch(stage)
    micro = "grpo.micro_tokens" if isinstance(stage, GRPOStage) else "micro_rows"
    least = 8 * length if isinstance(stage, GRPOStage) else 1
    changes = [f"{name}.{micro}={least}"] if rows > (8 if isinstance(stage, GRPOStage) else 1) else []
    if stage.train.recompute != "full":
        changes.append(f"{name}.train.recompute='full'")
    if isinstance(stage, SFTStage | GRPOStage) and stage.train.lora is None and stage.train.optimizer.kind == "adamw":
        changes.append(f"{name}.train.lora.rank=16")
    return changes
