import pytest
import torch

from ziphius.model.experts import RouterStats
from ziphius.text.packing import lay_row, pad_samples, plan_packing
from ziphius.train.batch import Batch, stack_rows
from ziphius.train.losses import batch_logprobs, next_token_loss, policy_loss
from ziphius.train.settings import LossSettings, PolicySettings

PLAIN = LossSettings(mtp_weight=0.0, balance_weight=0.0)
G = lambda seed: torch.Generator().manual_seed(seed)


def samples(*lengths, seed=0):
    ids = torch.randint(3, 64, (sum(lengths),), generator=G(seed)).tolist()
    made = []
    for length in lengths:
        tokens, ids = ids[:length], ids[length:]
        made.append((tokens, [0.0, *[1.0] * (length - 1)]))
    return made


def gradients(model, total):
    for p in model.parameters():
        p.grad = None
    total.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def numbers(parts):
    return {name: value.item() for name, value in parts.sums.items()}


def logp(logits, tokens):
    return torch.log_softmax(logits, -1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


# --- next tokens -----------------------------------------------------------------------------------------------------


def test_next_token_loss_by_hand(build):
    """Main head, two prediction depths and the balance loss, over rows with padding and uneven weights."""
    model = build(num_nextn_predict_layers=2)
    batch = stack_rows(pad_samples(samples(11, 7, 9), 2), masked=False)
    batch.weights *= torch.rand(batch.weights.shape, generator=G(1))
    settings = LossSettings(mtp_weight=0.3, balance_weight=0.01)
    parts = next_token_loss(model, batch, settings, norm=50.0)

    stats = RouterStats(valid_BT=batch.valid)
    hidden = model.hidden(batch.tokens, stats=stats)
    nll = -(logp(model.lm_head(hidden)[:, :-1], batch.tokens[:, 1:]) * batch.weights[:, 1:]).sum()
    one, two = model.mtp_hidden(hidden, batch.tokens, stats=stats)
    first = -(logp(model.lm_head(one)[:, :-1], batch.tokens[:, 2:]) * batch.weights[:, 2:]).sum()
    second = -(logp(model.lm_head(two)[:, :-1], batch.tokens[:, 3:]) * batch.weights[:, 3:]).sum()
    balance = 0.01 * float(batch.weights.sum()) / 50 * torch.stack(stats.balance_losses).sum()
    expected = (nll + 0.3 * (first + second) / 2) / 50 + balance
    assert parts.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert numbers(parts) == pytest.approx({"loss": nll.item(), "mtp_loss": (first + second).item() / 2}, rel=1e-5)
    assert [load.sum().item() for load in parts.loads] == [27 * 2, 26 * 2, 25 * 2]  # padding is not counted
    ours, theirs = gradients(model, parts.total), gradients(model, expected)
    assert ours.keys() == theirs.keys() == {name for name, _ in model.named_parameters()}
    for name, grad in theirs.items():
        assert torch.allclose(ours[name], grad, rtol=1e-4, atol=1e-6), name


def test_parts_of_weight_nought_are_not_computed(build):
    model = build()
    batch = stack_rows(pad_samples(samples(8), 2), masked=False)
    parts = next_token_loss(model, batch, PLAIN, 7.0)
    assert parts.sums["mtp_loss"] == 0.0
    assert len(parts.loads) == 1  # the prediction module did not run
    assert not any(name.startswith("mtp.") for name in gradients(model, parts.total))


def test_packed_samples_do_not_leak(build):
    """Packed side by side, samples have the losses and the gradients that they have alone."""
    model = build()
    settings = LossSettings(mtp_weight=0.3, balance_weight=0.0)
    made = samples(9, 5, 8, 6)
    packed = stack_rows([lay_row([made[i] for i in row], 16, 2) for row in plan_packing([9, 5, 8, 6], 16)], masked=True)
    assert packed.segments is not None
    alone = stack_rows(pad_samples(made, 2), masked=False)
    one, two = (next_token_loss(model, batch, settings, 10.0) for batch in (packed, alone))
    assert numbers(one) == pytest.approx(numbers(two), rel=1e-5)
    ours, theirs = gradients(model, one.total), gradients(model, two.total)
    for name, grad in theirs.items():
        assert torch.allclose(ours[name], grad, rtol=1e-3, atol=1e-6), name


def test_padding_changes_nothing(build):
    model = build()
    settings = LossSettings(mtp_weight=0.3, balance_weight=0.0)
    made = samples(10)
    short, padded = (stack_rows(pad_samples(made, 2, multiple=m), masked=False) for m in (1, 16))
    assert padded.valid is not None
    one, two = (next_token_loss(model, batch, settings, 9.0) for batch in (short, padded))
    assert one.total.item() == pytest.approx(two.total.item(), rel=1e-5)
    assert one.loads[0].tolist() == two.loads[0].tolist()
    stats = [RouterStats(valid_BT=batch.valid) for batch in (short, padded)]
    for batch, seen in zip((short, padded), stats, strict=True):
        model.hidden(batch.tokens, stats=seen)
    assert stats[0].balance_losses[0].item() == pytest.approx(stats[1].balance_losses[0].item(), rel=1e-5)


def test_batch_logprobs(build):
    model = build()
    batch = stack_rows(pad_samples(samples(8, 8), 2), masked=False)
    found = batch_logprobs(model, batch, temperature=0.7)
    expected = logp(model(batch.tokens).logits[:, :-1] / 0.7, batch.tokens[:, 1:])
    assert found[:, 0].tolist() == [0, 0]
    assert torch.allclose(found[:, 1:], expected, atol=1e-5)


# --- policies --------------------------------------------------------------------------------------------------------


def policy_batch(seed=0, rows=3, length=10):
    g = G(seed)
    tokens = torch.randint(3, 64, (rows, length), generator=g)
    weights = torch.zeros(rows, length)
    weights[:, 4:] = torch.rand(rows, length - 4, generator=g) + 0.5
    batch = Batch(tokens, weights)
    batch.advantages = torch.randn(rows, 1, generator=g).expand(rows, length).clone()
    return batch


def by_hand(model, batch, policy, temperature):
    """DeepSeekMath equations 3–4 with the options' formulas, token by token."""
    logprobs = torch.log_softmax(model(batch.tokens).logits / temperature, -1)
    total = torch.zeros(())
    clipped = 0
    for b, row in enumerate(batch.tokens.tolist()):
        for t in range(1, len(row)):
            weight = batch.weights[b, t]
            if weight == 0:
                continue
            new = logprobs[b, t - 1, row[t]]
            old = new.detach() if batch.old_logprobs is None else batch.old_logprobs[b, t]
            advantage = batch.advantages[b, t]
            ratio = (new - old).exp()
            bounded = ratio.clamp(1 - policy.clip_low, 1 + policy.clip_high)
            gain = min(ratio * advantage, bounded * advantage)
            clipped += bool(bounded * advantage < ratio * advantage)
            if policy.importance_cap is not None and batch.sampler_logprobs is not None:
                gain = gain * (old - batch.sampler_logprobs[b, t]).exp().clamp(max=policy.importance_cap)
            if policy.kl_weight:
                gap = batch.reference_logprobs[b, t] - new
                gain = gain - policy.kl_weight * (gap.exp() - gap - 1)
            total = total - weight * gain
    return total, clipped


POLICIES = [
    (PolicySettings(), 1.0),
    (PolicySettings(clip_low=0.1, clip_high=0.5), 1.0),
    (PolicySettings(clip_low=0.3, clip_high=9.0, importance_cap=None), 1.0),
    (PolicySettings(importance_cap=1.1), 1.0),
    (PolicySettings(kl_weight=0.5), 1.0),
    (PolicySettings(kl_weight=0.1), 0.6),
]


@pytest.mark.parametrize(("policy", "temperature"), POLICIES)
@pytest.mark.parametrize("on_policy", [True, False])
def test_policy_loss_by_hand(build, policy, temperature, on_policy):
    model, other = build(), build(1)
    batch = policy_batch()
    noise = lambda seed: 0.4 * torch.randn(batch.weights.shape, generator=G(seed))
    now = batch_logprobs(model, batch, temperature)
    if not on_policy:
        batch.old_logprobs = now + noise(5)
    batch.sampler_logprobs = (now if on_policy else batch.old_logprobs) + noise(6)
    batch.reference_logprobs = batch_logprobs(other, batch, temperature) if policy.kl_weight else None
    parts = policy_loss(model, batch, PLAIN, policy, 13.0, temperature)
    expected, clipped = by_hand(model, batch, policy, temperature)
    assert parts.total.item() == pytest.approx(expected.item() / 13, rel=1e-4, abs=1e-6)
    assert parts.sums["loss"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
    assert parts.sums["clipped"] == clipped
    assert (clipped > 0) == (not on_policy)
    ours, theirs = gradients(model, parts.total), gradients(model, expected / 13)
    for name, grad in theirs.items():
        assert torch.allclose(ours[name], grad, rtol=1e-3, atol=1e-6), name


def test_clip_is_wider_above_than_below(build):
    """Ratio 1.25 lies within 1 + 0.28, ratio 0.75 outside 1 − 0.2; each bound acts for one sign of advantage alone."""
    model = build()
    policy = PolicySettings(clip_low=0.2, clip_high=0.28)
    for ratio, advantage, has_gradient in [
        (1.25, 1.0, True), (1.35, 1.0, False), (1.35, -1.0, True),
        (0.85, -1.0, True), (0.75, -1.0, False), (0.75, 1.0, True),
    ]:  # fmt: skip
        batch = policy_batch()
        batch.advantages = torch.full_like(batch.weights, advantage)
        batch.old_logprobs = batch_logprobs(model, batch) - torch.tensor(ratio).log()
        parts = policy_loss(model, batch, PLAIN, policy, 1.0)
        size = sum(float(grad.abs().sum()) for grad in gradients(model, parts.total).values())
        assert (size > 1e-3) == has_gradient, (ratio, advantage)
        assert (parts.sums["clipped"] == parts.sums["on"]) == (not has_gradient)


def test_gauges(build):
    model, other = build(), build(1)
    batch = policy_batch()
    now = batch_logprobs(model, batch)
    batch.sampler_logprobs = now + 0.03
    batch.reference_logprobs = batch_logprobs(other, batch)
    sums = policy_loss(model, batch, PLAIN, PolicySettings(kl_weight=0.1), 1.0).sums
    on = batch.weights > 0
    assert sums["on"] == 18
    assert sums["mismatch"] == pytest.approx(0.03 * 18, rel=1e-3)
    gap = (batch.reference_logprobs - now)[on]
    assert sums["kl"] == pytest.approx((gap.exp() - gap - 1).sum().item(), rel=1e-4)
    p = torch.softmax(model(batch.tokens).logits[:, :-1], -1)
    assert sums["entropy"] == pytest.approx((-(p * p.log()).sum(-1))[on[:, 1:]].sum().item(), rel=1e-4)


def test_no_advantage_no_gradient(build):
    model = build()
    batch = policy_batch()
    batch.advantages = torch.zeros_like(batch.weights)
    parts = policy_loss(model, batch, PLAIN, PolicySettings(), 1.0)
    assert all(grad.abs().max() == 0 for grad in gradients(model, parts.total).values())


@pytest.mark.parametrize("tied", [False, True])
def test_prediction_modules_follow_the_policy_and_do_not_steer_it(build, tied):
    """With them the trunk, the embedding and the head have the very gradients that they have without."""
    model = build(tie_word_embeddings=tied)
    batch = policy_batch()
    with_mtp = policy_loss(model, batch, LossSettings(mtp_weight=0.5, balance_weight=0.0), PolicySettings(), 1.0)
    assert with_mtp.sums["mtp_loss"] > 0
    one = gradients(model, with_mtp.total)
    two = gradients(model, policy_loss(model, batch, PLAIN, PolicySettings(), 1.0).total)
    assert {name for name in one if name not in two} == {n for n, _ in model.named_parameters() if n.startswith("mtp.")}
    for name, grad in two.items():
        assert torch.equal(one[name], grad), name
    assert all(p.requires_grad for p in model.parameters())
