"""The whole network: initial weights, backends, precision."""

import pytest
import torch

from ziphius import ops
from ziphius.model.presets import ladder
from ziphius.model.transformer import Transformer

from .variants import VARIANTS, network, tokens_of, v3


def test_initial_weights():
    """Matrices from a normal of std 0.006 (V3 §4.2), norms at one, the selection bias at zero, the same every time."""
    models = [Transformer(ladder(6)) for _ in range(2)]
    for model in models:
        model.init_weights(torch.Generator().manual_seed(3))
    for (name, left), right in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(left, right), name
        if left.ndim == 1:
            assert torch.all(left == 1), name
        else:
            assert left.std().item() == pytest.approx(0.006, rel=0.1), name
            assert abs(left.mean().item()) < 0.006 * 6 / left.numel() ** 0.5, name
    assert all(torch.all(bias == 0) for name, bias in models[0].named_buffers() if name.endswith("bias"))


def test_a_fresh_network_knows_nothing():
    model = Transformer(ladder(4))
    model.init_weights(torch.Generator().manual_seed(0))
    tokens = tokens_of(model.config, (2, 32))
    loss = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(torch.tensor(1024.0).log().item(), abs=0.01)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_backends_agree_forward_and_backward(config):
    tokens = tokens_of(config, (2, 24))
    results = []
    for backend in ("reference", "torch", "auto"):
        model = network(config)
        with ops.backend(backend):
            logits = model(tokens).logits
            logits.square().mean().backward()
        results.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (expected, expected_grads), *others = results
    for logits, grads in others:
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected_grads[name], rtol=1e-3, atol=1e-6, msg=name)


def test_autocast_is_close_to_fp32():
    """Every expert is chosen here: rounding that flips a choice would move single tokens by far more than rounding."""
    model = network(v3(n_group=1, topk_group=1, num_experts_per_tok=8))
    tokens = tokens_of(model.config, (2, 24))
    exact = model(tokens).logits
    with torch.autocast("cpu", torch.bfloat16):
        output = model(tokens)
    assert output.logits.dtype == torch.bfloat16
    error = (output.logits.float() - exact).norm() / exact.norm()
    assert error < 0.03
    output.logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_tied_head_is_one_tensor():
    model = network(VARIANTS["V3, tied"])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len({id(p) for p in model.parameters()}) == len(list(model.parameters()))


def test_positions_beyond_the_first_table():
    model = network(v3(max_position_embeddings=64))
    long = model.hidden(tokens_of(model.config, (1, 80)))
    assert long.shape == (1, 80, 48)
