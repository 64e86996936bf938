"""Drawing the next token of every row.

S rows, W vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ziphius.ops.backend import backend_for
from ziphius.ops.cut import Cuts, cut
from ziphius.ops.native.call import call, pointer


def draw_tokens(
    logits_SW: Tensor, temperature_S: Tensor, place_S: Tensor, cuts: Cuts | None = None
) -> tuple[Tensor, Tensor]:
    """One token a row from softmax(logits / temperature), int64 [S], and its log-probability there, fp32 [S].

    What `cuts` leave out is not drawn; the log-probability is that before the cuts.

    `place_S` in [0, 1) says where on the number line to look, on which the likeliest token (the first of equals) comes
    first and the others follow in order: two similar distributions, met with the same place, mostly give the same
    token. Temperature 0 takes the likeliest token, with its log-probability at temperature 1. A row's result is its
    own, whatever stands in the others. All fp32. A row that is not finite gives a log-probability that is not.
    """
    if backend_for(logits_SW, temperature_S, place_S) == "native":
        logits, temperature, place = (x.contiguous() for x in (logits_SW, temperature_S, place_S))
        chosen, logprobs = torch.empty(len(logits), dtype=torch.int64), torch.empty(len(logits))
        limits = (None, None, None) if cuts is None else tuple(x.contiguous() for x in cuts)
        tensors = logits, temperature, place, *limits, chosen, logprobs
        call("draw_tokens", *map(pointer, tensors), *logits.shape)
        return chosen, logprobs
    greedy_S = temperature_S == 0
    temperature_S = torch.where(greedy_S, 1.0, temperature_S)
    logprobs_SW = torch.log_softmax(logits_SW / temperature_S.unsqueeze(1), dim=-1)
    best_S1 = logits_SW.argmax(-1, keepdim=True)
    mass_SW = logprobs_SW.exp()
    if cuts is not None:
        mass_SW = mass_SW.masked_fill(cut(logits_SW, temperature_S, cuts).isneginf(), 0.0)
    first_S1 = mass_SW.gather(1, best_S1)
    others_SW = mass_SW.scatter(1, best_S1, 0.0).cumsum(-1)
    rest_S1 = others_SW[:, -1:]
    place_S1 = place_S.unsqueeze(1) * (first_S1 + rest_S1) - first_S1
    within_S1 = place_S1.minimum(rest_S1 * (1 - 2**-20))  # never behind the last token with any mass
    other_S1 = torch.searchsorted(others_SW, within_S1, right=True).clamp_(max=logits_SW.shape[1] - 1)
    chosen_S1 = torch.where(greedy_S.unsqueeze(1) | (place_S1 < 0) | (rest_S1 <= 0), best_S1, other_S1)
    return chosen_S1.squeeze(1), logprobs_SW.gather(1, chosen_S1).squeeze(1)
