"""Networks in 8 bits: what rounding costs, and that every path reads the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.engine.test_forward import in_chunks, needs_kernels, wide
from tests.model.variants import FAMILIES, network, tokens_of, v3
from ziphius.engine.forward import next_logits
from ziphius.model.int8 import Int8Linear, quantise
from ziphius.ops.int8 import quantise_int8


def rounded(model):
    """The same network in full precision with the values that 8 bits can say."""
    model = copy.deepcopy(model)
    for name, module in quantise(copy.deepcopy(model)).named_modules():
        if isinstance(module, Int8Linear):
            model.get_submodule(name).weight = torch.nn.Parameter(module.matrix.dequantise())
        elif name.endswith(".experts"):
            model.get_submodule(name).gate_up_proj.data = module.gate_up_proj.dequantise()
            model.get_submodule(name).down_proj.data = module.down_proj.dequantise()
    return model


def test_rows_are_within_half_a_step():
    weight = torch.randn(3, 7, 33, generator=torch.Generator().manual_seed(0))
    weight *= torch.tensor([1e-3, 1, 50]).view(3, 1, 1)
    weight[1, 2] = 0
    matrix = quantise_int8(weight)
    assert (matrix.dequantise() - weight).abs().amax(-1).le(matrix.scale * 0.5001).all()
    assert matrix.values.abs().amax(-1).eq(127).sum() == 20  # all rows but that of zeros


@pytest.mark.parametrize("name", FAMILIES)
def test_modules_compute_with_the_rounded_values(name):
    model = network(FAMILIES[name])
    expected, found = rounded(model), quantise(copy.deepcopy(model))
    tokens = tokens_of(model.config, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, expected(tokens).logits, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("config", [*FAMILIES.values(), wide()], ids=[*FAMILIES, "wide"])
def test_the_native_step_agrees_with_the_modules(config):
    """In BF16, for the tiles round activations to it: as near to the exact result as the modules are."""
    model = quantise(network(config).bfloat16())
    exact, _ = in_chunks(rounded(network(config).bfloat16().float()), backend="reference")
    native, _ = in_chunks(model, torch.bfloat16, "native")
    modules, _ = in_chunks(model, torch.bfloat16, "torch")
    error = lambda found: torch.cat([(a - b).float() for a, b in zip(found, exact, strict=True)]).norm()
    assert error(native) <= 1.2 * error(modules)
    with torch.no_grad():
        hidden = torch.cat(exact)[:5]
        torch.testing.assert_close(next_logits(model, hidden), model.lm_head(hidden).float(), rtol=0.02, atol=0.02)


def test_what_is_quantised():
    model = quantise(network(v3()).bfloat16())
    kinds = {str(tensor.dtype) for name, tensor in model.state_dict().items() if name.endswith("values")}
    assert kinds == {"torch.int8"}
    left = {name.split(".")[-2] for name, _ in model.named_parameters() if _.ndim > 1}
    assert left == {"embed_tokens", "kv_b_proj", "gate"}


def test_a_tied_head_is_8_bits_beside_the_embedding():
    model = quantise(network(FAMILIES["SmolLM2, tied"]).bfloat16())
    embedding = model.model.embed_tokens.weight
    assert embedding.dtype == torch.bfloat16
    assert model.lm_head.matrix.shape == embedding.shape
    assert (model.lm_head.matrix.dequantise() - embedding.float()).abs().max() < 0.05
