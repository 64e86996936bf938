"""The model that a stage begins from, and the folder that it leaves."""

from __future__ import annotations

from pathlib import Path

import torch

from ziphius.checkpoint.adapter import Adapter, save_adapter
from ziphius.checkpoint.folder import load_model, save_state
from ziphius.ledger.folder import read_json
from ziphius.model.transformer import Transformer
from ziphius.recipe.job import Job
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.lora import LoRA
from ziphius.train.settings import LoopSettings, LoRASettings
from ziphius.train.trainer import Trainer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def load_input(
    job: Job, before: Path, train: LoopSettings, lora: LoRASettings | None = None
) -> tuple[Transformer, LoRA | None]:
    """The model in `before` on the place's device, to be trained: in fp32, or frozen with the updates of `lora`.

    That of the recipe's start has the recipe's overrides. A frozen network is held as the recipe stores it where its
    products are in BF16.
    """
    model = job.recipe.model
    overrides = model.overrides if model.from_ is not None and before == model.start() else None
    kept = lora is not None and train.precision == "bf16"
    dtype = _DTYPES[model.stored] if kept else torch.float32
    network = load_model(before, dtype, job.place.device, overrides)
    return network, None if lora is None else LoRA(network, lora, job.recipe.seed)


def load_to_ask(job: Job, folder: Path) -> Transformer:
    """The model in `folder` to be evaluated, in the format that it is stored in."""
    return load_model(folder, _DTYPES[job.recipe.model.stored], job.place.device)


def write_output(
    job: Job, trainer: Trainer, lora: LoRA | None, folder: Path, before: Path | None, tokenizer: Tokenizer
) -> None:
    """The stage's model as a folder that others open, with the sampling settings of the one that it began from.

    What `lora` learned is written as an adapter of `before`, or where that is an adapter, too, of its base.
    """

    def write() -> None:
        config = trainer.model.config
        sampling = None if before is None else read_json(before / "generation_config.json")
        if lora is None:
            dtype = _DTYPES[job.recipe.model.stored]
            save_state(config, trainer.weights.state(), folder, dtype=dtype, generation_config=sampling)
        else:
            assert before is not None
            save_adapter(Adapter.on(before, lora.factors()), config, folder, sampling)
        tokenizer.save(folder)

    job.place.on_main(write)
