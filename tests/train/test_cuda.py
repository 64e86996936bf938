"""Steps of every kind of stage on a card: the numbers are those of the processor's torch backend."""

import pytest
import torch

from tests.train.jobs import make
from ziphius import ops
from ziphius.text.tokenizer import Tokenizer
from ziphius.train.place import join

VARYING = {"seconds", "tokens_per_second", "rollout_seconds"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["pretrain", "sft", "grpo"])
def test_steps_come_to_the_same(tmp_path, tokenizer_folder, kind):
    tokenizer = Tokenizer.load(tokenizer_folder)
    with ops.backend("torch"):
        near = make(kind, tmp_path / "cpu", tokenizer, join("cpu"), precision="fp32")
        here = [near.step() for _ in range(2)]
    far = make(kind, tmp_path / "cuda", tokenizer, join("cuda"), precision="fp32")
    there = [far.step() for _ in range(2)]
    for ours, theirs in zip(there, here, strict=True):
        for name in theirs.keys() - VARYING:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-2, abs=1e-3), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["pretrain", "sft", "grpo"])
def test_a_stage_in_bf16(tmp_path, tokenizer_folder, kind):
    """To its end, with a state saved on the way."""
    trainer = make(kind, tmp_path, Tokenizer.load(tokenizer_folder), join("cuda"))
    result = trainer.run()
    assert result.steps == 10
    assert all(weight.isfinite().all() for weight in trainer.model.parameters())
