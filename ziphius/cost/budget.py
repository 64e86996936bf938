"""The inverse of a plan: which model, how many tokens and which batch an amount of money buys. Imports no torch.

The money is GPU-hours at a rate, the hours are tokens at a speed (planned, or measured by the caller), and the model
is the one of the ladder (`ziphius.model.presets.ladder`) at which size and tokens agree with the scaling rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

from ziphius.cost.data import Data
from ziphius.cost.flops import ParameterCounts, count_parameters, train_flops_per_token
from ziphius.cost.interval import Interval
from ziphius.cost.layout import Layout
from ziphius.cost.money import Rate
from ziphius.cost.rows import Accelerator
from ziphius.cost.scaling import (
    best_batch,
    best_learning_rate,
    best_scale,
    expected_loss,
    model_scale,
    vocabulary_for,
)
from ziphius.cost.search import search_layouts
from ziphius.cost.shape import shape_of
from ziphius.cost.train import TrainPlan, TrainRequest, train_plan
from ziphius.model.config import ModelConfig
from ziphius.model.presets import ladder

SHALLOWEST, DEEPEST = 2, 512  # the ladder's 512th rung is 16,384 wide
PROBE_ERROR = 1.4  # a probe of seconds against a run of hours, beside whatever else the machine does
TOO_LITTLE = 30.0  # times the rule's size that even the smallest network may be
PATIENCE_HOURS = 720.0  # without --hours a run is spread over enough devices to end within 30 days

# Tokens a second of the whole machine on (network, tokens of a sequence, sequences a step).
Speed = Callable[[ModelConfig, int, int], Interval]


@dataclass(frozen=True)
class Money:
    """An amount of dollars as devices and hours. `rate` is dollars per device-hour."""

    dollars: float
    rate: Rate
    devices: int
    hours: float

    @property
    def spent(self) -> float:
        return self.devices * self.hours * self.rate.dollars.point


@dataclass(frozen=True)
class Choice:
    """One network of the ladder with what the money trains it on."""

    depth: int
    config: ModelConfig
    counts: ParameterCounts
    tokens: Interval
    tokens_per_second: Interval
    rows: int  # sequences a step
    steps: int
    learning_rate: float
    scale: float  # M, FLOPs per token without vocabulary
    compute: float  # M · tokens
    model_flops: float  # with vocabulary and prediction modules, as trained
    loss: Interval

    @property
    def off_rule(self) -> float:
        """Its size over the size that the rule gives for its arithmetic."""
        return self.scale / best_scale(self.compute)


def split_money(dollars: float, rate: Rate, hours: float | None, most: int | None = None) -> Money:
    """Devices and hours for `dollars`: at most `hours` on the clock, else at most 30 days; `most` devices at most.

    From 8 devices on a multiple of 8. Less money than one device takes in `hours` buys less time.
    """
    price = rate.dollars.point
    if price <= 0:
        raise ValueError("the rate is 0: an amount of money buys no certain hours; give --rate above 0")
    device_hours = dollars / price
    wanted = device_hours / (hours or PATIENCE_HOURS)
    if hours is None and wanted > 1:
        devices = math.ceil(wanted) if wanted <= 7 else math.ceil(wanted / 8) * 8
    else:
        devices = int(wanted) // 8 * 8 if wanted >= 8 else max(1, int(wanted))
    devices = min(devices, most or devices)
    clock = device_hours / devices
    return Money(dollars, rate, devices, clock if hours is None else min(hours, clock))


def choose(money: Money, speed: Speed, seq_len: int) -> list[Choice]:
    """The choice between its neighbours of about half and twice its size, smallest first.

    `speed` raises ValueError for a network that does not fit the devices; then the largest that fits is chosen. Raises
    ValueError where the money buys too little to train anything, or more than the ladder reaches.
    """

    @cache
    def weigh(depth: int) -> Choice | None:
        try:
            return _choice(money, speed, seq_len, depth)
        except ValueError:
            if depth == SHALLOWEST:
                raise
            return None

    def too_small(depth: int) -> bool:
        found = weigh(depth)
        return found is not None and found.off_rule < 1

    smallest = _choice(money, speed, seq_len, SHALLOWEST)
    if smallest.off_rule > TOO_LITTLE:
        raise ValueError(
            f"${money.dollars:g} buys {smallest.tokens.point:,.0f} tokens for the smallest network, too few to learn "
            "from; give more money, a lower --rate or more --hours"
        )
    low, high = SHALLOWEST, DEEPEST
    while low < high:  # a larger network lies further above the rule: look for the first above it
        middle = (low + high) // 2
        low, high = (middle + 1, high) if too_small(middle) else (low, middle)
    if too_small(low):
        raise ValueError(f"${money.dollars:g} buys more than the ladder's deepest network ({DEEPEST} layers) needs")
    around = [found for depth in (low - 1, low) if depth >= SHALLOWEST and (found := weigh(depth))]
    best = min(around, key=lambda choice: abs(math.log(choice.off_rule)))
    others = [_rung(best.depth, factor, seq_len) for factor in (0.5, 2.0)]
    return [found for depth in sorted({best.depth, *filter(None, others)}) if (found := weigh(depth))]


def ladder_of_losses(money: Money, speed: Speed, seq_len: int, around: Choice) -> list[Choice]:
    """What the same money makes of smaller and larger networks than `around`, from a tenth to ten times its size."""
    sizes = {_rung(around.depth, 10 ** (power / 4), seq_len) for power in range(-4, 5) if power} | {around.depth}
    found = []
    for depth in sorted(filter(None, sizes)):
        try:
            found.append(_choice(money, speed, seq_len, depth))
        except ValueError:  # does not fit
            continue
    return found


def _rung(depth: int, factor: float, seq_len: int) -> int | None:
    """The rung of the ladder whose size is nearest `factor` times that of `depth`, but never itself."""
    rungs = range(SHALLOWEST, depth) if factor < 1 else range(depth + 1, min(3 * depth + 2, DEEPEST) + 1)
    aim = factor * model_scale(network(depth, seq_len), seq_len)
    return min(
        rungs, key=lambda other: abs(math.log(model_scale(network(other, seq_len), seq_len) / aim)), default=None
    )


@lru_cache(maxsize=512)
def network(depth: int, seq_len: int) -> ModelConfig:
    """The ladder's network with a vocabulary that suits its size, and room for `seq_len` tokens."""
    bare = count_parameters(ladder(depth, 1024))
    config = ladder(depth, 1024)
    vocabulary = vocabulary_for(config.hidden_size, bare.total - bare.embedding - bare.head)
    reach = {"max_position_embeddings": seq_len} if seq_len > config.max_position_embeddings else {}
    return ladder(depth, vocabulary, **reach)


def power_of_two(value: float) -> int:
    """The nearest one, 1 at least: batches of such sizes split evenly."""
    return 2 ** max(0, round(math.log2(value))) if value > 1 else 1


def _choice(money: Money, speed: Speed, seq_len: int, depth: int) -> Choice:
    config = network(depth, seq_len)
    scale, seconds, rows = model_scale(config, seq_len), money.hours * 3600, money.devices
    for _ in range(2):  # the batch follows the arithmetic, and the speed follows the batch
        rate = speed(config, seq_len, rows)
        compute = scale * rate.point * seconds
        rows = money.devices * power_of_two(best_batch(compute) / seq_len / money.devices)
    tokens = rate.scaled(seconds)
    steps = max(1, round(tokens.point / (rows * seq_len)))
    return Choice(
        depth=depth,
        config=config,
        counts=count_parameters(config),
        tokens=tokens,
        tokens_per_second=rate,
        rows=rows,
        steps=steps,
        learning_rate=best_learning_rate(compute),
        scale=scale,
        compute=compute,
        model_flops=train_flops_per_token(config, seq_len, mtp=True) * tokens.point,
        loss=expected_loss(config, tokens),
    )


def planned_speed(accelerator: Accelerator, devices: int, data: Data, rate: Rate) -> Speed:
    """Speed by the training plan, for PyTorch run eagerly in BF16 as this package's trainer does."""

    def speed(config: ModelConfig, seq_len: int, rows: int) -> Interval:
        rows = -(-rows // devices) * devices
        request = TrainRequest(
            model=f"the ladder's network of {config.num_hidden_layers} layers",
            shape=shape_of(config),
            accelerator=accelerator,
            gpus=devices,
            tokens=1.0,
            seq=seq_len,
            batch=rows,
            stack="eager",
        )
        return _fastest(request, data, rate).tokens_per_second_per_gpu.scaled(devices)

    return speed


def _fastest(request: TrainRequest, data: Data, rate: Rate) -> TrainPlan:
    """The fastest data-parallel plan that fits; where none fits, the best of all layouts."""
    plans = []
    for microbatch in (64, 32, 16, 8, 4, 2, 1):
        for recompute in ("none", "selective", "full"):
            try:
                plans.append(train_plan(request, Layout(microbatch=microbatch, recompute=recompute), data, rate))
                break
            except ValueError:  # does not divide, or does not fit
                continue
    if plans:
        return min(plans, key=lambda plan: plan.step_seconds.point)
    return train_plan(request, search_layouts(request, data).best[0].layout, data, rate, searched=True)


def measured_speed(flops_per_second: dict[float, float]) -> Speed:
    """Speed from training FLOPs a second, measured at one or more sizes M; between them on a log scale of size."""
    known = sorted(flops_per_second.items())

    def speed(config: ModelConfig, seq_len: int, rows: int) -> Interval:
        scale = model_scale(config, seq_len)
        flops = known[0][1] if scale <= known[0][0] else known[-1][1]
        for (left, slow), (right, fast) in pairwise(known):
            if left < scale < right:
                flops = slow + (fast - slow) * math.log(scale / left) / math.log(right / left)
        return Interval.within(flops / train_flops_per_token(config, seq_len, mtp=True), PROBE_ERROR)

    return speed
