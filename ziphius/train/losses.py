"""What a batch is trained towards: next tokens, or a policy that earns more reward.

B rows, T time. A loss is a sum over tokens; the trainer divides by the weight of the whole step, all ranks together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ziphius import ops
from ziphius.model.experts import RouterStats
from ziphius.model.transformer import Transformer
from ziphius.train.batch import Batch
from ziphius.train.settings import LossSettings, PolicySettings


@dataclass
class LossParts:
    """`total` is what backward runs on; `sums` are numbers to log, summed over tokens (or micro-batches). They stay on
    their device, so that nobody waits for them here."""

    total: Tensor
    loads: list[Tensor]
    sums: dict[str, Tensor] = field(default_factory=dict)


def token_stats(model: Transformer, hidden_BTD: Tensor, tokens_BT: Tensor, shift: int, temperature: float = 1.0):
    """Log-probability and entropy of tokens[t] as seen from hidden[t − shift]; both [B, T − shift]."""
    length = tokens_BT.shape[1] - shift
    flat = hidden_BTD[:, :length].flatten(0, 1)
    stats = ops.linear_cross_entropy(flat, model.lm_head.weight, tokens_BT[:, shift:].flatten(), temperature)
    return ops.loss.TokenStats(*(x.view(len(tokens_BT), length) for x in stats))


def next_token_loss(model: Transformer, batch: Batch, settings: LossSettings, norm: float) -> LossParts:
    """Weighted cross-entropy of the main head and the MTP depths (V3 equations 24–25), divided by `norm`."""
    hidden, router = _run(model, batch)
    weights = batch.weights[:, 1:]
    nll = -(token_stats(model, hidden, batch.tokens, 1).logprobs * weights).sum()
    mtp = _mtp_loss(model, batch, hidden, router, settings)
    total = (nll + settings.mtp_weight * mtp) / norm + _balance(router, settings, norm, batch)
    return LossParts(total, router.loads, {"loss": nll.detach(), "mtp_loss": mtp.detach()})


def policy_loss(
    model: Transformer,
    batch: Batch,
    settings: LossSettings,
    policy: PolicySettings,
    norm: float,
    temperature: float = 1.0,
) -> LossParts:
    """GRPO's objective on the response tokens; `weights` carry the chosen mean over tokens or sequences.

    The policy is the model at the `temperature` that its answers were sampled at.
    The MTP modules go on learning from the sampled tokens, on detached states and with embedding and head held: they
    must follow the policy and not steer it.
    """
    assert batch.advantages is not None
    hidden, router = _run(model, batch)
    stats = token_stats(model, hidden, batch.tokens, 1, temperature)
    weights = batch.weights[:, 1:]
    old = stats.logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs[:, 1:]
    advantages = batch.advantages[:, 1:]
    ratio = torch.exp(stats.logprobs - old)
    clipped = ratio.clamp(1 - policy.clip_low, 1 + policy.clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    bound = (clipped * advantages < ratio * advantages).detach()
    if policy.importance_cap is not None and batch.sampler_logprobs is not None:
        objective = objective * torch.exp(old - batch.sampler_logprobs[:, 1:]).clamp(max=policy.importance_cap)
    loss = -(objective * weights).sum()
    on = weights > 0
    sums = {"on": on.sum(), "entropy": _sum(stats.entropy, on), "clipped": (bound & on).sum()}
    if policy.kl_weight and batch.reference_logprobs is not None:
        gap = batch.reference_logprobs[:, 1:] - stats.logprobs
        kl = torch.exp(gap) - gap - 1
        loss = loss + policy.kl_weight * (kl * weights).sum()
        sums["kl"] = _sum(kl, on)
    if batch.sampler_logprobs is not None:
        sums["mismatch"] = _sum((old - batch.sampler_logprobs[:, 1:]).abs(), on)
    with _held(model.model.embed_tokens.weight, model.lm_head.weight):
        mtp = _mtp_loss(model, batch, hidden.detach(), router, settings)
    total = (loss + settings.mtp_weight * mtp) / norm + _balance(router, settings, norm, batch)
    return LossParts(total, router.loads, sums | {"loss": loss.detach(), "mtp_loss": mtp.detach()})


@torch.no_grad()
def batch_logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Log-probability of every token [B, T] under the model; entry 0 is 0."""
    hidden, _ = _run(model, batch)
    logprobs = token_stats(model, hidden, batch.tokens, 1, temperature).logprobs
    return torch.nn.functional.pad(logprobs, (1, 0))


def _run(model: Transformer, batch: Batch) -> tuple[Tensor, RouterStats]:
    router = RouterStats(valid_BT=batch.valid)
    return model.hidden(batch.tokens, batch.positions, batch.segments, stats=router), router


def _mtp_loss(model: Transformer, batch: Batch, hidden: Tensor, router: RouterStats, settings: LossSettings) -> Tensor:
    """Mean over depths of the summed cross-entropy. Samples do not predict each other."""
    total = hidden.new_zeros((), dtype=torch.float32)
    if not model.mtp or not settings.mtp_weight:
        return total
    states = model.mtp_hidden(hidden, batch.tokens, batch.positions, batch.segments, router)
    for depth, state in enumerate(states, start=1):
        weights = batch.weights[:, depth + 1 :]
        if batch.segments is not None:
            weights = weights * (batch.segments[:, depth + 1 :] == batch.segments[:, : -depth - 1])
        total = total - (token_stats(model, state, batch.tokens[:, depth:], 1).logprobs * weights).sum()
    return total / len(states)


def _sum(values: Tensor, on: Tensor) -> Tensor:
    """Sum of those `values` that are `on`; picking them out would ask the device how many they are."""
    return torch.where(on, values.detach(), 0.0).sum()


@contextmanager
def _held(*parameters: Tensor) -> Iterator[None]:
    """What is computed inside sends no gradient to `parameters`; what was computed before still does."""
    trained = {parameter: parameter.requires_grad for parameter in parameters}
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, before in trained.items():
            parameter.requires_grad_(before)


def _balance(router: RouterStats, settings: LossSettings, norm: float, batch: Batch) -> Tensor | float:
    """α times the layers' sequence-wise losses, at this batch's share of the step."""
    if not settings.balance_weight or not router.balance_losses:
        return 0.0
    share = batch.norm / norm
    return settings.balance_weight * share * torch.stack(router.balance_losses).sum()
