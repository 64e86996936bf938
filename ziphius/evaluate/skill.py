"""A quick gauge of a skill: would greedy decoding write the worked solutions, token for token?"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ziphius.model.transformer import Transformer
from ziphius.text.packing import Sample, pad_samples
from ziphius.train.batch import stack_rows
from ziphius.train.place import Place

_ROWS = 32


@torch.no_grad()
def worked_solution_accuracy(
    model: Transformer, samples: Sequence[Sample], pad_id: int, place: Place | None = None
) -> float:
    """Share of samples whose weighted tokens are all the model's first choice, in one forward pass of the precision
    and on the device of `place`.

    Equal to the share that greedy decoding would reproduce, since a prefix of first choices leads to the next.
    """
    place = place or Place()
    mine = samples[place.rank :: place.size]
    right = 0.0
    for start in range(0, len(mine), _ROWS):
        rows = pad_samples(mine[start : start + _ROWS], pad_id, multiple=8)
        batch = place.put(stack_rows(rows, masked=False))
        with place.autocast():
            chosen = model(batch.tokens).logits[:, :-1].argmax(-1)
        right += float(((chosen == batch.tokens[:, 1:]) | (batch.weights[:, 1:] == 0)).all(1).sum())
    return place.sum_numbers({"right": right})["right"] / max(len(samples), 1)
