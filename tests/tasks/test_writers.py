import re
from random import Random

import pytest

from ziphius.tasks import Problem, TaskError, make_family, split_of

LEGS = {"min_animals": 1, "max_animals": 5, "max_instances": 9}
SUMS = {"min_terms": 1, "max_digits": 1}
QUESTION = re.compile(r"Your task is.*?\?\n|State the final answer.*? =\n", re.DOTALL)


@pytest.fixture(scope="module", params=[("leg_counting", LEGS), ("leg_counting", {}), ("chain_sum", SUMS)])
def family(request):
    name, settings = request.param
    return make_family(name, **settings)


def test_every_trace_ends_in_the_right_answer(family):
    for index in range(400):
        for split in ("train", "test"):
            problem = family.problem(split, index)
            for thorough in (True, False):
                trace = family.trace(problem, Random(index), thorough)
                last = re.findall(r"-?\d+", trace)[-1]
                assert family.verify(problem, last).correct is True
                assert trace.isascii()


def test_hasty_traces_have_no_steps(family):
    for index in range(100):
        trace = family.trace(family.problem("train", index), Random(0), thorough=False)
        assert "\n" not in trace
        assert " +" not in trace or family.name == "chain_sum"


def test_leg_traces_read_as_agreed():
    family = make_family("leg_counting")
    problem = Problem("leg_counting", "", "34", {"animals": {"cow": 3, "deer": 2, "ant": 1, "snake": 4, "spider": 1}})
    assert family.trace(problem, Random(0), True) == (
        "- snakes*4 +0 =0\n- cows*3 +12 =12\n- deers*2 +8 =20\n- ant*1 +6 =26\n- spider*1 +8 =34"
    )
    assert family.trace(problem, Random(0), False) == "- snakes*4, cows*3, deers*2, ant*1, spider*1 =34"


def test_leg_traces_name_every_animal_once_with_the_fewest_legs_first():
    family = make_family("leg_counting")
    table = list(family.writer.legs_of)
    for index in range(200):
        problem = family.problem("train", index)
        steps = re.findall(r"^- (.+)\*(\d+) \+", family.trace(problem, Random(0), True), re.MULTILINE)
        asked = re.search(r"if you have (.*)\?", problem.prompt).group(1).split(", ")
        assert sorted(f"{count} {name}" for name, count in steps) == sorted(asked)
        places = [table.index(name if count == "1" else name[:-1]) for name, count in steps]
        assert places == sorted(places)
        legs = [family.writer.legs_of[table[place]] for place in places]
        assert legs == sorted(legs)


@pytest.mark.parametrize(
    ("expression", "answer", "thorough", "hasty"),
    [
        ("4 + 3 - 2", "5", "4+3=7\n7-2=5", "4 + 3 - 2 = 5"),
        ("1 - 9 + 2", "-6", "1-9=-8\n-8+2=-6", "1 - 9 + 2 = -6"),
        ("12 - -30", "42", "12--30=42", "12 - -30 = 42"),
        ("7", "7", "7 = 7", "7 = 7"),
    ],
)
def test_sum_traces(expression, answer, thorough, hasty):
    family = make_family("chain_sum")
    problem = Problem("chain_sum", "", answer, {"expression": expression})
    assert family.trace(problem, Random(0), True) == thorough
    assert family.trace(problem, Random(0), False) == hasty


def test_lessons_hold_only_train_problems_and_true_arithmetic(family):
    rng, questions = Random(5), 0
    for _ in range(4000):
        text = family.lesson(rng)
        for question in QUESTION.findall(text):
            questions += 1
            assert split_of(question) == "train"
        for one, sign, other, result in re.findall(r"(?<![\d-])(-?\d+)([+-])(-?\d+)=(-?\d+)", text):
            assert int(one) + (int(other) if sign == "+" else -int(other)) == int(result)
        assert text == text.strip()
        assert text.isascii()
    assert questions > 500


def test_leg_facts_and_products_are_true():
    family = make_family("leg_counting")
    legs_of, rng = family.writer.legs_of, Random(1)
    for _ in range(500):
        for line in family.lesson(rng, {"facts": 1}).split("\n"):
            animal = max((a for a in legs_of if re.search(rf"\b{a}s?\b", line.lower())), key=len)
            assert int(re.findall(r"\d+", line)[-1]) == legs_of[animal]
        for line in family.lesson(rng, {"products": 1}).split("\n"):
            animal, count, legs = re.fullmatch(r"- (.+)\*(\d+) \+(\d+)", line).groups()
            assert int(legs) == int(count) * legs_of[animal if count == "1" else animal[:-1]]
        for line in family.lesson(rng, {"additions": 1}).split("\n"):
            before, legs, total = map(int, re.fullmatch(r"(\d+) \+(\d+) =(\d+)", line).groups())
            assert total == before + legs


def test_list_lessons_read_the_animals_off_in_the_order_of_the_traces():
    family, rng, moved = make_family("leg_counting"), Random(4), 0
    legs_of = family.writer.legs_of
    for _ in range(300):
        question, *lines = family.lesson(rng, {"lists": 1}).split("\n")
        pairs = [re.fullmatch(r"- (.+)\*(\d+)", line).groups() for line in lines]
        listed = [f"{count} {name}" for name, count in pairs]
        assert sorted(listed) == sorted(question.split(", "))
        legs = [legs_of[name if count == "1" else name[:-1]] for name, count in pairs]
        assert legs == sorted(legs)
        moved += listed != question.split(", ")
    assert moved > 200


def test_drills_go_on_from_their_total():
    family, rng = make_family("leg_counting"), Random(2)
    for _ in range(300):
        first, *rest = family.lesson(rng, {"drills": 1}).split("\n")
        total = int(re.fullmatch(r"=(\d+)", first).group(1))
        assert rest
        for line in rest:
            legs, after = map(int, re.search(r" \+(\d+) =(\d+)$", line).groups())
            total += legs
            assert after == total


def test_examples_end_in_the_answer(family):
    for _ in range(100):
        text = family.lesson(Random(_), {"examples": 1})
        assert re.findall(r"-?\d+", text.split("\nAnswer: ")[0])[-1] == text.split("\nAnswer: ")[1]


def test_lessons_repeat_with_their_rng_and_follow_their_weights(family):
    assert [family.lesson(Random(3)) for _ in range(3)] == [family.lesson(Random(3))] * 3
    kinds = family.writer.kinds
    for kind in kinds:
        assert family.lesson(Random(1), {kind: 1.0}) == family.lesson(Random(1), {**dict.fromkeys(kinds, 0.0), kind: 2})


@pytest.mark.parametrize("kinds", [{"poems": 1.0}, {"facts": 0.0}, {}])
def test_impossible_mixes_are_refused(family, kinds):
    with pytest.raises(TaskError, match=r"has no lessons of kind .*; it has facts, "):
        family.lesson(Random(0), kinds)
