"""`ziphius eval`: one evaluation of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ziphius.checkpoint.device import load_on, pick_device
from ziphius.evaluate.runner import evaluate
from ziphius.evaluate.settings import EvaluationSettings
from ziphius.ledger.model import model_folder
from ziphius.model.formats import Weights
from ziphius.tasks.registry import make_family
from ziphius.text.tokenizer import Tokenizer


def evaluate_folder(
    folder: Path,
    task: str,
    task_settings: dict[str, Any],
    settings: EvaluationSettings,
    thinking: bool,
    seed: int,
    weights: Weights = "auto",
    device: str = "auto",
) -> dict[str, Any]:
    """Load the model and tokenizer of `folder` (of a run folder: its last stage) on `device` ('auto', 'cpu', 'cuda' or
    'cuda:1') and ask problems of family `task`."""
    family = make_family(task, **task_settings)
    folder = model_folder(folder)
    tokenizer = Tokenizer.load(folder)
    model = load_on(folder, pick_device(device), weights)
    return evaluate(model, tokenizer, family, settings, thinking=thinking, seed=seed).as_dict()
