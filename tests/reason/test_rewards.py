import pytest
from pydantic import ValidationError

from ziphius.reason.rewards import Reward, RewardWeights, Sampled, format_reward, language_reward, score, score_all
from ziphius.tasks import Problem, Verdict, make_family

ALL = RewardWeights(accuracy=1.0, format=0.5, language=0.25)


@pytest.fixture(scope="module")
def legs():
    return make_family("leg_counting")


PROBLEM = Problem("leg_counting", "How many?", "34", {})


@pytest.mark.parametrize(
    ("text", "finished", "accuracy", "form"),
    [
        ("3 cows make 12.</think>34", True, 1.0, 1.0),
        ("<think>3 cows make 12.</think>\n\\boxed{34}", True, 1.0, 1.0),
        ("a</think><answer>34</answer>", True, 1.0, 1.0),
        ("a</think>35", True, 0.0, 1.0),
        ("a</think>134", True, 0.0, 1.0),  # its checker pays 0.67 for this
        ("a</think>34", False, 0.0, 0.0),  # cut off: it might have gone on to 345
        ("a</think>b</think>34", True, 1.0, 0.0),
        ("a<think>b</think>34", True, 1.0, 0.0),
        ("<think><think>b</think>34", True, 1.0, 0.0),
        ("a</think>34<think>", True, 0.0, 0.0),
        ("a</think> \n", True, 0.0, 0.0),
        ("34", True, 0.0, 0.0),
        ("</think>34", True, 1.0, 1.0),
        ("", True, 0.0, 0.0),
    ],
)
def test_with_thinking(legs, text, finished, accuracy, form):
    reward = score(PROBLEM, legs, text, finished, True, ALL)
    assert (reward.accuracy, reward.format) == (accuracy, form)
    assert reward.total == pytest.approx(accuracy + 0.5 * form + 0.25 * reward.language)


@pytest.mark.parametrize(
    ("text", "finished", "accuracy", "form"),
    [
        ("34", True, 1.0, 1.0),
        ("\\boxed{34}", True, 1.0, 1.0),
        ("33", True, 0.0, 1.0),
        ("34", False, 0.0, 0.0),
        ("a</think>34", True, 0.0, 0.0),
        ("<think>34", True, 0.0, 0.0),
        (" ", True, 0.0, 0.0),
    ],
)
def test_without_thinking(legs, text, finished, accuracy, form):
    reward = score(PROBLEM, legs, text, finished, False, ALL)
    assert (reward.accuracy, reward.format, reward.language) == (accuracy, form, 1.0)


def test_partial_credit_is_a_choice(legs):
    reward = score(PROBLEM, legs, "a</think>134", True, True, RewardWeights(partial_credit=True))
    assert reward.accuracy == pytest.approx(2 / 3)


def test_undecided_has_no_total(legs, monkeypatch):
    monkeypatch.setattr(legs, "verify_all", lambda pairs: [Verdict(None, "took too long") for _ in pairs])
    assert score(PROBLEM, legs, "a</think>34", True, True, ALL) == Reward(None, None, 1.0, 1.0)


def test_each_family_judges_its_answers_in_one_batch(legs, monkeypatch):
    other, asked = make_family("gcd"), []
    for family in (legs, other):
        judge = family.verify_all
        monkeypatch.setattr(family, "verify_all", lambda pairs, judge=judge: asked.append(len(pairs)) or judge(pairs))
    gcd = other.problem("train", 0)
    texts = [(legs, PROBLEM, "34"), (other, gcd, gcd.answer), (legs, PROBLEM, "35"), (legs, PROBLEM, "")]
    rewards = score_all([Sampled(*text, finished=True) for text in texts], False, ALL)
    assert [reward.accuracy for reward in rewards] == [1.0, 1.0, 0.0, 0.0]
    assert asked == [2, 1]  # an empty answer is none


def test_r1_zero_weighs_accuracy_and_format_alike(legs):
    assert score(PROBLEM, legs, "a</think>34", True, True, RewardWeights()).total == 2.0


@pytest.mark.parametrize(
    ("thought", "target", "share"),
    [
        ("three cows make 12, total 12.", "en", 1.0),
        ("12 + 3 = 15", "en", 1.0),
        ("", "zh", 1.0),
        ("two 牛 cows", "en", 2 / 3),
        ("三头牛 12", "zh", 1.0),
        ("三头牛 cows", "zh", 3 / 4),
        ("so三牛so", "en", 1 / 2),
        ("три cows", "ru", 1 / 2),
        ("ｆｕｌｌ width", "en", 1.0),
        ("naïve café", "fr", 1.0),
        ("牛が三つ", "ja", 1.0),
        ("牛が三つ", "zh", 1 / 2),
    ],
)
def test_language(thought, target, share):
    assert language_reward(thought, target) == pytest.approx(share)


def test_the_answer_does_not_count_for_language(legs):
    assert score(PROBLEM, legs, "牛</think>cows", True, True, ALL).language == 0.0
    assert score(PROBLEM, legs, "cows</think>牛", True, True, ALL).language == 1.0


def test_format_alone():
    assert format_reward(" <think>a</think>b", True, True) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_language": "tlh"}, "target_language = 'tlh' is not known; take one of ar, "),
        ({"accuracy": -1}, "greater than or equal to 0"),
        ({"accuracy": 0, "format": 0}, "nothing would be learned"),
        ({"fromat": 1}, "Extra inputs"),
    ],
)
def test_weights_are_checked(settings, message):
    with pytest.raises(ValidationError, match=message):
        RewardWeights(**settings)
