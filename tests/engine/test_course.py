"""Thinking, its budget, and forms that the answer must have."""

import json
import re

import pytest

from ziphius.engine.complete import complete
from ziphius.engine.course import Course, Demand
from ziphius.engine.engine import Engine
from ziphius.engine.settings import Constraint
from ziphius.text.thinking import ThinkingMarks
from ziphius.text.tokenizer import Tokenizer

from .conftest import ask, small

THINK, END = 90, 91
MARKS = ThinkingMarks([THINK], [END], lambda token: b"")
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"legs": {"type": "integer", "minimum": 0, "maximum": 99}, "kind": {"enum": ["cow", "ant"]}},
        "required": ["legs", "kind"],
        "additionalProperties": False,
    }
)
FORMS = [
    (Constraint(kind="regex", text="[0-9]{3}-[abc]{2,5}"), re.compile("[0-9]{3}-[abc]{2,5}").fullmatch),
    (Constraint(kind="json_schema", text=SCHEMA), lambda text: set(json.loads(text)) == {"legs", "kind"}),
    (
        Constraint(kind="grammar", text='start: sum\nsum: NUMBER ("+" NUMBER)~1..3\nNUMBER: /[1-9][0-9]?/'),
        re.compile(r"[1-9][0-9]?(\+[1-9][0-9]?){1,3}").fullmatch,
    ),
]


def run(model, tokenizer, *requests, speculation="off"):
    engine = Engine(model, tokenizer, small(speculation=speculation))
    return [[(c.tokens, c.finished) for c in row] for row in complete(engine, requests)]


def test_the_budget_forces_the_end_of_the_thinking():
    course = Course(MARKS, thinking=True, budget=2)
    for token, forced in [(5, None), (6, None), (END, END), (7, None)]:
        assert course.forced() == forced
        course.advance(token)
    assert not course.thinking


def test_thinking_that_the_model_opens_itself_counts():
    course = Course(MARKS, thinking=None, budget=1)
    for token in (THINK, 5):
        course.advance(token)
    assert course.thinking
    assert course.forced() == END
    for thinking, said in ((None, (5, THINK)), (False, (THINK,))):
        later = Course(MARKS, thinking)
        for token in said:
            later.advance(token)
        assert not later.thinking  # a tag within the answer is text


@pytest.mark.parametrize("speculation", ["off", 2])
def test_a_form_does_not_mask_thinking_that_the_model_opens_itself(model, tokenizer, speculation):
    think, given = tokenizer.think_id, {"constraint": FORMS[0][0], "max_new_tokens": 30, "ignore_eos": False}
    given |= {"logit_bias": {think: 50.0}, "thinking_budget": 6, "temperature": 1.0}
    requests = [ask([5, 9], thinking=thinking, **given) for thinking in (None, False)]
    (opened, ended), (shut, finished) = (row[0] for row in run(model, tokenizer, *requests, speculation=speculation))
    place = opened.index(tokenizer.end_think_id)
    assert opened[0] == think
    assert place <= 7
    assert think not in shut
    assert ended
    assert finished
    for answer in (opened[place + 1 :], shut):
        assert FORMS[0][1](tokenizer.decode([token for token in answer if token != tokenizer.eos_id]))


def test_looking_ahead_takes_everything_back():
    course = Course(MARKS, thinking=True, budget=3)
    course.advance(5)
    free, forced = Demand(), Demand(forced=END)
    assert course.look_ahead([6, 7, END, 8]) == [free, free, forced, free, free]
    assert course.look_ahead([6, 7, 8]) == [free, free, forced]  # 8 cannot be
    assert (course.thinking, course.forced()) == (True, None)
    course.retreat(1)
    assert course.look_ahead([]) == [free]


@pytest.mark.parametrize("speculation", ["off", 3])
@pytest.mark.parametrize("budget", [0, 1, 5])
def test_the_answer_keeps_its_room(model, tokenizer, budget, speculation):
    request = ask([5, 9], thinking=True, thinking_budget=budget, max_new_tokens=16, temperature=1.0)
    bound, free = run(
        model,
        tokenizer,
        request,
        ask([5, 9], thinking=True, max_new_tokens=16, temperature=1.0),
        speculation=speculation,
    )
    (tokens, _), (unbound, _) = bound[0], free[0]
    assert tokens.index(tokenizer.end_think_id) == budget
    assert tokens[:budget] == unbound[:budget]
    assert len(tokens) == 16
    assert run(model, tokenizer, request)[0][0][0] == tokens


@pytest.mark.parametrize("speculation", ["off", 3])
@pytest.mark.parametrize(("constraint", "fits"), FORMS)
def test_answers_have_the_form(model, tokenizer, constraint, fits, speculation):
    given = {"constraint": constraint, "temperature": 1.5, "max_new_tokens": 40, "ignore_eos": False}
    requests = [ask([5], samples=4, **given), ask([7], **given | {"temperature": 0.0})]
    found = run(model, tokenizer, *requests, speculation=speculation)
    for tokens, finished in [*found[0], *found[1]]:
        if finished:
            assert fits(tokenizer.decode([token for token in tokens if token != tokenizer.eos_id]))
    assert any(finished for _, finished in found[0])
    assert found == run(model, tokenizer, *requests)


@pytest.mark.parametrize("speculation", ["off", 2])
def test_thinking_is_never_bound(model, tokenizer, speculation):
    constraint = FORMS[0][0]
    given = {"thinking": True, "thinking_budget": 8, "temperature": 1.0, "max_new_tokens": 30, "ignore_eos": False}
    bound, free = run(
        model,
        tokenizer,
        ask([5, 9], constraint=constraint, **given),
        ask([5, 9], **given),
        speculation=speculation,
    )
    tokens, finished = bound[0]
    place = tokens.index(tokenizer.end_think_id)
    assert tokens[: place + 1] == free[0][0][: place + 1]
    answer = tokenizer.decode([token for token in tokens[place + 1 :] if token != tokenizer.eos_id])
    assert finished
    assert FORMS[0][1](answer)


@pytest.mark.parametrize("speculation", ["off", 2])
def test_thinking_cannot_end_without_the_answer_that_must_come(model, tokenizer, speculation):
    given = {"thinking": True, "thinking_budget": 5, "max_new_tokens": 30, "ignore_eos": False}
    given |= {"logit_bias": {tokenizer.eos_id: 50.0}, "constraint": FORMS[0][0]}
    ((tokens, finished),) = run(model, tokenizer, ask([5], **given), speculation=speculation)[0]
    assert finished
    assert tokens[0] == tokenizer.end_think_id
    assert FORMS[0][1](tokenizer.decode([token for token in tokens[1:] if token != tokenizer.eos_id]))


def test_thinking_in_ordinary_tokens_does_not_end_the_turn_either(model, tokenizer):
    text = tokenizer.inner.to_str()
    for mark in ("<think>", "</think>"):
        text = text.replace(f'"{mark}"', f'"{mark[:-1]}er>"')
    spelt = Tokenizer(type(tokenizer.inner).from_str(text))
    assert not spelt.thinking.are_tokens
    given = {"thinking": True, "thinking_budget": 5, "max_new_tokens": 60, "ignore_eos": False}
    given |= {"logit_bias": {spelt.eos_id: 50.0}, "constraint": FORMS[0][0]}
    ((tokens, finished),) = run(model, spelt, ask([5], **given))[0]
    assert finished
    thought, close, answer = spelt.decode([token for token in tokens if token != spelt.eos_id]).partition("</think>")
    assert len(spelt.encode(thought)) >= 5
    assert close
    assert FORMS[0][1](answer.removeprefix("\n\n"))


def test_json_mode_gives_an_object(model, tokenizer):
    request = ask(
        [5], constraint=Constraint(kind="json"), temperature=1.0, samples=8, max_new_tokens=50, ignore_eos=False
    )
    found = run(model, tokenizer, request)[0]
    assert all(tokenizer.decode(tokens).lstrip().startswith("{") for tokens, _ in found)
    for tokens, finished in found:
        if finished:
            assert isinstance(json.loads(tokenizer.decode([t for t in tokens if t != tokenizer.eos_id])), dict)


def test_a_form_wins_over_min_tokens(model, tokenizer):
    constraint = Constraint(kind="regex", text="ab")
    ((tokens, finished),) = run(model, tokenizer, ask([5], constraint=constraint, min_tokens=10, ignore_eos=False))[0]
    assert finished
    assert tokenizer.decode([token for token in tokens if token != tokenizer.eos_id]) == "ab"


def test_log_probabilities_stay_the_networks_own(model, tokenizer):
    (free,) = complete(Engine(model, tokenizer, small()), [ask([5], max_new_tokens=1)])[0]
    request = ask([5], constraint=Constraint(kind="regex", text="[ab]"), max_new_tokens=1, logprobs=1)
    engine = Engine(model, tokenizer, small())
    engine.add(request)
    (update,) = engine.step()
    assert [list(top) for top in update.top_logprobs] == [[(free.tokens[0], pytest.approx(free.logprobs[0], abs=1e-5))]]
    assert update.logprobs[0] < free.logprobs[0]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint(kind="regex", text="("), "the regular expression cannot be used: "),
        (Constraint(kind="json_schema", text="{"), "the JSON schema cannot be used: "),
        (Constraint(kind="json_schema", text='{"type": "legs"}'), "the JSON schema cannot be used: "),
        (Constraint(kind="json_schema", text='{"$ref": "#"}'), "the JSON schema cannot be used: no answer has it"),
        (Constraint(kind="grammar", text="start: missing"), "the grammar cannot be used: "),
    ],
)
def test_forms_that_cannot_be_read_are_refused(model, tokenizer, constraint, message):
    with pytest.raises(ValueError, match=message) as refusal:
        Engine(model, tokenizer, small()).add(ask([5], constraint=constraint))
    assert "\n" not in str(refusal.value)
