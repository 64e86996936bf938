import json

from ziphius.recipe import screen

FOUND = {
    "family": "math", "after": "rl", "split": "test", "n": 50, "samples": 4, "pass_at_1": 0.4, "ci95": [0.3, 0.5],
    "pass_at_1_bounds": [0.4, 0.455], "greedy": 0.5, "greedy_ci95": [0.4, 0.6], "greedy_bounds": [0.5, 0.52],
    "pass_at_k": {"2": 0.6}, "majority_at_k": 0.5, "format": 1.0, "response_length": 30.0, "undecided": 11,
    "greedy_undecided": 1,
}  # fmt: skip
DECIDED = FOUND | {"undecided": 0, "greedy_undecided": 0}
SAID = (
    "11 of 200 sampled (if all are right: 45.5%) and 1 of 50 greedy (if all are right: 52.0%) answers not decided, "
    "counted as not right"
)


def test_undecided_answers_are_counted_and_bounded():
    assert screen.undecided_answers(FOUND) == SAID
    assert screen.undecided_answers(FOUND | {"undecided": 0}).startswith("1 of 50 greedy (")
    assert screen.undecided_answers(DECIDED) == ""


def test_they_are_shown_where_there_are_any(capsys, tmp_path):
    for found in (FOUND, DECIDED):
        screen.show_evaluation(found, as_json=False)
        told = " ".join(capsys.readouterr().out.split())
        assert "pass@1 40.0% (95% 30.0%–50.0%)" in told
        assert (SAID in told) == ("undecided" in told) == (found is FOUND)


def test_the_summary_of_a_run_says_so_too(capsys, tmp_path):
    summary = {"name": "maths", "seed": 0, "price": {"dollars_per_hour": 0.0}, "evaluations": [FOUND], "control": None}
    (tmp_path / "stages").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    screen.show_summary(tmp_path)
    assert f"rl, math: {SAID}" in " ".join(capsys.readouterr().out.split())


def test_a_line_to_type_holds_in_a_folder_with_spaces(capsys, tmp_path):
    run = tmp_path / "my run"
    stage = run / "stages" / "02-pretrain"
    stage.mkdir(parents=True)
    summary = {"name": "maths", "seed": 0, "price": {"dollars_per_hour": 0.0}, "evaluations": [], "control": None}
    (run / "summary.json").write_text(json.dumps(summary))
    (stage / "stage.json").write_text(json.dumps({"name": "pretrain", "kind": "pretrain"}))
    (stage / "config.json").write_text("{}")
    screen.show_summary(run)
    assert f"ziphius chat '{stage}'" in capsys.readouterr().out
