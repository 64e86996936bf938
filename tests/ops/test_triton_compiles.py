"""The Triton kernels compile for Hopper, which takes no GPU, and fit its shared memory."""

import json
import os
import subprocess
import sys

import pytest

from ziphius.ops import triton as kernels

SCRIPT = """
import json

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ziphius.ops.triton import grouped, paged, segments, sizes

NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}

def build(kernel, types, constants, **options):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    places = {name: (place,) for place, name in enumerate(kernel.arg_names)}
    aligned = [n for n, t in signature.items() if t.startswith("*") or n == "memory_stride"]
    source = ASTSource(
        kernel, signature, {places[n]: v for n, v in constants.items()},
        {places[n]: [["tt.divisibility", 16]] for n in aligned if signature[n] != "constexpr"},
    )
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

def attend(H, C, R, dtype, tiles):
    splits = paged.Splits.of(H)
    types = {name: f"*{dtype}" for name in ("q_NHX", "memory_SX", "out_NHC")}
    types |= {"tables_BM": "*i32", "rows_N": "*i32", "positions_N": "*i64"}
    types |= {"partial_NPHC": "*fp32", "mass_NPH": "*fp32", "scale_log2": "fp32"}
    types |= dict.fromkeys(("memory_stride", "table_stride", "H", "P"), "i32")
    constants = dict(
        C=C, R=R, PAGE=16, SPLIT=splits.length, MOST=splits.most, BLOCK_H=tiles.heads, BLOCK_S=tiles.columns,
        BLOCK_C=sizes.padded(C), BLOCK_R=sizes.padded(R), WIDE=False,
    )
    if H == 1:  # Triton makes a constant of an argument that is one
        del types["H"], types["P"]
        constants |= {"H": 1, "P": 1}
    return build(paged._attend_split, types, constants, num_warps=tiles.warps, num_stages=tiles.stages)

def share(H, G, K, dtype, tiles):
    splits = paged.Splits.of(H)
    types = {name: f"*{dtype}" for name in ("q_NHK", "memory_SX", "out_NHV")}
    types |= {"tables_BM": "*i32", "rows_N": "*i32", "positions_N": "*i64"}
    types |= {"partial_NPHV": "*fp32", "mass_NPH": "*fp32", "scale_log2": "fp32"}
    types |= dict.fromkeys(("memory_stride", "table_stride", "H", "G", "P"), "i32")
    constants = dict(
        K=K, V=K, VALUES=G * K, PAGE=16, SPLIT=splits.length, MOST=splits.most, BLOCK_H=tiles.heads,
        BLOCK_S=tiles.columns, BLOCK_K=sizes.padded(K), BLOCK_V=sizes.padded(K), WIDE=False,
    )
    return build(grouped.attend_split, types, constants, num_warps=tiles.warps, num_stages=tiles.stages)

def merge(C):
    types = {"partial_NPHC": "*fp32", "mass_NPH": "*fp32", "positions_N": "*i64", "out_NHC": "*bf16"}
    types |= {"H": "i32", "P": "i32"}
    return build(paged.merge_splits, types, dict(C=C, SPLIT=256, MOST=128, BLOCK_C=C, BLOCK_P=16), num_warps=4)

def segment(kernel, H, G, K, V, dtype, backward=True):
    heads = lambda heads, width: torch.empty(1, 1, heads, width, dtype=dtype)
    q = heads(H, K)
    types = {name: f"*{NAMES[dtype]}" for name in kernel.arg_names if name.endswith(("K", "V"))}
    types |= {name: "*fp32" for name in kernel.arg_names if name.endswith("_BHT")}
    types |= dict.fromkeys(("starts_BT", "ends_BT"), "*i32") | {"scale": "fp32", "scale_log2": "fp32", "T": "i32"}
    constants = segments._sizes(q, heads(G, K), heads(G, V)) | segments._tiles(dtype.itemsize, 228 << 10, backward)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    types = {name: types[name] for name in kernel.arg_names if name in types and name not in constants}
    return build(kernel, types, constants, **options)

found = {
    "16 heads": attend(16, 512, 64, "bf16", paged.Tiles(16, 32, 4, 3)),
    "128 heads": attend(128, 512, 64, "bf16", paged.Tiles(64, 32, 8, 3)),
    "one head": attend(1, 32, 16, "bf16", paged.Tiles(16, 32, 4, 3)),
    "fp32": attend(4, 96, 32, "fp32", paged.Tiles(16, 32, 4, 3)),
    "merge": merge(512),
    "shared heads": share(9, 3, 64, "bf16", paged.Tiles(16, 64, 4, 3)),
    "shared heads, fp32": share(28, 4, 128, "fp32", paged.Tiles(16, 32, 4, 3)),
    "segments forward": segment(segments._forward, 16, 16, 192, 128, torch.bfloat16, backward=False),
    "segments grad queries": segment(segments._grad_queries, 16, 16, 192, 128, torch.bfloat16),
    "segments grad keys": segment(segments._grad_keys, 16, 16, 192, 128, torch.bfloat16),
    "segments of groups": segment(segments._grad_keys, 32, 8, 128, 128, torch.bfloat16),
}
print(json.dumps({
    name: {"shared": k.metadata.shared, "wgmma": "wgmma.mma_async" in k.asm["ptx"]}
    for name, k in found.items()
}))
"""


@pytest.mark.skipif(kernels.why_not() is not None, reason=str(kernels.why_not()))
def test_kernels_compile_for_hopper(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(kernel["shared"] <= 227 << 10 for kernel in found.values())  # what a Hopper program can have
    for name in ("16 heads", "shared heads", "shared heads, fp32"):
        assert found[name]["shared"] <= 99 << 10  # and a smaller card's
    assert found["128 heads"]["wgmma"]
    assert all(kernel["wgmma"] for name, kernel in found.items() if name.startswith("segments"))
