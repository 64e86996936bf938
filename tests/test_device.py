"""The tests' own device computes as the processor does, and refuses to mix with it as a GPU does."""

import copy
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from tests.device import elsewhere
from ziphius.train.batch import Batch
from ziphius.train.place import Place


@pytest.fixture(scope="module")
def apart():
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver"), initializer=elsewhere) as pool:
        yield lambda work, *args: pool.submit(work, *args).result()


MIXTURES = {
    "sum": lambda far, near: far + near,
    "in place": lambda far, near: far.add_(near),
    "product": lambda far, near: far @ near,
    "linear": lambda far, near: torch.nn.functional.linear(far, near),
    "index": lambda far, near: far[torch.tensor([0, 1])],
    "put": lambda far, near: far.index_put_((torch.tensor([0]),), far[0]),
    "embedding": lambda far, near: torch.nn.functional.embedding(torch.tensor([1]), far),
    "gather": lambda far, near: far.gather(0, torch.tensor([[0, 1]])),
    "concatenation": lambda far, near: torch.cat([far, near]),
    "choice": lambda far, near: torch.where(far > 0, far, near),
    "softmax of the near, times the far": lambda far, near: near.softmax(-1) * far,
    "out": lambda far, near: torch.add(near, near, out=far),
    "the processor's generator": lambda far, near: far.normal_(generator=torch.Generator()),
}


def refuses(name):
    with pytest.raises(RuntimeError):
        MIXTURES[name](torch.ones(2, 2, device=elsewhere()), torch.ones(2, 2))


@pytest.mark.parametrize("name", MIXTURES)
def test_nothing_mixes(apart, name):
    apart(refuses, name)


def computes():
    far = elsewhere()
    x = torch.arange(12.0).view(3, 4)
    y = x.to(far)
    assert torch.equal(y.cpu(), x)
    assert torch.equal((2 * y + torch.tensor(1.0)).cpu(), 2 * x + 1)  # without dimensions it may come from anywhere
    assert y[1:, y[0] > 1].tolist() == x[1:, 2:].tolist()
    row = y[1]
    y.mul_(2)
    assert row.tolist() == [8, 10, 12, 14]  # a view
    assert (y.sum().item(), y.max().item()) == (132, 22)
    assert [part.device.type for part in torch.arange(3, device=far).chunk(3)] == ["elsewhere"] * 3
    assert torch.zeros_like(y).copy_(x).tolist() == x.tolist()


def learns():
    far = elsewhere()
    torch.manual_seed(0)
    near_net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
    far_net = copy.deepcopy(near_net).to(far)
    kept = copy.deepcopy(far_net)
    x = torch.randn(16, 4)
    for net, inputs in ((near_net, x), (far_net, x.to(far))):
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            net(inputs).pow(2).mean().backward()
            optimizer.step()
    for ours, theirs in zip(far_net.parameters(), near_net.parameters(), strict=True):
        assert ours.device.type == "elsewhere"
        assert torch.allclose(ours.detach().cpu(), theirs, atol=1e-6)
    assert not torch.equal(kept[0].weight, far_net[0].weight)
    kept.load_state_dict(far_net.state_dict())
    assert torch.equal(kept[0].weight, far_net[0].weight)


def rounds():
    a = torch.randn(4, 4, device=elsewhere())
    with Place(device=elsewhere()).computing("bf16").autocast():
        product = a @ a
        assert product.dtype == torch.bfloat16
        assert product.softmax(-1).dtype == product.sum().dtype == torch.float32  # as on CUDA, and not as on a CPU
    assert (a @ a).dtype == torch.float32


def puts():
    batch = Batch(torch.ones(2, 3, dtype=torch.long), torch.tensor([[0.0, 1, 1], [0, 1, 0]]))
    put = Place(device=elsewhere()).put(batch)
    assert {put.tokens.device.type, put.weights.device.type} == {"elsewhere"}
    assert (put.segments, put.norm) == (None, 3.0)
    assert Place().put(batch) is batch


@pytest.mark.parametrize("work", [computes, learns, rounds, puts])
def test_it_computes_as_the_processor_does(apart, work):
    apart(work)
