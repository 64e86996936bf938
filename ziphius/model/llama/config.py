"""The shape of a Llama network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ziphius.model.grouped.config import GroupedConfig


class LlamaConfig(GroupedConfig):
    """Grouped-query attention without biases, and one dense MLP a layer (Llama 3, arXiv 2407.21783 §3.2)."""

    architectures = {"llama": "LlamaForCausalLM"}  # noqa: RUF012
    refused = {  # noqa: RUF012
        "attention_bias": "queries, keys, values and outputs would have biases",
        "mlp_bias": "the MLPs would have biases",
    }

    model_type: Literal["llama"] = "llama"
    max_position_embeddings: int = Field(2048, gt=0)
    mlp_bias: Literal[False] = False
