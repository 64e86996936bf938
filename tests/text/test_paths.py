import pytest

from ziphius.text.paths import CHATS, expand

ALL = ["a.txt", "b.txt", "e[1].txt", "more/c.txt", "more/deep/d.jsonl", "notes.md"]


@pytest.fixture
def books(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "b.txt",
        "a.txt",
        "notes.md",
        "cover.png",
        "more/c.txt",
        "more/deep/d.jsonl",
        ".hidden.txt",
        "e[1].txt",
    ):
        path = tmp_path / "books" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ("books/b.txt", ["b.txt"]),
        ("books/*.txt", ["a.txt", "b.txt", "e[1].txt"]),
        ("books/[ab].txt", ["a.txt", "b.txt"]),
        ("books/e[1].txt", ["e[1].txt"]),
        ("books/**/*.txt", ["a.txt", "b.txt", "e[1].txt", "more/c.txt"]),
        ("books/**", ALL),
        ("books", ALL),
        ("books/", ALL),
        (["books/b.txt", "books/?.txt", "books/notes.md"], ["b.txt", "a.txt", "notes.md"]),
    ],
)
def test_files_folders_and_patterns(books, paths, found):
    assert expand(paths) == [f"books/{name}" for name in found]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("books/no.txt", "path: there is no file books/no.txt; correct it, relative to where `ziphius run` is started"),
        (
            "books/*.parquet",
            r"path: books/\*\.parquet matches no file of the kinds \.txt, .*parquet, also .*; correct it",
        ),
        ("books/*.png", "matches no file of the kinds .* among its 1 files; correct it"),
        ("books/cover.png", r"books/cover\.png is none of the kinds that can be read \(\.txt, .*\); convert"),
        (["books/a.txt", "nothing/"], "there is no file nothing/"),
        ([], "path names no file"),
    ],
)
def test_what_names_no_file_is_refused_in_one_line(books, paths, message):
    with pytest.raises(ValueError, match=message) as error:
        expand(paths)
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="matches no file of the kinds"):
        expand(tmp_path)


def test_other_kinds_may_be_asked_for(books):
    assert expand("books", CHATS) == ["books/more/deep/d.jsonl"]
    with pytest.raises(ValueError, match=r"books/a\.txt is none of the kinds that can be read \(\.jsonl, "):
        expand("books/a.txt", CHATS)
