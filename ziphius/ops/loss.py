"""Cross-entropy straight from hidden states: the logits exist one chunk at a time.

N tokens of a flattened batch, D model, W vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ziphius.ops.backend import backend_for, compute_dtype
from ziphius.ops.native import loss as native

_CHUNK_ELEMENTS = 1 << 22  # logits held at a time, in elements
_CHUNK_ELEMENTS_OF_GPU = 1 << 26  # 512 tokens of 128K words: a product that fills it, and 256 MiB of fp32


class TokenStats(NamedTuple):
    """Per-token results: log-probability of the target and entropy of the distribution, both fp32 [N], in nats."""

    logprobs: Tensor
    entropy: Tensor


def linear_cross_entropy(x_ND: Tensor, head_WD: Tensor, targets_N: Tensor, temperature: float = 1.0) -> TokenStats:
    """log softmax(x·headᵀ / temperature) at the targets, with gradients; the entropy carries none.

    No logits are kept: the backward pass computes each chunk again.
    """
    dtype = compute_dtype(x_ND)
    x, head = x_ND.to(dtype), head_WD.to(dtype)
    name = backend_for(x, head)
    if name == "reference":
        return linear_cross_entropy_reference(x, head, targets_N, temperature)
    return TokenStats(*_LinearCrossEntropy.apply(x, head, targets_N, temperature, name == "native"))


def linear_cross_entropy_reference(x: Tensor, head: Tensor, targets: Tensor, temperature: float) -> TokenStats:
    logp = torch.log_softmax(F.linear(x, head).float() / temperature, dim=-1)
    entropy = -(logp.exp() * logp).sum(-1).detach()
    return TokenStats(logp.gather(1, targets.unsqueeze(1)).squeeze(1), entropy)


class _LinearCrossEntropy(torch.autograd.Function):
    """Recomputes each chunk's probabilities in the backward pass: the only memory kept is the inputs and log-sums."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, head: Tensor, targets: Tensor, temperature: float, use_native: bool
    ) -> tuple[Tensor, Tensor]:
        targets = targets.contiguous()
        chunk = max(1, (_CHUNK_ELEMENTS_OF_GPU if x.is_cuda else _CHUNK_ELEMENTS) // head.shape[0])
        logprobs, entropy, log_sums = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(3))
        for start in range(0, x.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = F.linear(x[part], head)
            if use_native:
                results = logprobs[part], entropy[part], log_sums[part]
                native.token_stats(logits, targets[part], 1 / temperature, *results)
                continue
            logits = logits.float().div_(temperature)
            log_sum = torch.logsumexp(logits, dim=-1)
            log_sums[part] = log_sum
            logprobs[part] = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1) - log_sum
            p = torch.softmax(logits, dim=-1)
            entropy[part] = log_sum - torch.linalg.vecdot(p, logits)
        ctx.save_for_backward(x, head, targets, log_sums)
        ctx.temperature, ctx.chunk, ctx.use_native = temperature, chunk, use_native
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        x, head, targets, log_sums = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_x = torch.empty_like(x)
        trains_head = ctx.needs_input_grad[1]
        grad_head = torch.zeros(head.shape if trains_head else 0, dtype=torch.float32, device=head.device)
        for start in range(0, x.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = F.linear(x[part], head)
            if ctx.use_native:
                factor = native.logits_grad_(logits, targets[part], 1 / ctx.temperature, log_sums[part], grad[part])
            else:
                logits = logits.float().div_(ctx.temperature)
                scaled = grad[part].unsqueeze(1) / ctx.temperature
                factor = logits.sub_(log_sums[part].unsqueeze(1)).exp_().mul_(-scaled)
                factor = factor.scatter_add_(1, targets[part].unsqueeze(1), scaled).to(x.dtype)
            torch.mm(factor, head, out=grad_x[part])
            if trains_head:
                grad_head += factor.t() @ x[part]
        return grad_x, grad_head.to(head.dtype) if trains_head else None, None, None, None
