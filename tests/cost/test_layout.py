import pytest

from ziphius.cost.data import Data
from ziphius.cost.layer import expert_copies
from ziphius.cost.layout import Layout, parse_layout

DATA = Data()
V3 = DATA.shape("deepseek-v3")


def test_a_layout_reads_what_it_writes():
    layout = parse_layout("pp16, ep64,zero1")
    assert (layout.pp, layout.ep, layout.zero, layout.tp) == (16, 64, 1, 1)
    assert parse_layout(layout.axes()) == layout
    assert layout.data_parallel(2048) == 128
    assert layout.microbatches(2048, 15360) == 120


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("qq4", "'qq4' is no axis; write such as pp16,ep64,zero1"),
        ("pp4,pp8", "pp is given twice"),
        ("zero4", "zero4 is out of range"),
        ("tp0", "tp0 is out of range"),
    ],
)
def test_what_is_no_layout_is_refused(text, says):
    with pytest.raises(ValueError, match=says):
        parse_layout(text)


@pytest.mark.parametrize(
    ("layout", "gpus", "batch", "says"),
    [
        (Layout(pp=16), 2000, 15360, None),
        (Layout(pp=3), 2048, 15360, "2048 GPUs do not divide by pp3,zero1"),
        (Layout(pp=16, ep=64), 2048, 15361, "a batch of 15361 sequences does not divide by 128 replicas"),
        (Layout(pp=16, ep=96), 2048, 15360, "ep96 does not divide the 256 experts"),
        (Layout(pp=64), 2048, 15360, "pp64 × vpp1 is more than the 61 layers"),
        (Layout(tp=16, pp=16, ep=256), 2048, 15360, "ep256 does not divide the 128 GPUs of one pipeline stage"),
        (Layout(pp=16, ep=64, schedule="dualpipe"), 2048, 1536, "dualpipe needs .* raise --batch to 4096"),
        (Layout(pp=5), 2560, 15360, None),
    ],
)
def test_layouts_that_do_not_divide_are_refused(layout, gpus, batch, says):
    if says is None:
        layout.check(V3, gpus, batch - batch % (gpus // layout.pp))
        return
    with pytest.raises(ValueError, match=says):
        layout.check(V3, gpus, batch)


def test_experts_need_experts():
    with pytest.raises(ValueError, match="ep8: the model has no experts; leave ep out"):
        Layout(ep=8).check(DATA.shape("llama-3-8b"), 8, 8)
    with pytest.raises(ValueError, match="tp7 does not divide the 32 heads"):
        Layout(tp=7).check(DATA.shape("llama-3-8b"), 7, 7)


def test_node_limited_routing_sends_a_token_to_four_nodes_at_most():
    between, within = expert_copies(V3, 64, 8)
    assert between == pytest.approx(4 * 7 / 8)  # V3 §3.2.2: at most four nodes, one of eight is the token's own
    assert 7 < within <= 8
    free = V3.__class__(**{**V3.__dict__, "moe_groups": 1, "top_groups": 1})
    assert expert_copies(free, 64, 8)[0] > between
    assert expert_copies(V3, 64, 8, deduplicated=0.0)[0] == pytest.approx(8 * 7 / 8)
    assert expert_copies(V3, 8, 8)[0] == 0.0
    assert expert_copies(V3, 64, 72)[0] == 0.0


def test_other_ways_of_writing_an_axis():
    assert parse_layout("tp2,vp4,fsdp") == Layout(tp=2, vpp=4, zero=3)
    assert parse_layout("tp2,dp4,mbs2").data_parallel(8) == 4
    with pytest.raises(ValueError, match="dp4 with tp2,zero1 takes 8 GPUs, not 16; leave dp out"):
        parse_layout("tp2,dp4").data_parallel(16)
