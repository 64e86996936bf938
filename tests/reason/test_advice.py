"""Every advice of the doctor is applied to a recipe, which must accept it."""

import re
from pathlib import Path

import pytest

from ziphius.reason.advice import Change, higher, lower, overrides, put
from ziphius.reason.doctor import diagnose
from ziphius.recipe.schema import changed_recipe, load_recipe
from ziphius.train.settings import LossSettings, RLTrainSettings

from .test_doctor import ILLNESSES, chart, reading

BASE = load_recipe(Path(__file__).parents[2] / "recipes" / "r1-cpu.toml").model_dump(mode="json")
RL_FINDINGS = {name: diagnose(chart(**gauges)) for name, gauges in ILLNESSES.items()}
READING_FINDINGS = {
    "loss rising": diagnose(reading(lambda step: 0.5 if step < 40 else 7.0)),
    "updates skipped": diagnose(reading(lambda step: 2.0, skipped=30)),
    "training diverged": diagnose([*reading(lambda step: 2.0), {"step": 99, "diverged": "the loss is 40.0"}]),
}
CASES = [(f, "rl") for found in RL_FINDINGS.values() for f in found]
CASES += [(f, stage) for found in READING_FINDINGS.values() for f in found for stage in ("pretrain", "cold_start")]


def settings_of(finding):
    """The last part of each key that a finding would change."""
    return {change.key.rpartition(".")[2] for change in finding.changes}


def test_every_check_is_among_the_cases():
    """A check without an ill chart would have advice that nobody has tried."""
    source = (Path(__file__).parents[2] / "ziphius" / "reason" / "illnesses.py").read_text()
    names = set(re.findall(r'chart\.finding\(\s*"([a-z ]+)"', source))
    assert names == {finding.name for finding, _ in CASES}


@pytest.mark.parametrize(("finding", "stage"), CASES, ids=lambda case: getattr(case, "name", case))
def test_the_recipe_accepts_each_change(finding, stage):
    assert finding.changes
    offered = list(overrides(finding.changes, BASE["stages"], stage))
    for override in offered:
        key, _, value = override.partition("=")
        made = changed_recipe(BASE, override).model_dump(mode="json")
        table = made["stages"]
        for part in key.split("."):
            table = table[part]
        assert str(table) in (value.strip('"'), value.title())  # it got there, and was not derived away
    assert offered


@pytest.mark.parametrize("finding", [f for f, _ in CASES], ids=lambda finding: finding.name)
def test_the_sentence_and_the_changes_name_the_same_settings(finding):
    known = {"lr", "clip", "precision", "overlong", "temperature", "epochs", "format", "language"}
    known |= {*RLTrainSettings.model_fields, *LossSettings.model_fields, *BASE["stages"]["rl"]["grpo"]}
    known -= {"steps", "policy"}  # words of plain English too
    words = {word.strip(".,:;()'").rpartition(".")[2] for word in finding.mend.split()}
    named = {word for word in words if word in known or "_" in word}
    assert named == settings_of(finding)


def test_changes_go_the_way_that_they_say():
    assert [lower("x").applied(value) for value in (4, 1, 0, 2e-3, None)] == [2, 1, 0, 1e-3, None]
    assert [higher("x", start=3).applied(value) for value in (4, 1, 0, None, 2e-3)] == [6, 2, 3, 3, 3e-3]
    assert [higher("x", start=0.9, most=1.0).applied(value) for value in (None, 0.5, 0.9)] == [0.9, 0.75, 1.0]
    assert put("x", "fp32").applied("bf16") == "fp32"


def test_changes_that_cannot_be_made_are_left_out():
    stages = {"base": {"kind": "pretrain", "x": 1}, "rl": {"kind": "grpo", "x": 8, "deep": {"y": "soft"}}}
    changes = [lower("x"), put("deep.y", "soft"), Change("x", "lower", kind="pretrain"), higher("x", kind="sft")]
    assert list(overrides(changes, stages, "rl")) == ["rl.x=4"]
    assert list(overrides([higher("x", kind="pretrain")], stages, "rl")) == ["base.x=2"]
    assert list(overrides([put("deep.y", True)], stages, "rl")) == ["rl.deep.y=true"]
