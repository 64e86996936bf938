from dataclasses import replace

import pytest
import torch

from ziphius.engine.complete import Completion
from ziphius.engine.random import sample_key
from ziphius.evaluate import runner
from ziphius.evaluate.metrics import mean_ci, wilson
from ziphius.evaluate.runner import evaluate
from ziphius.evaluate.settings import EvaluationSettings
from ziphius.tasks.base import Family, Problem, TaskError, Verdict
from ziphius.text.learn import train_tokenizer
from ziphius.train.place import Place

SETTINGS = EvaluationSettings(n=3, samples=4, temperature=0.7, top_p=0.9, max_new_tokens=9, show=2)


class Numbers(Family):
    """ "how much is N": N. The answer "?" cannot be judged."""

    name = "numbers"

    def draw(self, ticket):
        return Problem(self.name, f"how much is {ticket}?", str(ticket))

    def problem(self, split, index):
        return self.draw(index)

    def verify(self, problem, answer):
        return Verdict(None, "no idea") if answer == "?" else Verdict(float(answer == problem.answer), "compared")


class Model:
    """Only what the runner itself touches."""

    lm_head = torch.nn.Linear(1, 1)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["how much is 1?"], 300)


@pytest.fixture
def answers(monkeypatch, tokenizer):
    """`answers(sampled, greedy)`: texts for each problem, `…` at the end of one that is cut off."""

    def install(sampled, greedy):
        calls = []

        def sample(engine, requests):
            settings, samples = requests[0].settings, requests[0].samples
            calls.append((settings, samples, settings.seed, [tokenizer.decode(r.prompt) for r in requests]))
            texts = [[text] for text in greedy] if settings.temperature == 0 else sampled
            return [[complete(text) for text in row] for row in texts]

        monkeypatch.setattr("ziphius.evaluate.runner.rollout_engine", lambda *_: None)
        monkeypatch.setattr("ziphius.reason.rollout.complete", sample)
        return calls

    def complete(text):
        finished = not text.endswith("…")
        tokens = [*tokenizer.encode(text.rstrip("…")), *([tokenizer.eos_id] if finished else [])]
        return Completion(tokens, [0.0] * len(tokens), finished)

    return install


def run(tokenizer, **options):
    settings = options.pop("settings", SETTINGS)
    return evaluate(Model(), tokenizer, Numbers(), settings, **({"thinking": False, "seed": 5} | options))


def test_shares_by_hand(answers, tokenizer):
    calls = answers([["0", "0", "0", "0"], ["1", "2", "1", "3"], ["7", "7", "7", "2"]], ["0", "1", "9"])
    found = run(tokenizer)
    assert (found.family, found.split, found.n, found.samples, found.undecided) == ("numbers", "test", 3, 4, 0)
    assert (found.pass_at_1, *found.ci95) == pytest.approx(mean_ci([1.0, 0.5, 0.25]))
    assert found.greedy == pytest.approx(2 / 3)
    assert found.greedy_ci95 == wilson(2, 3)
    assert found.pass_at_k == pytest.approx({"2": (1 + 5 / 6 + 1 / 2) / 3, "4": 1.0})
    assert found.majority_at_k == pytest.approx(2 / 3)
    assert found.format == 1.0
    assert found.response_length == 2.0  # the end token is one
    assert [example["response"] for example in found.examples] == ["0", "1"]
    assert found.examples[1] == {"prompt": "how much is 1?", "answer": "1", "response": "1", "correct": True}
    (sampled, samples, seed, prompts), (greedy, one, _, again) = calls
    assert (sampled.temperature, sampled.top_p, sampled.max_new_tokens, samples, seed) == (
        0.7,
        0.9,
        9,
        4,
        sample_key(5, 0),
    )
    assert (greedy.temperature, one) == (0.0, 1)
    assert prompts == again
    assert "how much is 2?" in prompts[2]


def test_thinking_is_not_the_answer(answers, tokenizer):
    answers([["0 or 1</think>0", "0"]], ["1 2</think> 0"])
    found = run(tokenizer, thinking=True, settings=SETTINGS.model_copy(update={"n": 1, "samples": 2}))
    assert (found.pass_at_1, found.greedy, found.format, found.majority_at_k) == (0.5, 1.0, 0.5, 1.0)


def test_undecided_answers_never_raise_a_score(answers, tokenizer):
    answers([["0", "?", "0", "5"], ["?", "?", "?", "?"], ["2", "2", "2", "?"]], ["?", "1", "9"])
    found = run(tokenizer)
    assert (found.n, found.undecided, found.greedy_undecided) == (3, 6, 1)
    assert (found.pass_at_1, *found.ci95) == pytest.approx(mean_ci([0.5, 0.0, 0.75]))
    assert found.pass_at_1_bounds == pytest.approx((5 / 12, 11 / 12))
    assert (found.greedy, found.greedy_ci95) == (pytest.approx(1 / 3), wilson(1, 3))
    assert found.greedy_bounds == pytest.approx((1 / 3, 2 / 3))
    assert found.pass_at_k == pytest.approx({"2": (5 / 6 + 0 + 1) / 3, "4": 2 / 3})
    assert found.majority_at_k == pytest.approx(2 / 3)  # the second problem's winner is undecided, so not right
    assert [example["correct"] for example in found.examples] == [None, True]


def test_one_right_of_eight_is_an_eighth(answers, tokenizer):
    """The other seven undecided: they are not left out."""
    answers([["0", *"???????"]], ["0"])
    found = run(tokenizer, settings=SETTINGS.model_copy(update={"n": 1, "samples": 8}))
    assert (found.pass_at_1, found.pass_at_1_bounds, found.majority_at_k) == (1 / 8, (1 / 8, 1.0), 0.0)


def test_all_undecided_is_nothing_right_and_nothing_sure(answers, tokenizer):
    answers([["?"] * 4] * 3, ["?"] * 3)
    found = run(tokenizer)
    assert (found.undecided, found.greedy_undecided) == (12, 3)
    assert (found.pass_at_1, found.greedy) == (0.0, 0.0)
    assert found.pass_at_1_bounds == found.greedy_bounds == (0.0, 1.0)


def test_bounds_are_the_share_where_all_is_decided(answers, tokenizer):
    answers([["0", "1", "0", "5"], ["1"] * 4, ["3"] * 4], ["0", "1", "9"])
    found = run(tokenizer)
    assert found.pass_at_1_bounds == (found.pass_at_1, found.pass_at_1)
    assert found.greedy_bounds == (found.greedy, found.greedy)


def test_an_answer_cut_off_neither_counts_nor_votes(answers, tokenizer):
    """It might have gone on: the same text is right where it ended by itself."""
    answers([["0", "0…", "0…", "4"]], ["0…"])
    found = run(tokenizer, settings=SETTINGS.model_copy(update={"n": 1}))
    assert (found.pass_at_1, found.greedy, found.majority_at_k) == (0.25, 0.0, 0.5)


def test_ranks_share_the_problems_and_agree(answers, tokenizer, monkeypatch):
    """What two ranks find, put together, is in the problems' order."""

    class Half(Place):
        def gather(self, value):
            tallies.append(value)
            return [tallies[0], tallies[-1]]

    tallies: list = []
    answers([["0"] * 4, ["3"] * 4], ["0", "2"])
    run(tokenizer, place=Half(0, 2))
    answers([["1", "1", "0", "0"]], ["9"])
    found = run(tokenizer, place=Half(1, 2))
    assert found.pass_at_1 == pytest.approx((1 + 0.5 + 0) / 3)
    assert found.greedy == pytest.approx(2 / 3)
    assert [example["answer"] for example in found.examples] == ["0", "1"]


def test_too_few_problems_are_refused(tokenizer):
    class One(Numbers):
        def problem(self, split, index):
            return self.draw(0)

    with pytest.raises(TaskError, match="fewer than 3 distinct problems"):
        evaluate(Model(), tokenizer, One(), SETTINGS, thinking=False, seed=0)


def test_as_dict_is_plain(answers, tokenizer):
    answers([["0"] * 4] * 3, ["0"] * 3)
    found = run(tokenizer)
    assert found.as_dict()["pass_at_1"] == found.pass_at_1
    assert replace(found, n=4).n == 4
    assert runner.Evaluation(**found.as_dict()) == found
