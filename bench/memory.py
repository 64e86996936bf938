"""What `ziphius run --dry-run` says of memory, beside what a process of each stage takes at its peak (CPU).

    python bench/memory.py            # recipes/r1-cpu.toml, and SmolLM2-135M's shape tuned whole and by low ranks
    python bench/memory.py --quick    # the first alone

Each stage runs a few steps in a process of its own, saves included; the peak is its VmHWM. The goal is 15%.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import arguments, console

from ziphius.checkpoint import save_model
from ziphius.model.llama.config import LlamaConfig
from ziphius.model.transformer import Transformer
from ziphius.recipe.plan import memory_by_stage
from ziphius.recipe.schema import check_recipe, load_recipe
from ziphius.text.tokenizer import train_tokenizer

R1 = [
    "pretrain.train.steps=12", "pretrain.train.gate_every=6", "pretrain.train.schedule.warmup_steps=1",
    "cold_start.train.steps=11", "rl.train.steps=3", "rl.train.schedule.warmup_steps=1", "evaluation.tasks=[]",
    "tokenizer.documents=300", "machine.processes=1",
]  # fmt: skip
SMOLLM2 = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "tie_word_embeddings": True,
}  # fmt: skip
SUMS = {"family": "chain_sum", "settings": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}
ONE = """
import json, sys
from pathlib import Path
from ziphius.recipe.run import run_recipe
from ziphius.recipe.schema import check_recipe
run_recipe(check_recipe(json.loads(sys.argv[1]), "bench"), Path(sys.argv[2]), until=sys.argv[3])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def main() -> None:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare("r1-cpu", load_recipe("recipes/r1-cpu.toml", R1).model_dump(mode="json"), Path(folder) / "r1")
        if options.quick:
            return
        model = smollm2(Path(folder) / "model")
        for name, train in (("whole", {}), ("low ranks", {"lora": {"rank": 16}})):
            compare(f"SmolLM2's shape, {name}", tuning(model, train), Path(folder) / name)


def compare(title: str, raw: dict[str, Any], run: Path) -> None:
    for stage, planned in memory_by_stage(check_recipe(raw, "bench")).items():
        done = subprocess.run([sys.executable, "-c", ONE, json.dumps(raw), run, stage], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        taken = int(done.stdout.split()[-1]) / 2**20
        ratio = planned.total / taken
        console.print(f"{title}, {stage}: {planned.total:.2f} GiB planned, {taken:.2f} taken ({ratio:.2f})")


def smollm2(folder: Path) -> Path:
    """Random weights of that shape."""
    tokenizer = train_tokenizer(["What is 3 + 4? 12 + 7 = 19"], 300)
    model = Transformer(LlamaConfig(**SMOLLM2))
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder, dtype=torch.bfloat16)
    tokenizer.save(folder)
    return folder


def tuning(model: Path, train: dict[str, Any]) -> dict[str, Any]:
    stage = {"kind": "sft", "task": "sums", "examples": 64, "epochs": 1, "seq_len": 128, "rows": 4, "micro_rows": 4}
    return {
        "name": "memory",
        "model": {"from": str(model)},
        "tasks": {"sums": SUMS},
        "stages": {"sft": stage | {"train": {"steps": 2} | train}},
        "machine": {"processes": 1},
    }


if __name__ == "__main__":
    main()
