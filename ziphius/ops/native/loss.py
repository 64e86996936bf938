"""Cross-entropy of a chunk of logits in one pass each way (`loss.c`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.ops.native.call import OUT_OF_RANGE, call, is_half


def token_stats(
    logits: Tensor, targets: Tensor, scale: float, logprobs: Tensor, entropy: Tensor, log_sums: Tensor
) -> None:
    """Fill logprobs, entropy and log-sums [n] of softmax(logits·scale), logits [n, W]. All contiguous."""
    addresses = [x.data_ptr() for x in (logits, targets, logprobs, entropy, log_sums)]
    done = call("loss_forward", *addresses, *logits.shape, scale, torch.get_num_threads(), is_half(logits))
    if done == OUT_OF_RANGE:
        raise IndexError(f"a target is not in 0…{logits.shape[1] - 1}")


def logits_grad_(logits: Tensor, targets: Tensor, scale: float, log_sums: Tensor, grad: Tensor) -> Tensor:
    """Turn `logits` into their gradient for `grad` [n] on the targets' log-probabilities."""
    addresses = [x.data_ptr() for x in (logits, targets, log_sums, grad)]
    call("loss_backward", *addresses, *logits.shape, scale, torch.get_num_threads(), is_half(logits))
    return logits
