"""Networks in 8 bits: what rounding costs, and that every path reads the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.engine.test_forward import in_chunks, needs_kernels, wide
from tests.model.variants import FAMILIES, network, tokens_of, v3
from ziphius.engine.forward import next_logits
from ziphius.model.packed import PackedLinear, quantise
from ziphius.model.pieces import ExpertList, in_pieces
from ziphius.ops.int8 import quantise_int8

FORMS = ["int8", "fp8"]


def rounded(model, form):
    """The same network in full precision with the values that 8 bits can say."""
    model = in_pieces(copy.deepcopy(model))
    for name, module in quantise(copy.deepcopy(model), form).named_modules():
        place = model.get_submodule(name)
        if isinstance(module, PackedLinear):
            place.weight = torch.nn.Parameter(module.matrix.dequantise())
        elif isinstance(module, ExpertList):
            for part in ("gate", "up", "down"):
                setattr(place, part, [matrix.dequantise() for matrix in getattr(module, part)])
    return model


def test_rows_are_within_half_a_step():
    weight = torch.randn(3, 7, 33, generator=torch.Generator().manual_seed(0))
    weight *= torch.tensor([1e-3, 1, 50]).view(3, 1, 1)
    weight[1, 2] = 0
    matrix = quantise_int8(weight)
    assert (matrix.dequantise() - weight).abs().amax(-1).le(matrix.scale * 0.5001).all()
    assert matrix.values.abs().amax(-1).eq(127).sum() == 20  # all rows but that of zeros


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FAMILIES)
def test_modules_compute_with_the_rounded_values(name, form):
    model = network(FAMILIES[name])
    expected, found = rounded(model, form), quantise(copy.deepcopy(model), form)
    tokens = tokens_of(model.config, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(found(tokens).logits, expected(tokens).logits, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("config", [*FAMILIES.values(), wide()], ids=[*FAMILIES, "wide"])
@pytest.mark.parametrize("form", FORMS)
def test_the_native_step_agrees_with_the_modules(config, form):
    """In BF16, for the tiles round activations to it: as near to the exact result as the modules are.

    The median token is: where two experts are almost level, rounding may choose the other one.
    """
    model = quantise(network(config).bfloat16(), form)
    exact, _ = in_chunks(rounded(network(config).bfloat16().float(), form), backend="reference")
    native, _ = in_chunks(model, torch.bfloat16, "native")
    modules, _ = in_chunks(model, torch.bfloat16, "torch")
    error = lambda found: torch.cat([(a - b).float().norm(dim=1) for a, b in zip(found, exact, strict=True)]).median()
    assert error(native) <= 1.2 * error(modules)
    with torch.no_grad():
        hidden = torch.cat(exact)[:5]
        by_module = model.lm_head(hidden.bfloat16()).float()
        torch.testing.assert_close(next_logits(model, hidden), by_module, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("form", "dtype", "left"),
    [
        ("int8", torch.int8, {"embed_tokens", "kv_b_proj", "gate"}),
        ("fp8", torch.float8_e4m3fn, {"embed_tokens", "kv_b_proj", "gate", "lm_head", "eh_proj"}),
    ],
)
def test_what_is_quantised(form, dtype, left):
    model = quantise(network(v3(num_nextn_predict_layers=1)).bfloat16(), form)
    assert {tensor.dtype for name, tensor in model.named_buffers() if name.endswith("values")} == {dtype}
    experts = model.model.layers[-1].mlp.experts
    assert {matrix.values.dtype for matrix in experts.gate + experts.up + experts.down} == {dtype}
    assert {name.split(".")[-2] for name, tensor in model.named_parameters() if tensor.ndim > 1} == left


def test_a_tied_head_is_8_bits_beside_the_embedding():
    model = quantise(network(FAMILIES["SmolLM2, tied"]).bfloat16())
    embedding = model.model.embed_tokens.weight
    assert embedding.dtype == torch.bfloat16
    assert model.lm_head.matrix.shape == embedding.shape
    assert (model.lm_head.matrix.dequantise() - embedding.float()).abs().max() < 0.05
