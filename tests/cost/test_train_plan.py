"""Training plans: V3's published figures, what must always hold, what is refused."""

from dataclasses import replace
from datetime import date
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.cost.data import Data
from ziphius.cost.interval import Interval
from ziphius.cost.layout import Layout, parse_layout
from ziphius.cost.money import rental_rate
from ziphius.cost.phases import load_phases, plan_phases
from ziphius.cost.search import complete_layout, search_layouts
from ziphius.cost.train import GIB, TrainRequest, train_plan

DATA = Data()
V3 = TrainRequest(
    "deepseek-v3", DATA.shape("deepseek-v3"), DATA.accelerator("h800"), 2048, 14.8e12, 4096, 15360, "fp8",
    date(2024, 12, 1), "deepseek",
)  # fmt: skip
DUALPIPE = parse_layout("pp16,ep64,zero1", schedule="dualpipe")
LLAMA = TrainRequest(
    "llama-3-8b", DATA.shape("llama-3-8b"), DATA.accelerator("h100"), 8, 1e12, 8192, 128, "fp8", date(2025, 10, 1)
)
RATE = rental_rate(V3.accelerator, DATA)


def plan(request=V3, layout=DUALPIPE, **options):
    return train_plan(request, layout, DATA, RATE, **options)


def test_v3_costs_what_its_report_says():
    found = plan()
    assert found.gpu_hours.low < 2_664_000 < found.gpu_hours.high
    assert found.dollars.low < 5_328_000 < found.dollars.high
    assert found.step_seconds.point == pytest.approx(19.926, rel=0.1)
    assert found.tokens_per_second_per_gpu.point == pytest.approx(1541.7, rel=0.1)
    assert found.mfu.point == pytest.approx(0.3894, rel=0.1)  # causal, against the BF16 peak
    assert found.mfu_non_causal.point / found.mfu.point == pytest.approx(43.73 / 38.94, rel=0.01)
    assert found.days.point == pytest.approx(54.2, rel=0.1)
    assert found.fits


def test_the_phases_of_v3_are_one_plan():
    plans = plan_phases(V3, DUALPIPE, load_phases("deepseek-v3"), DATA, RATE)
    assert [phase.name for phase, _ in plans.phases][:2] == ["pretraining", "context to 32K"]
    assert plans.gpu_hours.low < 2_788_000 < plans.gpu_hours.high
    assert plans.dollars.point == pytest.approx(5_576_000, rel=0.1)
    longer = [found for phase, found in plans.phases if phase.name.startswith("context")]
    hours = sum(found.gpu_hours.point for found in longer)
    assert hours == pytest.approx(119_000, rel=0.35)
    assert plans.gpu_hours.point == pytest.approx(sum(found.gpu_hours.point for _, found in plans.phases))


def test_parts_add_up():
    found = plan()
    assert sum(found.step.parts.values()) == pytest.approx(found.step_seconds.point)
    assert sum(found.memory_bytes.values()) / GIB == pytest.approx(found.memory_gib.point)
    assert all(part >= 0 for part in (*found.step.parts.values(), *found.memory_bytes.values()))


def test_every_quantity_lies_in_an_interval_no_wider_than_a_factor_of_two():
    for found in (plan(), plan(searched=True), plan(LLAMA, Layout(zero=3))):
        quantities = [value for value in vars(found).values() if isinstance(value, Interval)]
        assert len(quantities) >= 10
        for value in quantities:
            assert value.low <= value.point <= value.high
        for value in (found.step_seconds, found.gpu_hours, found.tokens_per_second_per_gpu, found.mfu, found.days):
            assert value.high / value.low <= 2.0


def test_cost_is_linear_in_tokens_and_in_the_rate():
    once, twice = plan(), plan(replace(V3, tokens=2 * V3.tokens))
    assert twice.gpu_hours.point == pytest.approx(2 * once.gpu_hours.point)
    dear = train_plan(V3, DUALPIPE, DATA, rental_rate(V3.accelerator, DATA, dollars=3.42))
    assert dear.dollars.point == pytest.approx(once.dollars.point * 3.42 / 2)


better = st.sampled_from(["memory_tb_s", "nvlink_gb_s", "nic_gb_s", "bf16_reached", "fp8_reached"])


@settings(deadline=None, max_examples=30)
@given(better, st.floats(1.0, 4.0), st.booleans())
def test_more_of_anything_is_never_slower(what, factor, dense):
    request, layout = (LLAMA, Layout(tp=2)) if dense else (V3, DUALPIPE)
    card = request.accelerator
    faster = card.model_copy(update={what: getattr(card, what) * factor})
    before = plan(request, layout, must_fit=False)
    after = plan(replace(request, accelerator=faster), layout, must_fit=False)
    assert after.step.total <= before.step.total * (1 + 1e-9)


def test_later_software_is_never_slower():
    days = [date(2023, 8, 1), date(2024, 8, 1), date(2025, 3, 1), date(2025, 12, 1), date(2026, 6, 1)]
    for request, layout in ((LLAMA, Layout()), (replace(V3, stack="tuned"), Layout(pp=16, ep=64))):
        times = [plan(replace(request, software=day), layout, must_fit=False).step.total for day in days]
        assert all(later <= earlier for earlier, later in pairwise(times))


def test_bubbles_are_those_of_the_schedules():
    def bubble(layout):
        step = plan(replace(V3, precision="bf16"), layout, must_fit=False).step
        return step.parts["bubble"], step

    deep = Layout(pp=16, ep=64)
    plain, step = bubble(deep)
    assert plain == pytest.approx(15 * (step.forward + step.backward))
    zero, step = bubble(replace(deep, schedule="zb1p"))
    assert zero == pytest.approx(15 * (step.forward + step.backward - 2 * step.weights))
    dual, step = bubble(replace(deep, schedule="dualpipe"))
    assert dual == pytest.approx(7 * (step.forward + 2 * step.backward - 3 * step.weights))
    assert dual < zero < plain
    assert bubble(replace(deep, vpp=2))[0] == pytest.approx(plain / 2, rel=0.05)
    assert plan(replace(V3, batch=2048), Layout(ep=64), must_fit=False).step.parts["bubble"] == 0


def test_recomputation_trades_time_for_memory():
    found = [plan(LLAMA, Layout(recompute=how), must_fit=False) for how in ("none", "selective", "full")]
    times = [p.step.total for p in found]
    memory = [p.memory_bytes["activations"] for p in found]
    assert times == sorted(times)
    assert memory == sorted(memory, reverse=True)


def test_zero_spreads_what_it_says():
    parts = [plan(LLAMA, Layout(zero=stage), must_fit=False).memory_bytes for stage in (0, 1, 2, 3)]
    assert parts[0]["moments"] == pytest.approx(8 * parts[1]["moments"], rel=0.01)
    assert parts[1]["gradients"] == pytest.approx(8 * parts[2]["gradients"], rel=0.01)
    assert parts[2]["weights"] > parts[3]["weights"]


def test_a_model_that_does_not_fit_says_by_how_much_and_what_to_do():
    with pytest.raises(
        ValueError, match=r"does not fit h800 .* GiB of \d+\.\d, \d+\.\d too much, .* or let --parallel auto"
    ):
        plan(V3, Layout(pp=16, ep=8, recompute="none", microbatch=4))
    with pytest.raises(
        ValueError, match=r"does not fit 8 h800: the smallest layout, .* too much; about \d+ GPUs would fit"
    ):
        search_layouts(replace(V3, gpus=8, batch=512), DATA)
    with pytest.raises(ValueError, match="no layout of llama-3-8b divides 7 GPUs"):
        search_layouts(replace(LLAMA, gpus=7), DATA)


def test_the_number_of_gpus_that_would_fit_fits():
    small = replace(V3, gpus=8, batch=2048)
    with pytest.raises(ValueError, match="would fit") as refused:
        search_layouts(small, DATA)
    gpus = int(str(refused.value).split("about ")[1].split()[0])
    assert search_layouts(replace(small, gpus=2 * gpus), DATA).best


def test_the_search_finds_the_fastest_that_fits():
    found = search_layouts(LLAMA, DATA)
    best = found.best[0]
    assert plan(LLAMA, best.layout).step.total == pytest.approx(best.seconds)
    assert all(best.seconds <= other.seconds * 1.011 for other in found.best)
    assert all(other.loses for other in found.best[1:])
    for large in found.too_large:
        assert large.seconds < best.seconds
        assert large.memory_gib > plan(LLAMA, large.layout, must_fit=False).capacity_gib
    assert found.tried > 100


def test_pytorch_is_slower_than_hand_fused_kernels():
    times = [
        plan(replace(LLAMA, stack=stack), Layout(), must_fit=False).step.total
        for stack in ("tuned", "compiled", "eager")
    ]
    assert times == sorted(times)


def test_small_devices_have_plans_too():
    from ziphius.cost.shape import shape_of
    from ziphius.model.presets import ladder

    request = TrainRequest("ladder", shape_of(ladder(4)), DATA.accelerator("cpu-2core"), 1, 1e6, 128, 8)
    found = train_plan(request, Layout(zero=0), DATA, rental_rate(request.accelerator, DATA))
    assert 0 < found.gpu_hours.point < 10
    assert found.dollars.point == pytest.approx(found.gpu_hours.point * 0.09)


def test_what_a_layout_leaves_open_is_chosen():
    given = complete_layout(V3, parse_layout("pp16,ep64,zero1", schedule="dualpipe"), DATA, zero=False, recompute=True)
    assert given.recompute == "selective"  # none does not fit, full is slower
    wide = complete_layout(LLAMA, Layout(), DATA, zero=True, recompute=True)
    assert (wide.zero, wide.recompute) == (3, "none")
    kept = complete_layout(LLAMA, Layout(zero=2, recompute="full"), DATA, zero=False, recompute=False)
    assert (kept.zero, kept.recompute) == (2, "full")


def test_what_is_a_little_too_large_is_priced_and_said_to_be_doubtful():
    doubtful = plan(V3, Layout(pp=16, ep=64, recompute="selective", microbatch=1, vpp=2))
    assert not doubtful.fits
    assert doubtful.memory_gib.low < doubtful.capacity_gib < doubtful.memory_gib.point


def test_a_search_knows_that_it_picks_its_own_errors():
    searched, given = plan(searched=True), plan()
    assert searched.step.total == pytest.approx(1.08 * given.step.total)
    assert plan(LLAMA, Layout(zero=3), searched=True).step.total == plan(LLAMA, Layout(zero=3)).step.total
