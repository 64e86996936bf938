"""The tables that ship are whole and sourced; a user's wrong row is refused with its line."""

from datetime import date

import pytest

from ziphius.cost.data import TABLES, Data, DataError
from ziphius.cost.flops import count_parameters

GOOD = """
[[accelerator]]
name = "mine"
title = "A card of my own"
architecture = "hopper"
bf16_tflops = 500
bf16_reached = 400
fp32_tflops = 30
memory_gb = 64
memory_tb_s = 2.0
nic_gb_s = 25
watts = 500
all_in_watts = 900
units = 100
date = 2025-01-01
source = "my own measurements"
"""


def test_every_row_reads_and_names_its_source(tables):
    for table, (_, kind) in TABLES.items():
        rows = tables.rows(table, kind)
        assert rows
        for row in rows:
            assert row.source
            assert row.date >= date(2018, 1, 1)


def test_the_accelerators_that_were_asked_for_are_there(tables):
    for name in ("a100", "h100", "h800", "h200", "h20", "b200", "b300", "gb200", "gb300", "epyc-9755"):
        row = tables.accelerator(name)
        assert row.bf16_reached <= row.bf16_tflops
        if row.fp8_tflops:
            assert row.fp8_reached <= row.fp8_tflops


def test_prices_name_known_accelerators(tables):
    for row in (*tables.rentals, *tables.purchases):
        assert row.gpu in tables.accelerators


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("llama-3-8b", 8.03), ("llama-3.1-70b", 70.55), ("llama-3.1-405b", 405.85), ("qwen2.5-72b", 72.71),
        ("qwen3-30b-a3b", 30.53), ("qwen3-235b-a22b", 235.09), ("mixtral-8x7b", 46.70), ("gpt-oss-120b", 116.8),
        ("deepseek-67b", 67.4), ("olmo-2-32b", 32.2), ("gpt-3-175b", 175.2),
    ],
)  # fmt: skip
def test_shapes_have_the_size_in_their_name(tables, model, billions):
    assert count_parameters(tables.shape(model)).total / 1e9 == pytest.approx(billions, rel=2e-3)


def test_prices_hold_on_their_days(tables):
    first = tables.api_price("deepseek-r1", date(2025, 1, 20))
    assert (first.hit, first.miss, first.output) == (0.14, 0.55, 2.19)
    assert tables.api_price("deepseek-v3", date(2025, 2, 7)).output == 0.28
    assert tables.api_price("deepseek-v3", date(2025, 2, 8)).output == 1.10
    night = tables.api_price("deepseek-r1", date(2025, 3, 1), band="off-peak")
    assert (night.utc_from, night.utc_to, night.output) == ("16:30", "00:30", 0.55)
    with pytest.raises(DataError, match="known since: 2025-01-20"):
        tables.api_price("deepseek-r1", date(2024, 1, 1))


def test_software_lies_between_its_rows(tables):
    old, middle, new = (tables.software(day) for day in (date(2025, 3, 1), date(2025, 6, 15), date(2025, 10, 1)))
    assert old.moe_launches > middle.moe_launches > new.moe_launches
    assert old.flash_forward["hopper"] < middle.flash_forward["hopper"] < new.flash_forward["hopper"]
    assert tables.software(date(2020, 1, 1)) == tables.software(date(2023, 7, 1))
    assert tables.software() == tables.software(date(2030, 1, 1))


def test_a_users_rows_come_after_the_packages(tmp_path):
    (tmp_path / "mine.toml").write_text(GOOD + GOOD.replace('"mine"', '"h100"'))
    data = Data([tmp_path / "mine.toml"])
    assert data.accelerator("mine").memory_gb == 64
    assert data.accelerator("H100").memory_gb == 64


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("bf16_tflops = 500", "bf16_tflops = -1"), 6, "accelerator.bf16_tflops: Input should be greater than 0"),
        (("watts = 500", 'watts = "lots"'), 12, "accelerator.watts"),
        (("memory_gb = 64", "memory_gib = 64"), 9, "accelerator.memory_gib: Extra inputs are not permitted"),
        (("units = 100\n", ""), 2, "accelerator.units: Field required"),
        (('source = "my own measurements"', 'source = ""'), 16, "accelerator.source"),
        (("[[accelerator]]", "[[accelerators]]"), 2, "no table is called 'accelerators'"),
        (("[[accelerator]]", "[accelerator]"), 2, "write each row of accelerator under a heading [[accelerator]]"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path, change, line, says):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD.replace(*change))
    with pytest.raises(DataError) as refused:
        Data([file])
    message = str(refused.value)
    assert message.startswith(f"{file}:{line}: ")
    assert says in message
    assert "\n" not in message


def test_the_second_row_is_the_one_that_is_named(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD + GOOD.replace("watts = 500", "watts = 0"))
    with pytest.raises(DataError, match=r"mine\.toml:28: accelerator\.watts"):
        Data([file])


def test_a_missing_and_a_broken_file(tmp_path):
    with pytest.raises(DataError, match="no such data file"):
        Data([tmp_path / "no.toml"])
    (tmp_path / "broken.toml").write_text("a = \n")
    with pytest.raises(DataError, match="not readable as TOML"):
        Data([tmp_path / "broken.toml"])


def test_unknown_names_list_what_there_is(tables):
    with pytest.raises(DataError, match=r"no accelerator called 'h900'; there are a100, b200"):
        tables.accelerator("h900")
    with pytest.raises(DataError, match=r"no model called 'gpt-9', and no such folder; there are .*deepseek-v3"):
        tables.shape("gpt-9")
    with pytest.raises(DataError, match="on demand"):
        tables.rental("h100", "on the moon")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("deepseek-ai/DeepSeek-R1", "deepseek-r1"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-v3"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
        ("llama3-70b", "llama-3-70b"),
    ],
)
def test_names_of_hugging_face_are_known(tables, name, plain):
    assert tables.shape(name) == tables.shape(plain)
