import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.cost.claims.all import all_claims, answer
from ziphius.cost.claims.claim import Evidence, Verdict
from ziphius.cost.claims.pictures import three_rates, waterfall
from ziphius.cost.claims.show import chosen, claims_json, show_claims, write_claims_page
from ziphius.cost.claims.working import Number, Working, evaluate, written

VERDICTS = {
    "six-million": Verdict.ONLY_FOR,
    "one-point-six-billion": Verdict.ONLY_FOR,
    "fifty-thousand-hopper": Verdict.UNKNOWN,
    "fifty-thousand-h100": Verdict.CONTRADICTED,
    "five-hundred-million": Verdict.UNKNOWN,
    "salaries": Verdict.UNKNOWN,
    "fifty-five-million": Verdict.ONLY_FOR,
    "three-percent": Verdict.ONLY_FOR,
    "fifty-times": Verdict.UNKNOWN,
    "markets": Verdict.UNKNOWN,
    "r1-294-thousand": Verdict.ONLY_FOR,
    "648-chips": Verdict.CONTRADICTED,
    "margin-545": Verdict.ONLY_FOR,
}


def by_name(**changed):
    return {claim.name: claim for claim in all_claims(Evidence(changed))}


def value(claim, label):
    (found,) = [step.result.value for step in claim.working.steps if step.label == label]
    return found


def test_verdicts():
    claims = by_name()
    assert {name: claim.verdict for name, claim in claims.items()} == VERDICTS
    for claim in claims.values():
        assert bool(claim.only_for) == (claim.verdict is Verdict.ONLY_FOR)
        assert claim.because
        assert claim.said
        assert claim.who


@pytest.mark.parametrize(("name", "label", "expected", "within"), [
    ("six-million", "GPU-hours of V3's final run", 2_788_000, 0),
    ("six-million", "At the rent that DeepSeek assumed", 5.576e6, 0),
    ("six-million", "Days on the cluster", 56.7, 0.001),
    ("six-million", "Are the hours plausible? Share of the chips' peak they imply", 0.3894, 0.01),
    ("six-million", "The same hours at an owner's cost", 3.9e6, 0.01),
    ("six-million", "The same hours at the market's rent", 9.5e6, 0.01),
    ("fifty-thousand-hopper", "The rest, which no article prints", 30_000, 0),
    ("one-point-six-billion", "Servers", 1.6e9, 0.02),
    ("one-point-six-billion", "Operations, four years", 944e6, 0.002),
    ("fifty-five-million", "Price of a GPU, at least", 19.5e3, 0.002),
    ("fifty-five-million", "Price of a GPU, at most", 24.4e3, 0.002),
    ("fifty-five-million", "The same cluster, ready to work", 65e6, 0.005),
    ("three-percent", "Input: R1 beside o1", 0.0367, 0.002),
    ("three-percent", "Output: R1 beside o1", 0.0365, 0.002),
    ("three-percent", "Input that a cache holds: R1 beside o1", 0.0187, 0.005),
    ("r1-294-thousand", "R1-Zero, SFT data and R1", 294_000, 0),
    ("648-chips", "GPU-hours on these", 101_376, 0),
    ("648-chips", "GPU-hours on 648", 128_304, 0),
    ("margin-545", "Cost of the day", 87_072, 0),
    ("margin-545", "All its tokens at R1's prices", 562_027, 0.001),
    ("margin-545", "Profit over cost", 5.45, 0.002),
    ("margin-545", "A million tokens of input cost", 0.060, 0.01),
    ("margin-545", "A million tokens of output cost", 0.300, 0.01),
])  # fmt: skip
def test_numbers(name, label, expected, within):
    assert value(by_name()[name], label) == pytest.approx(expected, rel=within or 1e-12)


@pytest.mark.parametrize(("name", "changed", "verdict"), [
    ("six-million", {"v3_pretraining_hours": 6e6}, Verdict.CONTRADICTED),
    ("six-million", {"said_training": 2e7}, Verdict.CONTRADICTED),
    ("one-point-six-billion", {"said_operations": 2e9}, Verdict.CONTRADICTED),
    ("fifty-thousand-hopper", {"v3_gpus": 60_000}, Verdict.HOLDS),
    ("fifty-thousand-h100", {"said_h100": 49_000}, Verdict.UNKNOWN),
    ("fifty-five-million", {"said_cluster_high": 4.05e7}, Verdict.CONTRADICTED),
    ("three-percent", {"said_price_share": 0.037}, Verdict.HOLDS),
    ("three-percent", {"said_price_share": 0.3}, Verdict.CONTRADICTED),
    ("fifty-times", {"llama_405b_hours": 2e8}, Verdict.HOLDS),
    ("r1-294-thousand", {"r1_hours": 1e6}, Verdict.CONTRADICTED),
    ("648-chips", {"r1_nodes": 81, "r1_zero_hours": 128_304}, Verdict.HOLDS),
    ("margin-545", {"serving_output_tokens": 3e11}, Verdict.CONTRADICTED),
])  # fmt: skip
def test_verdicts_follow_the_inputs(name, changed, verdict):
    assert by_name(**changed)[name].verdict is verdict


def test_the_words_follow_the_inputs():
    assert "2,788,000 GPU-hours" in by_name()["six-million"].because
    changed = by_name(v3_post_training_hours=6_000)["six-million"]
    assert "2,789,000 GPU-hours" in changed.because
    assert "$5.578M" in changed.because
    assert "$5.578M" in answer(Evidence({"v3_post_training_hours": 6_000}))


def test_every_input_has_a_source_and_every_formula_its_numbers():
    for claim in all_claims(Evidence()):
        for number in claim.working.inputs.values():
            assert len(number.source) > 8, number
        for step in claim.working.steps:
            assert re.search(r"\d", step.formula)
            assert not re.search(r"\b[a-z]+_[a-z]+\b", step.formula), step.formula
            assert step.formula.endswith(f"= {step.result}")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"no input is called 'v3_hours'; there are .*v3_gpus"):
        Evidence({"v3_hours": 1.0})
    with pytest.raises(ValueError, match="v3_gpus is 0; it must be above 0"):
        Evidence({"v3_gpus": 0})
    with pytest.raises(ValueError, match="no claim is called 'seven'; there are six-million"):
        chosen(Evidence(), ["seven"])


# --- arithmetic ------------------------------------------------------------------------------------------------------


def test_a_step_shows_what_it_computes():
    work = Working()
    hours, rent = Number(2000, "h", "hours", "a paper"), Number(2.5, "$/h", "rent", "a list")
    paid = work("Paid", "hours * rent", "$", hours=hours, rent=rent)
    assert (paid.value, str(paid)) == (5000, "$5,000.00")
    assert work.steps[0].formula == "2,000 × $2.50 = $5,000.00"
    assert list(work.inputs) == ["hours", "rent"]
    work("Again", "paid / 2", "$", paid=paid)
    assert list(work.inputs) == ["hours", "rent"]  # a result of this page is no input


@given(a=st.floats(0.01, 1e6), b=st.floats(0.01, 1e6), c=st.floats(0.01, 1e6))
@settings(max_examples=30)
def test_expressions(a, b, c):
    names = {"a": a, "b": b, "c": c}
    assert evaluate("(a + b) * c / 1e6 - 2", names) == pytest.approx((a + b) * c / 1e6 - 2)


@pytest.mark.parametrize("expression", ["a ** 2", "f(a)", "__import__('os')", "a if a else b", "'x'"])
def test_nothing_but_arithmetic(expression):
    with pytest.raises((ValueError, KeyError)):
        evaluate(expression, {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize(("number", "text"), [
    (Number(5.576e6, "$"), "$5.576M"), (Number(87_072, "$"), "$87.07K"), (Number(0.0603, "$"), "$0.0603"),
    (Number(1.628e9, "$"), "$1.628B"), (Number(1.386, "$/h"), "$1.39 an hour"), (Number(0.03667, "share"), "3.67%"),
    (Number(226.75, "nodes"), "226.75 nodes"), (Number(11.0617, "times"), "11.1 times"),
    (Number(2_788_000, "GPU-hours"), "2,788,000 GPU-hours"), (Number(14.8e12, "tokens"), "14.8 trillion tokens"),
    (Number(3.707e24, "FLOPs"), "3.71×10²⁴ FLOPs"), (Number(5.45, "share"), "545%"), (Number(100, "GPUs"), "100 GPUs"),
])  # fmt: skip
def test_numbers_as_people_write_them(number, text):
    assert str(number) == text


def test_formulas_as_people_write_them():
    assert written("(a - b) * 1e6 / 24", {"a": Number(5, ""), "b": Number(0.5, "share")}) == "(5 − 50%) × 10⁶ ÷ 24"


# --- pictures and pages ----------------------------------------------------------------------------------------------


def test_the_waterfall_climbs_from_the_run_to_the_fleet():
    steps = waterfall(Evidence())
    assert steps[0][1] == pytest.approx(5.576e6)
    assert steps[1][1] == pytest.approx(5.870e6)
    assert steps[-1][1] == pytest.approx(2.573e9, rel=0.005)
    assert [value for _, value in steps] == sorted(value for _, value in steps)


def test_three_rates():
    rates = [rate for _, rate, _ in three_rates(Evidence())]
    assert rates == pytest.approx([1.39, 2.00, 3.42], abs=0.01)
    assert all(total == pytest.approx(rate * 2_788_000) for _, rate, total in three_rates(Evidence()))


def test_json():
    evidence = Evidence()
    found = json.loads(json.dumps(claims_json(evidence, chosen(evidence, []))))
    assert [claim["name"] for claim in found["claims"]] == list(VERDICTS)
    first = found["claims"][0]
    assert first["verdict"] == "holds only for"
    assert {"name", "title", "value", "unit", "source", "confidence"} == set(first["inputs"][0])
    assert {"what", "formula", "value", "unit"} == set(first["steps"][0])


def test_text(capsys):
    evidence = Evidence()
    show_claims(evidence, chosen(evidence, ["648-chips"]))
    out = " ".join(capsys.readouterr().out.split())
    assert "contradicted" in out
    assert "648 × 198 = 128,304 GPU-hours" in out
    assert "supplement B.4.4" in out


def test_page(tmp_path):
    evidence = Evidence()
    write_claims_page(evidence, chosen(evidence, []), tmp_path / "claims.html")
    page = (tmp_path / "claims.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert page.count('class="badge') == len(VERDICTS)
    assert "2,664,000 + 119,000 + 5,000 = 2,788,000 GPU-hours" in page
    text = re.sub(r"base64,[^\"]*", "", page)
    assert "://" not in text
    assert "<script" not in text
    assert not list(tmp_path.glob("*.tmp"))
