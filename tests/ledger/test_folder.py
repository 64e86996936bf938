import pytest

from ziphius.ledger.folder import finished_stages, kept_stages, parts, present_stages, read_json, write_json


def make(run, *names):
    for name in names:
        (run / "stages" / name).mkdir(parents=True)


def names(folders):
    return [folder.name for folder in folders]


def test_the_present_stages_are_those_that_the_last_recipe_listed(tmp_path):
    make(tmp_path, "01-a", "02-b", "02-b-123abc", "03-c")
    assert names(present_stages(tmp_path)) == ["01-a", "02-b", "02-b-123abc", "03-c"]  # nobody listed any
    write_json(tmp_path / "stages.json", ["01-a", "02-b-123abc", "03-gone"])
    assert names(present_stages(tmp_path)) == ["01-a", "02-b-123abc"]
    assert names(kept_stages(tmp_path)) == ["02-b", "03-c"]
    write_json(tmp_path / "stages" / "02-b-123abc" / "stage.json", {"kind": "sft"})
    write_json(tmp_path / "stages" / "03-c" / "stage.json", {"kind": "sft"})
    assert names(finished_stages(tmp_path)) == names(finished_stages(tmp_path, "sft")) == ["02-b-123abc"]
    assert finished_stages(tmp_path, "grpo") == []


def test_a_control_is_a_part_of_its_run(tmp_path):
    make(tmp_path, "01-a")
    assert parts(tmp_path) == [tmp_path]
    make(tmp_path / "control", "03-c")
    assert parts(tmp_path) == [tmp_path, tmp_path / "control"]


def test_files_are_whole_or_named(tmp_path):
    path = tmp_path / "a.json"
    assert read_json(path) is None
    write_json(path, {"whales": 3})
    with pytest.raises(TypeError):
        write_json(path, object())
    assert read_json(path) == {"whales": 3}
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]
    path.write_text("{")
    with pytest.raises(ValueError, match=r"a.json is damaged .*; remove it and run the recipe again"):
        read_json(path)
