import json
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.ledger.clock import Clock
from ziphius.recipe import samples as making
from ziphius.recipe.identity import stage_identity
from ziphius.recipe.inputs import chat_samples, training_samples
from ziphius.recipe.job import Job
from ziphius.recipe.samples import imitated, look_ahead
from ziphius.recipe.schema import RecipeError, load_recipe
from ziphius.text.decontaminate import Decontaminator
from ziphius.text.forms.conversation import Conversation
from ziphius.text.forms.registry import form_of
from ziphius.text.learn import train_tokenizer
from ziphius.train.place import Place

from .conftest import RECIPE

ROWS = [
    {"prompt": "Who?", "response": "A whale."},
    {"prompt": "Who?", "response": "A " * 60},
    {"prompt": "Where?", "response": " "},
    {"prompt": "What?", "response": "<think>\nhm\n</think>\n\nIt is."},
    {"prompt": "What is 2+3?", "response": "5"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Who dives? A whale."], 300)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """`job(rows, *overrides)` of a recipe whose cold start imitates `chats.jsonl` with these rows."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(RECIPE.replace('task = "sums"\nexamples = 24', 'path = "chats.jsonl"'))

    def make(rows, *overrides, thinking=True):
        (tmp_path / "chats.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
        recipe = load_recipe("r.toml", list(overrides))
        return Job(recipe, Place(), thinking, {}, Clock(None, {}), tmp_path / "samples")

    return make


def cold_start(job, tokenizer):
    return imitated(job, job.recipe.stages["cold_start"], tokenizer, "stages.cold_start.seq_len")


def texts(found, tokenizer):
    """(what is read, what is trained on) of each sample."""
    return [
        (tokenizer.decode(tokens), tokenizer.decode([t for t, w in zip(tokens, weights, strict=True) if w]))
        for tokens, weights in found.samples
    ]


def test_what_is_left_out_is_counted_and_said(job, tokenizer):
    found = cold_start(job(ROWS, "cold_start.seq_len=60"), tokenizer)
    assert [answer for _, answer in texts(found, tokenizer)] == [
        "A whale.<｜end▁of▁sentence｜>",
        "hm\n</think>\n\nIt is.<｜end▁of▁sentence｜>",
        "5<｜end▁of▁sentence｜>",
    ]
    counts = found.counts

    assert (counts["conversations"], counts["samples"], counts["empty"], counts["too_long"]) == (5, 3, 1, 1)
    assert counts["sample_tokens"] == found.samples.lengths.sum()
    assert found.say == [
        "chats.jsonl holds prompt and response",
        "of 5 conversations 1 without a question or an answer are left out",
        "1 of 4 samples are longer than stages.cold_start.seq_len = 60 tokens (the first: chats.jsonl:3): 1 are left "
        f"out; stages.cold_start.seq_len = {counts['longest']} would hold all",
    ]


def test_what_is_too_long_may_be_cut(job, tokenizer):
    found = cold_start(job(ROWS[:2], "cold_start.seq_len=60", "cold_start.too_long='cut'"), tokenizer)
    assert found.samples.lengths.tolist() == [found.samples.lengths[0], 60]
    assert texts(found, tokenizer)[1][1].startswith("A A A")
    assert (found.counts["cut"], found.counts["too_long"]) == (1, 0)
    assert found.say[-1].endswith(f"1 are cut; stages.cold_start.seq_len = {found.counts['longest']} would hold all")
    unreached = [{"prompt": "Who " * 60, "response": "A whale."}, ROWS[0]]  # cut, nothing of the answer would stay
    found = cold_start(job(unreached, "cold_start.seq_len=60", "cold_start.too_long='cut'"), tokenizer)
    assert (found.counts["samples"], found.counts["cut"], found.counts["too_long"]) == (1, 0, 1)


def test_a_stage_without_a_sample_is_refused_before_any_training(job, tokenizer):
    with pytest.raises(RecipeError, match=r"^stages\.cold_start: .* none fits: raise .*seq_len to (\d+) at least"):
        look_ahead(job(ROWS[:2], "cold_start.seq_len=4"), tokenizer)
    with pytest.raises(RecipeError, match=r"of 1 conversations 1 without .* left out; nothing is left to learn from"):
        look_ahead(job(ROWS[2:3]), tokenizer)


def test_samples_are_made_once_and_old_ones_go(job, tokenizer):
    made = job(ROWS)
    look_ahead(made, tokenizer)
    (folder,) = made.cache.iterdir()
    stamp = (folder / "tokens.bin").stat().st_mtime_ns
    cold_start(made, tokenizer)
    assert (folder / "tokens.bin").stat().st_mtime_ns == stamp
    (folder / "about.json").unlink()  # as a kill leaves it
    look_ahead(made, tokenizer)
    look_ahead(job([*ROWS, ROWS[0]]), tokenizer)
    (other,) = made.cache.iterdir()
    assert other != folder
    assert len(cold_start(job([*ROWS, ROWS[0]]), tokenizer).samples) == 5


def test_long_work_is_heard_of(job, tokenizer, monkeypatch, capfd):
    monkeypatch.setattr(making, "TELL_S", 0.0)
    cold_start(job(ROWS[:1] * 2), tokenizer)
    assert "stages.cold_start: 2 samples made\n" in capfd.readouterr().err


def test_chats_are_held_to_the_evaluation(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    counts, say = Counter(), []
    held = Decontaminator(["What is 2+3?"])
    made = list(chat_samples([str(path)], tokenizer, True, held, counts, say))
    assert counts == {"conversations": 5, "empty": 1, "contaminated": 1}
    assert [at() for _, at in made] == [f"{path}:{line}" for line in (1, 2, 4)]


def test_without_thinking_only_answers_are_imitated(job, tokenizer):
    found = cold_start(job(ROWS[3:4], thinking=False), tokenizer)
    assert [answer for _, answer in texts(found, tokenizer)] == ["It is.<｜end▁of▁sentence｜>"]
    assert "hm" not in texts(found, tokenizer)[0][0]


def test_the_setting_counts_only_where_it_is_another(job):
    class NoFiles:
        def of(self, paths):
            return {}

    def settings(*overrides):
        recipe = job(ROWS, *overrides).recipe
        return stage_identity(recipe, recipe.stages["cold_start"], "", True, NoFiles()).settings["stage"]

    assert settings() == settings("cold_start.too_long='drop'")
    assert "too_long" not in settings()  # a stage made before there was the setting is found again
    assert settings("cold_start.too_long='cut'")["too_long"] == "cut"


def test_several_files_and_forms_in_one_stage(job, tokenizer):
    Path("more").mkdir()
    Path("more/b.json").write_text(json.dumps([{"instruction": "Who?", "input": "", "output": "A seal."}]))
    Path("more/c.json").write_text(json.dumps([{"instruction": "Who?", "output": "A tern."}]))
    found = cold_start(job(ROWS[:1], "cold_start.path=['*.jsonl', 'more']"), tokenizer)
    assert len(found.samples) == 3
    assert found.say == ["chats.jsonl holds prompt and response", "b.json, c.json hold Alpaca"]


# --- what is trained on -----------------------------------------------------------------------------------------------

WORDS = st.text(st.sampled_from("ab 2+3=鲸\n"), min_size=1, max_size=20).filter(lambda text: text.strip())
THOUGHTS = WORDS.map(str.strip)
TURN = st.tuples(WORDS, WORDS.map(lambda text: text.lstrip("\n")), st.none() | THOUGHTS)


@given(system=st.none() | WORDS, turns=st.lists(TURN, min_size=1, max_size=4), thinking=st.booleans())
def test_exactly_the_answers_are_trained_on(tokenizer, system, turns, thinking):
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer, thought in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer} | ({"reasoning_content": thought} if thought else {}),
        ]
    samples = training_samples(Conversation(messages), tokenizer, thinking)
    said = [tokenizer.decode(run) for tokens, weights in samples for run in trained_runs(tokens, weights)]
    assert said == [
        (f"{thought}\n</think>\n\n" if thought and thinking else "") + answer + "<｜end▁of▁sentence｜>"
        for _, answer, thought in turns
    ]
    read = tokenizer.decode(samples[-1][0])
    assert all(question in read for question, _, _ in turns)


def trained_runs(tokens, weights):
    """The stretches of tokens that are trained on."""
    for trained, run in groupby(zip(tokens, weights, strict=True), key=lambda pair: pair[1] == 1.0):
        if trained:
            yield [token for token, _ in run]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("response", ["A whale.", "<think>\nhm\n</think>\n\nA whale."])
def test_prompt_and_response_give_the_tokens_of_rollouts(tokenizer, response, thinking):
    """The prompt is the one that reinforcement learning and chat begin from."""
    chat = form_of(row := {"prompt": "Who?", "response": response}).read(row)
    ((tokens, weights),) = training_samples(chat, tokenizer, thinking)
    thinks = thinking and "</think>" in response
    start = tokenizer.prompt_ids("Who?", thinking=thinks)
    answer = tokenizer.encode("hm\n</think>\n\nA whale." if thinks else "A whale.")
    assert tokens == [*start, *answer, tokenizer.eos_id]
    assert weights == [0.0] * len(start) + [1.0] * (len(answer) + 1)
