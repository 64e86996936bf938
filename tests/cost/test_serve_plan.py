"""Serving plans: DeepSeek's published day, what must always hold, what is refused."""

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.cost.data import Data
from ziphius.cost.decode import Pool, Serving, cache_room, decode_seconds, weights_per_device
from ziphius.cost.interval import Interval
from ziphius.cost.machine import SUSTAINED, Machine
from ziphius.cost.money import rental_rate
from ziphius.cost.serve import serve_plan
from ziphius.cost.workload import ServeRequest, Workload

DATA = Data()
R1 = DATA.shape("deepseek-r1")
H800 = DATA.accelerator("h800")
RATE = rental_rate(H800, DATA, dollars=2.0)
# 27–28 February 2025: 608B tokens in, 342B of them cached, 168B out (open-infra-index, day 6)
REQUESTS = 168e9 / 1000 / 86400
DAY = Workload(608e9 / 168e6, 1000, 342 / 608, 4989, 20, None, REQUESTS)
ASKED = ServeRequest(
    "deepseek-r1", R1, H800, DAY, software=date(2025, 2, 28), prefill=Pool.of(R1, 32), decode=Pool.of(R1, 144)
)


def plan(request=ASKED, **options):
    return serve_plan(request, DATA, RATE, **options)


def test_deepseeks_day_comes_out():
    found = plan(price=DATA.api_price("deepseek-r1", date(2025, 2, 28)))
    nodes = found.gpus.scaled(1 / 8)
    assert nodes.low < 226.75 < nodes.high
    assert nodes.point == pytest.approx(226.75, rel=0.15)
    assert found.dollars_per_day.low < 87_072 < found.dollars_per_day.high
    assert found.income_per_day == pytest.approx(562_027, rel=0.002)
    assert found.margin.low < 5.45 < found.margin.high
    assert found.margin.point == pytest.approx(5.45, rel=0.2)


def test_averages_are_told_from_peaks():
    found = plan()
    peak = found.output_tokens_per_second_per_gpu.scaled(8)
    mean = peak.times(found.utilisation)
    assert mean.low < 14_800 < mean.high
    assert peak.point > mean.point
    busy = plan(utilisation=Interval.exactly(1.0))
    assert busy.dollars_per_million_output.point < found.dollars_per_million_output.point


def test_redundant_experts_are_those_of_the_report():
    assert Pool.of(R1, 32).redundant_experts == 32
    assert Pool.of(R1, 144).redundant_experts == 32
    assert Pool.of(R1, 320).redundant_experts == 64
    assert Pool.of(R1, 8).redundant_experts == 0


def serving(gpu="h800", shape=R1, **changes):
    card = DATA.accelerator(gpu).model_copy(update=changes)
    return Serving(Machine(card, DATA.software(date(2025, 3, 1)), None, SUSTAINED), shape, "fp8", 2.0, 1.15)


def test_the_weights_of_a_pool_add_up():
    pool = Pool(64)
    everything = weights_per_device(serving(), pool) * 64
    attention = weights_per_device(serving(), pool) - R1.moe_layers * 256 * 3 * 7168 * 2048 / 64
    assert everything - 63 * attention == pytest.approx(671e9, rel=0.02)


@settings(deadline=None, max_examples=40)
@given(
    st.floats(1, 256),
    st.floats(1, 16000),
    st.floats(1.0, 3.0),
    st.sampled_from(["memory_tb_s", "nic_gb_s", "nvlink_gb_s"]),
)
def test_decoding_is_never_slower_with_more_bandwidth_nor_faster_with_more_work(batch, context, factor, what):
    pool = Pool.of(R1, 64)
    plain = decode_seconds(serving(), pool, batch, context)
    faster = serving(**{what: getattr(H800, what) * factor})
    assert decode_seconds(faster, pool, batch, context) <= plain * (1 + 1e-9)
    assert decode_seconds(serving(), pool, batch, context * factor) >= plain * (1 - 1e-9)


def test_a_cache_in_fp8_holds_twice_as_much():
    half = replace(serving(), kv_bytes=1.0)
    assert cache_room(half, Pool.of(R1, 32)) == pytest.approx(2 * cache_room(serving(), Pool.of(R1, 32)))


def test_faster_users_cost_more():
    plans = [plan(replace(ASKED, workload=replace(DAY, user_speed=speed))) for speed in (5, 20, 35)]
    costs = [found.dollars_per_million_output.point for found in plans]
    assert costs == sorted(costs)
    assert costs[-1] > costs[0]


def test_drafting_helps_a_user_who_is_in_a_hurry():
    hurry = replace(ASKED, workload=replace(DAY, user_speed=30))
    drafted = plan(replace(hurry, acceptance=0.85))
    assert drafted.dollars_per_million_output.point < plan(hurry).dollars_per_million_output.point


def test_cost_is_linear_in_the_rate_and_quantities_lie_in_their_intervals():
    once = plan()
    twice = serve_plan(ASKED, DATA, rental_rate(H800, DATA, dollars=4.0))
    assert twice.dollars_per_day.point == pytest.approx(2 * once.dollars_per_day.point)
    for value in vars(once).values():
        if isinstance(value, Interval):
            assert value.low <= value.point <= value.high
            assert value.high / value.low <= 2.5


def test_dense_models_are_served_too():
    llama = DATA.shape("llama-3.1-70b")
    request = ServeRequest("llama-3.1-70b", llama, DATA.accelerator("h100"), Workload(1000, 500), "bf16")
    found = serve_plan(request, DATA, RATE)
    assert found.decode.pool.tp == found.decode.pool.gpus >= 4  # 141 GB of weights need two cards and room
    assert found.decode.user_speed >= 20


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"decode": Pool.of(R1, 4)},
            r"does not fit 4 h800: weights take .* use more devices a pool",
        ),
        ({"workload": replace(DAY, user_speed=500)}, r"no pool gives a user 500 tokens/s: the quickest gives"),
        ({"workload": replace(DAY, first_token_seconds=0.001)}, r"no pool starts to answer within 0.001 s"),
        ({"precision": "fp4"}, "h800 has no fp4 arithmetic"),
    ],
)
def test_what_cannot_be_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        plan(replace(ASKED, **change))


def test_a_colocated_pool_takes_turns():
    llama = DATA.shape("llama-3.1-70b")
    asked = ServeRequest(
        "llama-3.1-70b", llama, DATA.accelerator("h100"), Workload(1000, 500, user_speed=0.1), decode=Pool(8, 8)
    )
    apart, together = plan(asked), plan(replace(asked, colocated=True))
    one, two = together.decode, apart.decode
    assert one.tokens_per_second < one.alone_tokens_per_second
    assert two.tokens_per_second == two.alone_tokens_per_second
    seconds_a_token = 1 / one.alone_tokens_per_second + 1000 / 500 / together.prefill.tokens_per_second
    assert one.tokens_per_second == pytest.approx(1 / seconds_a_token)
    assert together.prefill.pool == one.pool


def test_concurrency_is_kept():
    for asked in (32, 1440, 14400):
        found = plan(replace(ASKED, workload=replace(DAY, user_speed=0.1, concurrency=asked)))
        assert found.decode.sequences * 144 == pytest.approx(asked)
    with pytest.raises(ValueError, match="no pool gives a user 40 tokens/s"):
        plan(replace(ASKED, workload=replace(DAY, user_speed=40, concurrency=14400)))
    with pytest.raises(ValueError, match="does not fit"):
        plan(replace(ASKED, workload=replace(DAY, concurrency=1e6)))
