import pytest

from ziphius.recipe.inputs import check_inputs, most_think
from ziphius.recipe.schema import RecipeError, check_recipe, load_recipe

from .conftest import RECIPE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("Whales dive.\n")
    (tmp_path / "books" / "b.jsonl").write_text('{"text": "They breathe."}\n')
    (tmp_path / "chats.jsonl").write_text('{"prompt": "Who?", "response": "A whale."}\n')
    recipe = RECIPE.replace('[corpora.lessons]\ntask = "sums"', '[corpora.books]\npath = ["books"]')
    (tmp_path / "r.toml").write_text(recipe.replace('task = "sums"\nexamples = 24', 'path = "chats*"'))
    return tmp_path


def test_each_file_is_read_once_and_named(folder):
    found = check_inputs(load_recipe("r.toml"))
    assert {path: about.documents for path, about in found.items()} == {
        "books/a.txt": 1,
        "books/b.jsonl": 1,
        "chats.jsonl": 1,
    }
    asked = []

    def remembered(path, reader):
        asked.append(str(path))
        return found[str(path)]

    assert check_inputs(load_recipe("r.toml"), remembered) == found
    assert asked == list(found)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("books/a.txt", b"na\xefve", "corpora.books.path: books/a.txt:1: not UTF-8 at byte 2"),
        ("books/b.jsonl", b'{"text": "a"}\n{"body": "b"}', "corpora.books.path: books/b.jsonl:2: no string under"),
        ("books/c.parquet", b"none", "corpora.books.path: books/c.parquet is not a Parquet file"),
        (
            "chats.jsonl",
            b'{"prompt": "a"}',
            "stages.cold_start.path: chats.jsonl:1: the keys ['prompt'] are those of no",
        ),
        ("chats.jsonl", b"\n", "stages.cold_start.path: no text in chats.jsonl; give files with something in them"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_stage(folder, ziphius, name, data, message):
    (folder / name).write_bytes(data)
    with pytest.raises(RecipeError) as error:
        check_inputs(load_recipe("r.toml"))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_corpus_without_text_is_refused(folder):
    (folder / "books" / "a.txt").write_text("\n")
    assert check_inputs(load_recipe("r.toml"))["books/a.txt"].documents == 0  # the other file has some
    (folder / "books" / "b.jsonl").write_text("")
    with pytest.raises(RecipeError, match=r"corpora\.books\.path: no text in all 2 files; give"):
        check_inputs(load_recipe("r.toml"))


def test_patterns_are_checked_with_the_recipe(folder):
    raw = load_recipe("r.toml").model_dump(mode="json")
    assert raw["corpora"]["books"]["path"] == ["books"]
    assert check_recipe(raw, "again").corpora["books"].files() == ["books/a.txt", "books/b.jsonl"]
    for overrides, message in [
        (["corpora.books.path='book/*.txt'"], "corpora.books: path: book/*.txt matches no file of the kinds .txt"),
        (["cold_start.path='books/a.txt'"], "stages.cold_start: path: books/a.txt is none of the kinds"),
    ]:
        with pytest.raises(RecipeError) as error:
            load_recipe("r.toml", overrides)
        assert message in str(error.value)


def test_whether_chats_teach_thinking_is_told_by_most_of_them(tmp_path):
    rows = ['{"prompt": "q", "response": "<think>hm</think>a"}', '{"prompt": "q", "response": "a"}']
    for thinking, plain, expected in ((2, 1, True), (1, 1, False), (0, 0, False)):
        path = tmp_path / f"{thinking}-{plain}.jsonl"
        path.write_text("\n".join([rows[0]] * thinking + [rows[1]] * plain))
        assert most_think([str(path)]) is expected
