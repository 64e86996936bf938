"""What a folder says about its serving."""

import json

import pytest

from ziphius.serve.folders import example_questions


def evaluation(*tasks):
    return json.dumps({"of": {}, "results": [{"examples": [{"prompt": prompt} for prompt in task]} for task in tasks]})


def test_the_questions_of_the_evaluation_are_examples(tmp_path):
    assert example_questions(tmp_path) == []
    (tmp_path / "evaluation.json").write_text(evaluation(["a1", " a2 ", "a1"], ["b1", "b" * 3000, "b3"], []))
    assert example_questions(tmp_path) == ["a1", "b1", "a2", "b3"]


def test_a_folder_says_itself_what_to_ask_first(tmp_path):
    (tmp_path / "evaluation.json").write_text(evaluation(["a1"]))
    (tmp_path / "examples.json").write_text('["How deep?", "", "Why?"]')
    assert example_questions(tmp_path) == ["How deep?", "Why?"]
    (tmp_path / "examples.json").write_text("[]")
    assert example_questions(tmp_path) == []


@pytest.mark.parametrize("text", ["{}", "[1]", "[", '"How deep?"'])
def test_damaged_examples_are_refused_by_name(tmp_path, text):
    (tmp_path / "examples.json").write_text(text)
    with pytest.raises(ValueError, match=r"examples\.json: .*list of questions"):
        example_questions(tmp_path)
