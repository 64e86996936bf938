"""What a result depends on, and where its folder is."""

import pytest

from ziphius.ledger.folder import write_json
from ziphius.recipe.digests import Digests
from ziphius.recipe.identity import Identity, differences, stage_identity
from ziphius.recipe.schema import load_recipe
from ziphius.recipe.stage_folder import find_stage_folder, open_stage_folder

OF = Identity({"stage": {"kind": "sft", "steps": 3}, "seed": 0}, {"a.jsonl": "1"})


def never(folder):
    return False


def finish(run, of, name="sft", unread=never):
    home = find_stage_folder(run, 3, name, of, unread)
    open_stage_folder(home)
    write_json(home.folder / "stage.json", {"name": name, "kind": "sft"})
    return home


def test_the_same_work_is_found_again_wherever_it_lies(tmp_path):
    first = finish(tmp_path, OF)
    assert (first.folder.name, first.done, first.why) == ("03-sft", False, "")
    again = find_stage_folder(tmp_path, 3, "sft", Identity(OF.settings, {"elsewhere/b.jsonl": "1"}), never)
    assert (again.folder, again.done) == (first.folder, True)
    assert find_stage_folder(tmp_path, 5, "sft", OF, never).folder == first.folder  # a stage before it has come or gone


def test_other_work_gets_a_folder_of_its_own(tmp_path):
    first = finish(tmp_path, OF)
    (first.folder / "config.json").write_text("{}")
    other = Identity({"stage": {"kind": "sft", "steps": 4}, "seed": 0}, OF.files)
    home = finish(tmp_path, other)
    assert home.folder.name == f"03-sft-{other.print[:6]}"
    assert home.why == f"sft: steps 3 → 4; begins in {home.folder.name}, and 03-sft stays as it is"
    assert find_stage_folder(tmp_path, 3, "sft", other, never).done
    assert find_stage_folder(tmp_path, 3, "sft", OF, never).folder == first.folder


def test_a_folder_in_which_nothing_was_trained_is_taken(tmp_path):
    open_stage_folder(find_stage_folder(tmp_path, 3, "sft", OF, never))
    other = Identity({"stage": {"kind": "sft", "steps": 4}}, OF.files)
    assert find_stage_folder(tmp_path, 3, "sft", other, never).folder.name == "03-sft"


@pytest.mark.parametrize("done", [False, True])
def test_a_file_that_changed_where_it_was_not_read_yet(tmp_path, done):
    """A stage that is under way goes on with the file as it is now; one that is finished never read the change."""
    mended = Identity(OF.settings, {"a.jsonl": "2"})
    if done:
        finish(tmp_path, OF)
    else:
        open_stage_folder(find_stage_folder(tmp_path, 3, "sft", OF, never))
    home = find_stage_folder(tmp_path, 3, "sft", mended, lambda folder: True)
    assert (home.folder.name, home.done, home.of) == ("03-sft", done, OF if done else mended)
    assert home.why.startswith("sft: a.jsonl changed, but not up to where this stage has read it")


def test_differences_in_words():
    new = Identity({"stage": {"kind": "sft", "steps": 9, "path": None}, "seed": 0, "corpora": {"x": 1}})
    assert differences(OF, new) == "steps 3 → 9, path none → None, corpora none → {'x': 1}"
    assert differences(OF, Identity(OF.settings, {"x/a.jsonl": "2"})) == "a.jsonl changed"
    assert differences(OF, Identity(OF.settings, {})) == "fewer files"


def test_files_count_by_their_content(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("whales")
    (first,) = Digests(tmp_path).of([str(path)]).values()
    path.touch()
    assert list(Digests(tmp_path).of([str(path)]).values()) == [first]
    path.write_text("Whales")
    assert list(Digests(tmp_path).of([str(path)]).values()) != [first]


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("pretrain.train.save_every=7", set()),
        ("evaluation.n=9", set()),
        ("evaluation.tasks=[]", set()),
        ("price.dollars_per_hour=3", set()),
        ("machine.processes=2", set()),
        ("rl.train.steps=9", {"rl"}),
        ("cold_start.examples=9", {"cold_start"}),
        ("model.overrides.hidden_size=64", {"pretrain"}),
        ("tokenizer.documents=9", {"tokenizer"}),
        ("corpora.lessons.weight=2.0", {"tokenizer", "pretrain"}),
        ("seed=4", {"tokenizer", "pretrain", "cold_start", "rl"}),
    ],
)
def test_a_stage_depends_on_its_own_settings(recipe, tmp_path, override, changed):
    def prints(*overrides):
        loaded = load_recipe(recipe, list(overrides))
        files = Digests(tmp_path)
        return {name: stage_identity(loaded, stage, "", True, files).print for name, stage in loaded.stages.items()}

    old, new = prints(), prints(override)
    assert {name for name in old if old[name] != new[name]} == changed


def test_a_checker_of_ones_own_is_read_too(recipe, tmp_path):
    questions, checker = tmp_path / "questions.jsonl", tmp_path / "checks.py"
    questions.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    checker.write_text("def judge(answer, gold):\n    return answer == gold\n")
    settings = f"{{path = '{questions}', verifier = '{checker}:judge'}}"
    overrides = ["tasks.own.family='own'", f"tasks.own.settings={settings}", "rl.tasks={own=1}"]

    def rl_print():
        loaded = load_recipe(recipe, overrides)
        return stage_identity(loaded, loaded.stages["rl"], "", True, Digests(tmp_path)).print

    before = rl_print()
    checker.write_text("def judge(answer, gold):\n    return gold in answer\n")
    assert rl_print() != before
