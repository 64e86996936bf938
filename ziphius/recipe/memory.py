"""What a stage needs of a process's memory, part by part. Imports no torch.

Weights, gradients and moments are counted exactly. Activations are those that the backward pass keeps, counted from the
shapes, times a factor for casts and for what the allocator cannot give back, which is measured (bench/memory.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from ziphius.cost.flops import count_parameters
from ziphius.cost.shape import Shape, shape_of
from ziphius.engine.settings import EngineSettings
from ziphius.engine.sizes import block_bytes, pool_blocks
from ziphius.model.config import ModelConfig
from ziphius.recipe.low_rank import Sizes, lora_matrices
from ziphius.recipe.schema import GRPOStage, PretrainStage, Recipe, SFTStage
from ziphius.train.settings import LoRASettings, TunedSettings

LIBRARIES_GIB = 0.43  # what a process holds beside its network
_KERNELS_GIB = 0.08  # what a CPU's matrix library compiles for the shapes that the experts' loads make
_KEPT = 1.3  # of what the shapes say, measured
_CHUNK = 1 << 22  # logits held at a time (ops/loss.py)
_PROMPT = 64  # tokens of a task's prompt, roughly: a recipe does not say
_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class StageMemory:
    """GiB by part of one process; those that are not needed are left out."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def stage_memory(recipe: Recipe, stage: PretrainStage | SFTStage | GRPOStage, config: ModelConfig) -> StageMemory:
    """What a process of `stage` holds at its peak, the libraries included."""
    counts, shape = count_parameters(config), shape_of(config)
    all_weights = counts.total + counts.mtp_total
    train = stage.train
    lora = train.lora if isinstance(train, TunedSettings) else None
    bf16 = train.precision == "bf16"
    trained = all_weights if lora is None else lora_parameters(shape, lora)
    outside = counts.embedding * (1 if shape.tied else 2)  # embedding and head have no BF16 copy
    low = (all_weights - outside if lora is None else trained) if bf16 else 0
    frozen = 0 if lora is None else all_weights * (_BYTES[recipe.model.stored] if bf16 else 4)
    element = 2 if bf16 else 4
    rows, length = micro_batch(stage)
    kept = rows * length * token_bytes(shape, element, train.recompute)
    if lora is not None and lora.experts:
        kept += shape.moe_layers * shape.experts * 3 * shape.hidden * shape.moe_intermediate * element
    head = shape.vocab * shape.hidden
    loss = _CHUNK * 2 * element + (head * element if bf16 and lora is None else 0)
    loss += head * (4 + element + 4) if lora is None else 0  # its gradient in fp32, cast, and cast back
    parts = {
        "frozen weights": frozen,
        "weights": 4.0 * trained + 2 * low,
        "gradients": 4.0 * trained + 2 * low,
        "moments": 8.0 * trained,
        "activations": kept,
        "loss": float(loss),
    }
    if isinstance(stage, GRPOStage):
        engine = EngineSettings()
        pool = pool_blocks(engine, config, element) * block_bytes(config, engine.block_size, element)
        parts["rollout cache"] = float(pool)  # all of it is used in time: what is free keeps prefixes
        if lora is not None:
            parts["merged weights"] = _adapted(shape, lora) * (_BYTES[recipe.model.stored] if bf16 else 4)
        elif stage.grpo.policy.kl_weight:
            parts["reference"] = 4.0 * all_weights
    gib = {name: value / 2**30 for name, value in parts.items() if value}
    return StageMemory({"libraries": LIBRARIES_GIB + (_KERNELS_GIB if shape.experts else 0.0)} | gib)


def micro_batch(stage: PretrainStage | SFTStage | GRPOStage) -> tuple[int, int]:
    """Rows and length of the largest micro-batch."""
    if isinstance(stage, GRPOStage):
        length = min(stage.grpo.micro_tokens, _PROMPT + stage.grpo.max_new_tokens)
        return max(8, stage.grpo.micro_tokens // length // 8 * 8), length
    return min(stage.micro_rows, stage.rows), stage.seq_len


def token_bytes(shape: Shape, element: int, recompute: str = "none") -> float:
    """Bytes that the backward pass keeps for a token in all layers, the prediction modules' included."""
    D, layers = shape.hidden, shape.layers + shape.mtp_layers
    moe = sum(shape.is_moe_layer(layer) for layer in range(layers))
    entry = 4.0 * D
    whole = [
        2 * entry + element * (4 * D + _attention(shape) + mlp) for mlp in (_experts(shape), 3 * shape.intermediate)
    ]
    if recompute == "full":
        return _KEPT * (layers * entry + max(whole))
    kept = moe * whole[0] + (layers - moe) * whole[1]
    if recompute == "selective":  # products and attention stay, the rest is made again one layer at a time
        return _KEPT * (0.6 * kept + max(whole))
    return _KEPT * kept


def lora_parameters(shape: Shape, lora: LoRASettings) -> int:
    """Parameters of the low-rank updates: rank times the sizes of each matrix."""
    return lora.rank * sum(count * (rows + columns) for count, rows, columns in _updated(shape, lora))


def _adapted(shape: Shape, lora: LoRASettings) -> int:
    """Weights of the matrices that have an update."""
    return sum(count * rows * columns for count, rows, columns in _updated(shape, lora))


def _updated(shape: Shape, lora: LoRASettings) -> list[Sizes]:
    """How many matrices of which size have an update."""
    named = lora_matrices(shape, lora.experts)
    chosen = named if lora.targets is None else {name: named[name] for name in lora.targets}
    return [sizes for matrices in chosen.values() for sizes in matrices]


def _attention(shape: Shape) -> float:
    """Values a token that attention keeps: projections, what is rotated, keys and values for every head, the result."""
    H, K, V = shape.heads, shape.qk_head_dim, shape.v_head_dim
    expanded = 2 * H * K + H * V + H * V  # queries, keys, values of every head, and the result
    if shape.kv_lora_rank is None:
        return H * K + shape.kv_heads * (2 * K + V) + expanded
    low = 2 * (shape.q_lora_rank or 0)
    return low + H * K + 2 * shape.kv_lora_rank + shape.rope_dim + H * (K - shape.rope_dim + V) + expanded


def _experts(shape: Shape) -> float:
    """Values a token that a layer of experts keeps: its copies' inputs, products and results, and the gate's."""
    copies = 1.25 * shape.top_k * (2 * shape.hidden + 3 * shape.moe_intermediate)
    return copies + 3 * shape.shared_experts * shape.moe_intermediate + 8 * shape.experts
