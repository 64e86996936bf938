"""Counts of a network as JSON and on the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ziphius.cost.flops import (
    count_parameters,
    forward_flops_per_token,
    kv_bytes_per_token,
    train_flops_per_token,
    weight_bytes,
)
from ziphius.cost.machine import BYTES
from ziphius.cost.quantity import short
from ziphius.cost.shape import Shape


def counts_json(model: str, shape: Shape, seq: int, context: int) -> dict[str, Any]:
    """The form of `ziphius plan count --json`: plain numbers, for they are exact."""
    return {
        "model": model,
        "parameters": asdict(count_parameters(shape)),
        "train_flops_per_token": {
            "seq": seq,
            "causal": train_flops_per_token(shape, seq),
            "non_causal": train_flops_per_token(shape, seq, causal=False),
            "causal_with_mtp": train_flops_per_token(shape, seq, mtp=True),
        },
        "forward_flops_per_token": {
            "context": context,
            "prefill": forward_flops_per_token(shape, context / 2),
            "decode": forward_flops_per_token(shape, context, absorbed=True),
        },
        "kv_bytes_per_token": {"bf16": kv_bytes_per_token(shape, 2), "fp8": kv_bytes_per_token(shape, 1)},
        "weight_bytes": {name: weight_bytes(shape, BYTES[name]) for name in ("bf16", "fp8", "fp4")},
    }


def show_counts(model: str, shape: Shape, seq: int, context: int, as_json: bool) -> None:
    """Print the counts."""
    found = counts_json(model, shape, seq, context)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    counts, train, forward = found["parameters"], found["train_flops_per_token"], found["forward_flops_per_token"]
    rows = [
        ("parameters", f"{counts['total']:,} ({short(counts['total'])})"),
        ("active per token", f"{counts['active']:,} ({short(counts['active'])})"),
        ("active without input embedding", f"{counts['active_without_embedding']:,}"),
        ("multi-token prediction, more", f"{counts['mtp_total']:,}; active {counts['mtp_active']:,}"),
        (f"training, sequences of {seq:,}", f"{train['causal'] / 1e9:,.1f} GFLOP a token, causal"),
        ("  the same, not causal", f"{train['non_causal'] / 1e9:,.1f}"),
        ("  the same, causal with MTP", f"{train['causal_with_mtp'] / 1e9:,.1f}"),
        (f"prefill of {context:,} tokens", f"{forward['prefill'] / 1e9:,.1f} GFLOP a token"),
        (f"decoding at {context:,} tokens", f"{forward['decode'] / 1e9:,.1f} GFLOP a token"),
        ("cache", f"{found['kv_bytes_per_token']['bf16']:,.0f} bytes a token in BF16, half in FP8"),
        *((f"weights in {name.upper()}", f"{size / 1e9:,.1f} GB") for name, size in found["weight_bytes"].items()),
    ]
    table = Table(title=model, show_header=False, box=None, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
