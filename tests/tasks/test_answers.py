import time

import pytest
from reasoning_gym.factory import DATASETS

from ziphius.tasks import extract_answer, make_family

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{1}, no: \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2 without an end", "1"),
        (r"\boxed{\text{a}\{b\}}", r"\text{a}\{b\}"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),
        (r"f = { x, so \boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"$\boxed 5$.", "5"),
        (r"\\boxed{7}", "7"),
        (r"\boxed{a \boxed{b}}", "b"),
        (r"\boxed{ }", ""),
        ("<answer> 3 </answer> <answer>\n5\n</answer>", "5"),
        ("<answer>6</answer></answer>", "6"),
        (r"<answer>\boxed{7}</answer>", "7"),
        ("<answer>5", "<answer>5"),
        ("Answer: 42", "42"),
        ("ANSWER: 42.", "42"),
        ("Answer: 4.2", "4.2"),
        ("Answer: 3\nNo, wait.\nAnswer: 4", "4"),
        ("**Answer:** 42", "42"),
        ("**Answer: 42**", "42"),
        ("### Final Answer: **42**", "42"),
        ("**Final answer**\n\nAnswer:\n1 2\n3 4", "1 2\n3 4"),
        ("We add. So, the answer is 42. That was easy.", "42"),
        ("That makes 42, so the final answer is $42$.", "42"),
        ("Final Answer: The final answer is $\\frac12$. I hope it is correct.", r"\frac12"),
        ("The answer is 3.5 m", "3.5 m"),
        (r"The answer is $10,\! 080$. Done.", r"10,\! 080"),
        ("Answer: The cat sat.", "The cat sat."),
        ("答案：42", "42"),
        ("所以最终答案是 42。", "42"),
        ("18 eggs\n#### 1,234", "1,234"),
        ("#### Answer: 7", "7"),
        ("**42**", "42"),
        ("$42$", "42"),
        ("  34\n", "34"),
        ("", ""),
    ],
)
def test_what_is_taken(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "text",
    ["a**b", "**a** or **b**", "$1$ and $2$", "$5", "#### Steps\n1 2", "1 2\n3 4", "__init__", "Answer:", "**",
     '"Yes", said she, "he knows the answer is near"', "A# B# #A", "The cat sat.", r"\boxed{5"],
)  # fmt: skip
def test_what_is_left_alone(text):
    assert extract_answer(text) == text


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"composite"}))  # composite only mixes others
def test_the_answers_of_reasoning_gym_stay_what_they_are(name):
    family = make_family(name)
    for ticket in (13, 7932):
        problem = family.draw(ticket)
        found = extract_answer(problem.answer)
        assert found == problem.answer.strip() or family.verify(problem, found).correct


@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "\\boxed ", "\\boxed", "\\", "{", "}", "\\boxed{}", "<answer>", "</answer>", "<answer></answer>",
     "Answer: ", "answer is.\n", "answer:\n", "so the ", "the final answer is ", "答案", ". ", "\n", " ", "*", "$",
     "#### "],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_no_time(piece):
    text = "answer" + piece * (MIB // len(piece)) + "b"
    start = time.process_time()
    extract_answer(text)
    assert time.process_time() - start < 2  # quadratic reading takes hours
