"""What runs on a card between its one question a step asks it nothing: each answer would be waited for."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ziphius import ops
from ziphius.ops import sorted_experts
from ziphius.train.balance import load_violation
from ziphius.train.batch import stack_rows
from ziphius.train.losses import next_token_loss, policy_loss
from ziphius.train.settings import LossSettings, PolicySettings, TrainSettings
from ziphius.train.trainer import Trainer

from ..packed import pack_samples
from .stub import Fixed

# Numbers fetched, and results whose size depends on values
QUESTIONS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::bincount", "aten::masked_select"}


class Listening(TorchDispatchMode):
    """Collects the names of operations that would make the host wait for its device."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        picks = name in ("aten::index", "aten::index_put_") and any(
            places is not None and places.dtype == torch.bool for places in args[1]
        )
        if name in QUESTIONS or picks:
            self.heard.append(name)
        return function(*args, **(kwargs or {}))


@pytest.fixture
def batch():
    ids = torch.randint(3, 64, (36,), generator=torch.Generator().manual_seed(0)).tolist()
    samples = [(ids[i : i + n], [0.0] + [1.0] * (n - 1)) for i, n in ((0, 15), (15, 5), (20, 7), (27, 9))]
    made = stack_rows(pack_samples(samples, 16, 2), masked=True)
    one, two = -torch.rand((2, *made.tokens.shape), generator=torch.Generator().manual_seed(1))
    rl = {"advantages": one, "old_logprobs": one, "sampler_logprobs": two, "reference_logprobs": two}
    return dataclasses.replace(made, **rl, normaliser=made.norm)  # as `Place.put` leaves it


LOSSES = {
    "next tokens": lambda model, batch, norm: next_token_loss(model, batch, LossSettings(), norm),
    "policy": lambda model, batch, norm: policy_loss(model, batch, LossSettings(), PolicySettings(kl_weight=0.1), norm),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("recompute", ["none", "selective"])
def test_a_step_asks_nothing_before_its_numbers_are_read(build, tmp_path, batch, monkeypatch, loss, recompute):
    monkeypatch.setattr(sorted_experts, "groups_without_asking", lambda device: True)
    settings = TrainSettings(steps=10, recompute=recompute)
    trainer = Trainer(build(), Fixed([[batch]]), LOSSES[loss], settings, tmp_path)
    with ops.backend("torch"), Listening() as listening:
        sums, loads = trainer._forward_backward([batch, batch], batch.norm)
        grad = trainer.weights.total(trainer.place.sum_)
        norm, violation = trainer.weights.norm(grad), load_violation(loads)
        trainer.optimizer.step(grad, 1e-3)
        trainer._balance(loads)
    assert listening.heard == []
    assert all(isinstance(x, torch.Tensor) for x in (*sums.values(), norm, violation))


def test_it_would_be_heard():
    with Listening() as listening:
        x = torch.ones(3)
        assert float(x.sum()) == 3
        x[x > 0] = 2
    assert listening.heard == ["aten::_local_scalar_dense", "aten::index_put_"]
