"""Multi-token prediction: parity with transformers' own module, causality, and what trains."""

import pytest
import torch
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from ziphius.checkpoint import save_model
from ziphius.model.experts import RouterStats

from .variants import network, tokens_of, v3, yarn


@pytest.mark.parametrize("rope_scaling", [None, yarn(mscale=1.0, mscale_all_dim=1.0)], ids=["plain", "YaRN"])
def test_parity_with_transformers(rope_scaling, tmp_path, monkeypatch):
    config = v3(num_nextn_predict_layers=2, rope_scaling=rope_scaling)
    ours = network(config)
    save_model(ours, tmp_path)
    patterns = [rf"model\.layers\.{config.num_hidden_layers + k}\..*" for k in range(2)]
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", patterns)
    main = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    theirs = MtpModel.from_pretrained(main).eval()

    tokens = tokens_of(config, (2, 40))
    with torch.no_grad():
        hidden = ours.hidden(tokens)
        expected = main.model(tokens).last_hidden_state
        for depth, got in enumerate(ours.mtp_hidden(hidden, tokens), start=1):
            length = tokens.shape[1] - depth
            # transformers' generation counts them from `depth` on: rotary positions are relative, only rounding differs
            positions = torch.arange(length).unsqueeze(0)
            expected = theirs.forward_layer(
                depth - 1, expected[:, :length], positions, None, input_ids=tokens[:, depth:]
            )
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            assert (ours.lm_head(got) - main.lm_head(expected)).abs().max() <= 1e-5


def test_shapes():
    config = v3(num_nextn_predict_layers=3)
    model = network(config)
    tokens = tokens_of(config, (2, 10))
    outputs = model.mtp_hidden(model.hidden(tokens), tokens)
    assert [tuple(x.shape) for x in outputs] == [(2, 9, 48), (2, 8, 48), (2, 7, 48)]


@pytest.mark.parametrize("changed", [0, 3, 9])
def test_the_future_does_not_reach_back(changed):
    """Depth k at position t reads tokens up to t+k."""
    config = v3(num_nextn_predict_layers=2)
    model = network(config)
    tokens = tokens_of(config, (1, 10))
    other = tokens.clone()
    other[0, changed] = (other[0, changed] + 1) % config.vocab_size
    with torch.no_grad():
        before, after = (model.mtp_hidden(model.hidden(x), x) for x in (tokens, other))
    for depth, (left, right) in enumerate(zip(before, after, strict=True), start=1):
        first = max(changed - depth, 0)
        assert torch.equal(left[:, :first], right[:, :first])
        if first < left.shape[1]:
            assert not torch.equal(left[:, first], right[:, first])


def test_packed_segments_are_separate():
    """Entries whose own tokens lie in one sample equal those of that sample alone."""
    config = v3(num_nextn_predict_layers=1)
    model = network(config)
    first, second = tokens_of(config, (1, 7)), tokens_of(config, (1, 5), seed=1)
    packed = torch.cat([first, second], dim=1)
    segments = torch.tensor([[0] * 7 + [1] * 5])
    positions = torch.tensor([[*range(7), *range(5)]])
    with torch.no_grad():
        (joint,) = model.mtp_hidden(model.hidden(packed, positions, segments), packed, positions, segments)
        (alone_first,) = model.mtp_hidden(model.hidden(first), first)
        (alone_second,) = model.mtp_hidden(model.hidden(second), second)
    torch.testing.assert_close(joint[:, :6], alone_first)
    torch.testing.assert_close(joint[:, 7:], alone_second)


def test_gradients_reach_both_and_stats_see_the_module():
    config = v3(num_nextn_predict_layers=1)
    model = network(config)
    tokens = tokens_of(config, (1, 12))
    stats = RouterStats()
    hidden = model.hidden(tokens, stats=stats)
    (ahead,) = model.mtp_hidden(hidden, tokens, stats=stats)
    assert len(stats.loads) == 3  # two layers of experts, and the module's
    ahead.square().mean().backward()
    assert all(p.grad is not None for p in model.mtp.parameters())
    assert model.model.layers[0].self_attn.o_proj.weight.grad is not None
    assert model.model.embed_tokens.weight.grad is not None
