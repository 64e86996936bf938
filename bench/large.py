"""A folder nearly as large as memory: written in FP8 blocks, served, decoded, and larger than the memory that is free.

Random weights of DeepSeek-V2-Lite's published shape (15.7B parameters, 16 GB in blocks of e4m3), written a layer at a
time into a folder of its own, which is deleted at the end. Measured:

- `ziphius serve` on the folder, none of it in memory: seconds until it answers, its memory, and tokens per second of a
  lone request beyond the first token. Times the bytes that one token reads of the weights, over what a plain sum of a
  large array reads per second, that is the share of the memory's speed (goal: 60%).
- the same folder taken as larger than memory, none of it there: what is read from disk a token, and tokens per second.
- llama.cpp on the same weights in q8_0 (8.5 bits), where it is installed (bench/engine.py says how).

    python bench/large.py                               # five minutes on two cores, 17 GB of disk, 18 GiB of memory
    python bench/large.py --llama LLAMA/bin/python      # 35 GB of disk; writing the file takes five minutes more
    python bench/large.py --quick                       # four layers
    python bench/large.py --place FOLDER                # where the disk has room (default: the system's temporary one)

Writes bench/results/large-MACHINE.json.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from common import arguments, console, quiet_libraries, write_results
from engine import read_speed
from engine_peers import Behind, Kept, start
from safetensors.torch import save_file
from serve import OURS, WORDS, ask, served

from ziphius.checkpoint import fp8, mapped
from ziphius.checkpoint.gguf import write_gguf
from ziphius.checkpoint.names import layer_of, published_places
from ziphius.checkpoint.shards import INDEX
from ziphius.disk.memory import bytes_read
from ziphius.model.config import ModelConfig
from ziphius.model.presets import preset
from ziphius.model.transformer import Transformer
from ziphius.text.tokenizer import train_tokenizer

PROMPT_LENGTH, NEW_TOKENS, ROUNDS = 16, 48, 5
GOALS = {"start_seconds": 60.0, "share_of_memory_speed": 0.6}
POOL = 1 << 26  # random numbers that every matrix takes its values from, each beginning elsewhere
GIB = 2**30


def shape(quick: bool) -> ModelConfig:
    limit = {"max_position_embeddings": 4096}
    return preset("deepseek-v2-lite").model_copy(update=limit | ({"num_hidden_layers": 4} if quick else {}))


def write_folder(folder: Path, config: ModelConfig, seed: int) -> None:
    """The folder as DeepSeek would publish it, a file a layer, with a tokenizer of a few words."""
    draw = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(POOL, generator=generator)
    pool, pool_bf16 = (normal * 100).clamp_(-448, 448).to(torch.float8_e4m3fn), (normal * 0.02).bfloat16()
    del normal
    with torch.device("meta"):
        state = Transformer(config).state_dict()
    shapes = {name: state[place.name][place.at].shape for name, place in published_places(state, config).items()}
    layers = sorted({layer_of(name) for name in shapes}, key=lambda layer: -1 if layer is None else layer)
    weight_map = {}
    for layer in layers:
        file = f"model-{len(set(weight_map.values())) + 1:05d}-of-{len(layers):05d}.safetensors"
        tensors = {}
        for name in (name for name in shapes if layer_of(name) == layer):
            tensors |= dict(_tensors(name, shapes[name], pool, pool_bf16, draw))
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    described = config.to_hf() | {"torch_dtype": "bfloat16", "quantization_config": fp8.CONFIG}
    (folder / "config.json").write_text(json.dumps(described, indent=1))
    train_tokenizer([" ".join(draw.choices(WORDS, k=12)) for _ in range(400)], 512).save(folder)


def _tensors(
    name: str, size: torch.Size, pool: torch.Tensor, pool_bf16: torch.Tensor, draw: random.Random
) -> Iterator[tuple[str, torch.Tensor]]:
    if len(size) == 1:
        yield name, torch.ones(size, dtype=torch.bfloat16)
        return
    source = pool if fp8.is_kept_so(name) else pool_bf16
    count, begin = size.numel(), draw.randrange(POOL // 2)
    values = torch.empty(count, dtype=source.dtype)
    for at in range(0, count, POOL // 2):
        part = values[at : at + POOL // 2]
        part.copy_(source[begin : begin + len(part)])
    yield name, values.view(size)
    if source is pool:
        rows, columns = (-(-side // 128) for side in size)
        yield name + fp8.SCALE_SUFFIX, torch.full((rows, columns), 0.02 / 100)


def bytes_of_a_token(folder: Path, config: ModelConfig) -> float:
    """Bytes that one token reads: of the experts its own, of the embedding a row; `kv_b_proj` in BF16."""
    routing = config.routing
    assert routing is not None
    total = 0.0
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name in ("__metadata__", "model.embed_tokens.weight"):
                continue
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            share = routing.top_k / routing.experts if ".experts." in name else 1
            total += size * share * (2 if name.endswith("kv_b_proj.weight") else 1)
    return total


def forget(folder: Path) -> None:
    """Have the kernel drop what it keeps of the folder's files."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def serve_it(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """A server from a cold start, and a lone request of a token and of many, by turns."""
    forget(folder)
    began = time.perf_counter()
    with served(OURS, folder, options.threads) as (port, process):
        found: dict[str, Any] = {"start_seconds": time.perf_counter() - began, "read_bytes_per_second": []}
        seconds: dict[int, list[float]] = {1: [], NEW_TOKENS: []}
        for number in range(ROUNDS + 1):
            found["read_bytes_per_second"].append(
                read_speed(torch.device("cpu"))
            )  # by turns: neighbours' noise is shared
            for tokens, times in seconds.items():
                seen = asyncio.run(ask(port, _body(str(folder), tokens, number)))
                if seen.failure or seen.tokens != tokens:
                    raise RuntimeError(f"{seen.failure}, {seen.tokens} of {tokens} tokens")
                times.append(seen.ended - seen.began)
        found |= {"memory": _memory(process)}
    steps = [(many - one) / (NEW_TOKENS - 1) for one, many in zip(seconds[1][1:], seconds[NEW_TOKENS][1:], strict=True)]
    return found | {"tokens_per_second": 1 / median(steps), "slowest": 1 / max(steps), "fastest": 1 / min(steps)}


def _body(model: str, tokens: int, number: int) -> bytes:
    fields = {"model": model, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True}
    question = " ".join(random.Random(number).choices(WORDS, k=6))
    return json.dumps(fields | {"messages": [{"role": "user", "content": question}]}).encode()


def _memory(process: psutil.Process) -> dict[str, float]:
    """GiB: the server's own pages, and those of files that it has mapped (which the kernel may drop)."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    rows = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines() if line.startswith(("Rss", "VmHWM"))}
    return {
        "own_gib": rows["RssAnon"] / 2**20,
        "mapped_gib": rows["RssFile"] / 2**20,
        "peak_gib": rows["VmHWM"] / 2**20,
    }


def paged(folder: Path, prompt: list[int]) -> dict[str, Any]:
    """The folder taken as larger than memory: nothing read ahead; bytes from disk and seconds of each token."""
    forget(folder)
    mapped.free_gib = lambda: 0.0
    before, began = bytes_read(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        kept = Kept(folder, "fp8", 1)
    found: dict[str, Any] = {
        "load_seconds": time.perf_counter() - began,
        "load_bytes": bytes_read() - before,
        "tokens": [],
    }
    for tokens in (1, 2, 4, 8, 16, 32):
        before, began = bytes_read(), time.perf_counter()
        kept.run([prompt], tokens)
        spent = time.perf_counter() - began
        found["tokens"].append({"tokens": tokens, "read_bytes": bytes_read() - before, "seconds": spent})
    return found


def peer_rate(peer: Behind, prompt: list[int]) -> float:
    """Tokens per second beyond the first."""
    steps = []
    for _ in range(ROUNDS + 1):
        seconds = []
        for tokens in (1, NEW_TOKENS):
            began = time.perf_counter()
            peer.run([prompt], tokens)
            seconds.append(time.perf_counter() - began)
        steps.append((seconds[1] - seconds[0]) / (NEW_TOKENS - 1))
    return 1 / median(steps[1:])


def llama(folder: Path, place: Path, prompt: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """llama.cpp on the same weights in q8_0, after the folder has gone."""
    file = place / "q8_0.gguf"
    write_gguf(folder, file, "q8_0")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    try:
        length = PROMPT_LENGTH + NEW_TOKENS
        with start("llama.cpp", options.llama, file, "bf16", options.threads, 1, length) as peer:
            return peer.about | {"bytes": file.stat().st_size, "tokens_per_second": peer_rate(peer, prompt)}
    except RuntimeError as error:
        return {"failed": str(error)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--place", type=Path, default=None, help="folder on the disk to write to")
    parser.add_argument("--llama", type=Path, default=None, help="Python of an environment that has llama-cpp-python")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(options.threads)
    config = shape(options.quick)
    prompt = [random.Random(options.seed).randrange(2, config.vocab_size) for _ in range(PROMPT_LENGTH)]
    with tempfile.TemporaryDirectory(dir=options.place) as name:
        place = Path(name)
        folder = place / "model"
        folder.mkdir()
        began = time.perf_counter()
        write_folder(folder, config, options.seed)
        size, active = sum(path.stat().st_size for path in folder.iterdir()), bytes_of_a_token(folder, config)
        console.print(
            f"{size / 1e9:.1f} GB written in {time.perf_counter() - began:.0f} s; a token reads {active / 1e9:.2f} GB"
        )
        gc.collect()
        content: dict[str, Any] = {"config": config.to_hf(), "bytes": size, "bytes_of_a_token": active, "goals": GOALS}
        ours = content["ours"] = serve_it(folder, options)
        speed = median(ours["read_bytes_per_second"])
        ours["share_of_memory_speed"] = ours["tokens_per_second"] * active / speed
        console.print(
            f"answers after {ours['start_seconds']:.1f} s; {ours['tokens_per_second']:.1f} tokens/s, "
            f"{ours['share_of_memory_speed']:.0%} of the {speed / 1e9:.1f} GB/s that memory reads; {ours['memory']}"
        )
        content["paged"] = paged(folder, prompt)
        console.print(content["paged"])
        write_results("large", options, content)
        if options.llama:
            content["llama.cpp"] = llama(folder, place, prompt, options)
            console.print(content["llama.cpp"])
            write_results("large", options, content)


if __name__ == "__main__":
    main()
