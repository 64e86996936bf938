"""Drawing the next token of every row.

N rows, W vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.ops.backend import backend_for
from ziphius.ops.native.call import call


def draw_tokens(logits_NW: Tensor, temperature: float, place_N: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row from softmax(logits / temperature), int64 [N], and its log-probability there, fp32 [N].

    `place_N` in [0, 1) says where in the cumulated distribution to look: the same place gives the same token whatever
    stands in the other rows. Temperature 0 takes the likeliest token (the first of equals), with its log-probability
    at temperature 1. Logits must be fp32.
    """
    if backend_for(logits_NW, place_N) == "native":
        logits, place = logits_NW.contiguous(), place_N.contiguous()
        chosen, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
        addresses = logits.data_ptr(), place.data_ptr(), chosen.data_ptr(), logprobs.data_ptr()
        call("draw_tokens", *addresses, *logits.shape, temperature)
        return chosen, logprobs
    logprobs = torch.log_softmax(logits_NW / temperature if temperature else logits_NW, dim=-1)
    if temperature:
        mass = logprobs.exp().cumsum(-1)
        below_all = mass[:, -1:] * (1 - 2**-20)  # rounding must not reach a token behind the last with any mass
        chosen = torch.searchsorted(mass, place_N.unsqueeze(1) * below_all, right=True).squeeze(1)
    else:
        chosen = logits_NW.argmax(-1)
    return chosen, logprobs.gather(1, chosen.unsqueeze(1)).squeeze(1)
