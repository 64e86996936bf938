"""`ziphius tune`: the recipe for the commonest wish, a model's folder and some chats. Imports no torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import tomli_w

from ziphius.cost.flops import count_parameters
from ziphius.disk.write import write_text
from ziphius.recipe.errors import RecipeError
from ziphius.recipe.network import ModelSettings
from ziphius.recipe.schema import Recipe, check_recipe
from ziphius.text.paths import CHATS, expand

RECIPE = "tune.toml"  # in the run's folder
LORA_RANK = 16
_WHOLE_BELOW = 1_000_000_000  # parameters up to which all are trained
_LOOKED_AT = 1000  # conversations whose lengths decide on the rows'
_ROW_STEP, _LONGEST_ROW = 64, 4096
_MOST_ROWS, _STEPS, _MICRO_TOKENS = 16, 20, 4096


@dataclass(frozen=True)
class TuneOptions:
    """The options as they were typed; None where one was left out."""

    data: Sequence[str]
    out: Path | None = None
    lora: int | None = None
    epochs: int = 2
    lr: float | None = None
    seq: int | None = None
    seed: int = 0
    device: str | None = None
    force: bool = False


def tuning(folder: Path, options: TuneOptions) -> tuple[Recipe, Path]:
    """The recipe that tunes `folder`, and the run's folder for it.

    Raises ValueError for a folder or data that cannot be used.
    """
    model = ModelSettings(**{"from": str(folder)})
    parameters = count_parameters(model.config(0)).total
    rank = options.lora if options.lora is not None else (0 if parameters <= _WHOLE_BELOW else LORA_RANK)
    rate = learning_rate(parameters, rank > 0) if options.lr is None else options.lr
    seq, rows = _rows(model, options)
    train: dict[str, Any] = {
        "optimizer": {"lr": rate, "weight_decay": 0.0},
        "schedule": {"kind": "cosine"},
    }
    if rank:
        train["lora"] = {"rank": rank, "alpha": 2.0 * rank}
    stage = {
        "kind": "sft",
        "path": [os.path.abspath(path) if Path(path).exists() else path for path in options.data],
        "epochs": options.epochs,
        "seq_len": seq,
        "rows": rows,
        "micro_rows": max(1, min(rows, _MICRO_TOKENS // seq)),
        "train": train,
    }
    name = f"tune-{folder.resolve().name}"
    raw = {
        "name": name,
        "seed": options.seed,
        "model": {"from": os.path.abspath(folder)},
        "stages": {"sft": stage},
    }
    here = {"machine": {"device": options.device}} if options.device else {}  # as of `ziphius run`: not the recipe's
    recipe = check_recipe(raw | here, "the recipe of this tuning")
    out = options.out or Path("runs") / f"{recipe.name}-seed{recipe.seed}"
    _keep(raw, out / RECIPE, options.force)
    return recipe, out


def learning_rate(parameters: float, low_rank: bool) -> float:
    """What R1's students were tuned with, by size: 1e-4 for 1.5 B parameters, 6e-5 for 32 B (DeepSeek-R1, Nature 2025,
    supplement), taken on to smaller ones by a cube root; ten times that for low-rank updates (Schulman et al. 2025,
    "LoRA Without Regret")."""
    whole = min(1e-3, max(2e-5, 1e-4 * (1.5e9 / parameters) ** (1 / 3)))
    return float(f"{min(2e-3, 10 * whole) if low_rank else whole:.1e}")


def _rows(model: ModelSettings, options: TuneOptions) -> tuple[int, int]:
    """Tokens of a row, and rows of a step. A row holds all but the longest hundredth of the first conversations, within
    what the model reaches; the rows are few enough that an epoch has `_STEPS` steps."""
    from ziphius.recipe.inputs import chat_samples
    from ziphius.text.rows import count_rows
    from ziphius.text.tokenizer import Tokenizer

    files = expand(list(options.data), CHATS)
    samples = chat_samples(files, Tokenizer.load(model.start()), True, None, Counter(), [])
    lengths = sorted(len(tokens) for (tokens, _), _ in islice(samples, _LOOKED_AT))
    if not lengths:
        raise RecipeError(f"{', '.join(options.data)}: no conversation with an answer to learn from")
    wanted = lengths[(99 * (len(lengths) - 1)) // 100]
    room = min(_LONGEST_ROW, model.config(0).max_position_embeddings)
    seq = options.seq or min(room, -(-wanted // _ROW_STEP) * _ROW_STEP)
    tokens = sum(map(count_rows, map(Path, files))) * sum(lengths) / len(lengths)
    return seq, max(1, min(_MOST_ROWS, round(tokens / seq / _STEPS)))


def _keep(raw: dict[str, Any], path: Path, force: bool) -> None:
    """Write the recipe, unless another stands there."""
    text = f"""\
# Written by `ziphius tune`, to be read and changed; `ziphius run {path}` runs it again.

{tomli_w.dumps(raw)}"""
    if path.exists() and path.read_text() != text and not force:
        raise RecipeError(
            f"{path} exists already and says otherwise; run it with `ziphius run {path}`, name another folder with "
            "--out, or write over it with --force (what it trained stays)"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
