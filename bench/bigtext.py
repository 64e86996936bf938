"""Training from one large text file: time and memory of each step, under a limit of address space.

    python bench/bigtext.py --gb 10 --limit-gb 8

Writes a file of that size (removed at the end), then does what `ziphius run` does: checks it, trains the tokenizer
and pretrains a tiny model for some steps. Prints seconds, MB/s and the peak of resident memory until then.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

RECIPE = {
    "name": "bigtext",
    "model": {"depth": 2},
    "stages": {
        "tokenizer": {"kind": "tokenizer", "vocab_size": 4096},
        "pretrain": {"kind": "pretrain", "seq_len": 256, "rows": 8, "train": {"steps": 20}},
    },
    "machine": {"processes": 1},
}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_text(path: Path, size: int) -> None:
    """Lines of words by Zipf's law, a block of 1.6 MB over and over."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(map(chr, rng.integers(97, 123, rng.integers(2, 11)))) for _ in range(50_000)])
    drawn = words[np.minimum(rng.zipf(1.2, (16_000, 15)) - 1, len(words) - 1)]
    block = ("\n".join(map(" ".join, drawn)) + "\n").encode()
    with open(path, "wb") as file:
        while file.tell() < size:
            file.write(block)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.0, help="size of the file, in 10^9 bytes")
    parser.add_argument("--limit-gb", type=float, default=8.0, help="address space that the process may take")
    parser.add_argument("--documents", default="file", choices=("file", "line", "paragraph"))
    options = parser.parse_args()

    from ziphius.ledger.clock import Clock
    from ziphius.recipe.inputs import check_inputs
    from ziphius.recipe.schema import check_recipe
    from ziphius.recipe.stages import Job, run_pretrain, run_tokenizer
    from ziphius.text.tokenizer import Tokenizer
    from ziphius.train.place import Place

    limit = int(options.limit_gb * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    print(f"{'':12}{'seconds':>9}{'MB/s':>8}{'peak MiB':>10}")

    def report(name: str, began: float, size: float | None = None) -> None:
        seconds = time.perf_counter() - began
        speed = f"{size / seconds / 1e6:8.0f}" if size else " " * 8
        print(f"{name:12}{seconds:9.1f}{speed}{peak_mib():10.0f}", flush=True)

    report("import", time.perf_counter())
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "big.txt"
        began = time.perf_counter()
        write_text(path, int(options.gb * 1e9))
        report("write", began, path.stat().st_size)
        recipe = check_recipe(
            RECIPE | {"corpora": {"big": {"path": str(path), "documents": options.documents}}}, "here"
        )
        job = Job(recipe, Place(), True, {}, Clock(None, {}), Path(folder) / "samples")
        began = time.perf_counter()
        check_inputs(recipe)
        report("check", began, path.stat().st_size)
        began = time.perf_counter()
        run_tokenizer(job, recipe.stages["tokenizer"], Path(folder))
        report("tokenizer", began, json.loads((Path(folder) / "data.json").read_text())["bytes"])
        began = time.perf_counter()
        stage = Path(folder) / "pretrain"
        stage.mkdir()
        run_pretrain(job, recipe.stages["pretrain"], stage, Tokenizer.load(folder), "pretrain")
        report("pretrain", began)


if __name__ == "__main__":
    main()
