import json
from collections import Counter
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.text import files as reading
from ziphius.text.corpora import FileSource, GeneratedSource, Mixture, open_source
from ziphius.text.shuffle import Shuffled

WORDS = ["eins", "zwei", "drei", "vier fünf", "鲸鱼", "sechs"]


def make(rng):
    return f"{rng.randint(0, 10**6)} {rng.gauss(0, 1)}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every kind of file, each two files with the six WORDS and something to pass over."""
    root = tmp_path_factory.mktemp("files")
    for part, words in enumerate((WORDS[:4], WORDS[4:])):
        (root / f"lines{part}.txt").write_bytes(("\r\n".join(["", *words, " "])).encode())
        (root / f"paragraphs{part}.txt").write_text("\n\n\n".join(words) + "\n" * part, encoding="utf-8")
        lines = [json.dumps({"text": word, "n": 1}, ensure_ascii=False) for word in ["", *words]]
        (root / f"records{part}.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
        table = pa.table({"text": [words[0], None, "", *words[1:]], "n": range(len(words) + 2)})
        pq.write_table(table, root / f"table{part}.parquet", row_group_size=3)
    for number, word in enumerate(WORDS):
        (root / f"whole{number}.txt").write_text(word, encoding="utf-8")
    return root


def open_kind(files, kind, **options):
    documents = {"lines": "line", "paragraphs": "paragraph"}.get(kind, "file")
    return open_source(str(files / f"{kind}*"), documents=documents, **options)


SOURCES = {
    **{
        kind: (lambda files, kind=kind: open_kind(files, kind))
        for kind in ("lines", "paragraphs", "whole", "records", "table")
    },
    "generated": lambda files: GeneratedSource(make, seed=3),
    "shuffled": lambda files: Shuffled(open_kind(files, "records"), seed=5, size=4),
    "shuffled in full": lambda files: Shuffled(open_kind(files, "table"), seed=5),
    "shuffled by length": lambda files: Shuffled(open_kind(files, "lines"), seed=5, length=9),
    "permuted": lambda files: open_kind(files, "whole", seed=7),
    "mixed": lambda files: open_source([files / "whole0.txt", files / "records1.jsonl", files / "table0.parquet"]),
}
KINDS = ["lines", "paragraphs", "whole", "records", "table"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_in_order_over_and_over(files, kind):
    source = open_kind(files, kind)
    assert [source.next_document() for _ in range(6)] == WORDS
    assert source.epochs == 0
    assert [source.next_document() for _ in range(8)] == WORDS + WORDS[:2]
    assert source.epochs == 1 + 1


@pytest.mark.parametrize("kind", SOURCES)
def test_resume_is_exact_at_every_point(files, kind):
    source = SOURCES[kind](files)
    for _ in range(20):
        state = json.loads(json.dumps(source.state_dict()))
        expected = [source.next_document() for _ in range(7)]
        other = SOURCES[kind](files)
        other.next_document()
        other.load_state_dict(state)
        assert [other.next_document() for _ in range(7)] == expected
        assert (other.epochs, other.passes) == (source.epochs, source.passes)
        source.load_state_dict(state)
        source.next_document()


def test_parquet_resumes_inside_and_between_large_row_groups(tmp_path):
    documents = [f"document {number}" for number in range(5000)]
    pq.write_table(pa.table({"text": documents}), tmp_path / "a.parquet", row_group_size=2100)
    source = open_source(tmp_path / "a.parquet")
    for place in (0, 1, 1023, 1024, 2099, 2100, 2101, 3500, 4199, 4200, 4999):
        source.load_state_dict(source.state_dict() | {"place": place})
        assert [source.next_document() for _ in range(len(documents) - place)] == documents[place:]
        assert source.next_document() == documents[0]


@pytest.mark.parametrize("options", [{}, {"size": 4}, {"length": 9}])
def test_shuffled_gives_every_document_once_an_epoch_in_another_order(files, options):
    shuffled = Shuffled(open_kind(files, "lines"), seed=0, **options)
    passes = []
    for epoch in range(50):
        for place in range(6):
            passes.append(shuffled.next_document())
            assert shuffled.epochs == epoch
            assert epoch <= shuffled.passes <= epoch + 1
            assert (shuffled.passes == epoch + 1) == (place == 5)
    epochs = [passes[start : start + 6] for start in range(0, 300, 6)]
    assert all(sorted(epoch) == sorted(WORDS) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 20
    assert {epoch[0] for epoch in epochs} > {WORDS[0]}


def test_a_buffer_that_holds_nothing_is_refused(files):
    for options in ({"size": 0}, {"length": 0}):
        with pytest.raises(ValueError, match="shuffle buffer of 0"):
            Shuffled(open_kind(files, "lines"), seed=0, **options)


def test_a_buffer_keeps_to_its_bounds(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join("x" * 30 for _ in range(200)))
    shuffled = Shuffled(open_source(tmp_path, documents="line"), seed=0, size=50, length=300)
    for _ in range(300):
        shuffled.next_document()
        held = shuffled.state_dict()["buffer"]
        assert sum(map(len, held)) <= 300 + 30


def test_files_are_read_in_another_order_each_time(files):
    source = open_kind(files, "whole", seed=1)
    orders = [tuple(source.next_document() for _ in WORDS) for _ in range(8)]
    assert all(sorted(order) == sorted(WORDS) for order in orders)
    assert len(set(orders)) > 4
    again = open_kind(files, "whole", seed=1)
    assert orders == [tuple(again.next_document() for _ in WORDS) for _ in range(8)]
    other = open_kind(files, "whole", seed=2)
    assert orders != [tuple(other.next_document() for _ in WORDS) for _ in range(8)]


def test_passes_count_the_part_that_was_read(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    pq.write_table(pa.table({"text": ["x"] * 4}), tmp_path / "b.parquet")
    source = open_source(tmp_path, documents="line")
    sizes = [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    shares = [sizes[0] / 2, sizes[0], *(sizes[0] + sizes[1] * part / 4 for part in (1, 2, 3, 4))]
    for epoch in range(2):
        for share in shares:
            source.next_document()
            assert source.passes == pytest.approx(epoch + share / sum(sizes))


# --- what was read is known again ------------------------------------------------------------------------------------

KINDS_OF_FILE = {
    ".txt": lambda path, words: path.write_text("".join(f"{word}\n" for word in words)),
    ".jsonl": lambda path, words: path.write_text("".join(json.dumps({"text": word}) + "\n" for word in words)),
    ".parquet": lambda path, words: pq.write_table(pa.table({"text": words}), path),
}


@pytest.mark.parametrize("suffix", KINDS_OF_FILE)
def test_a_line_mended_ahead_goes_on_and_one_behind_is_told(tmp_path, suffix):
    words, write = [f"word{number}" for number in range(20)], KINDS_OF_FILE[suffix]
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write(path, words)

    def made():
        return Mixture({"text": Shuffled(open_source(paths, documents="line"), 0, size=1)}, {"text": 1}, 0)

    mixed = made()
    for _ in range(29):  # the first file and nine lines of the second
        mixed.next_document()
    state = json.loads(json.dumps(mixed.state_dict()))
    assert made().unchanged(state)
    write(paths[1], [*words[:9], "mended", *words[10:], "added"])
    assert made().unchanged(state)
    other = made()
    other.load_state_dict(state)
    assert [other.next_document()[1] for _ in range(2)] == ["mended", words[10]]
    for number, changed in [(1, [*words[:8], "mended", *words[9:]]), (1, words[:8]), (0, ["mended", *words[1:]])]:
        for path in paths:
            write(path, words)
        write(paths[number], changed)
        with pytest.raises(ValueError, match=rf"{paths[number].name} has changed in the part that was trained on"):
            made().unchanged(state)


# --- mixtures --------------------------------------------------------------------------------------------------------


def mixture(files, weights, seed=0):
    sources = {"lines": open_kind(files, "lines"), "made": GeneratedSource(make, seed=1)}
    return Mixture(sources, weights, seed)


def test_mixture_keeps_its_proportions(files):
    mixed = mixture(files, {"lines": 3, "made": 1})
    names = Counter(mixed.next_document()[0] for _ in range(4000))
    assert abs(names["lines"] - 3000) < 5 * (4000 * 0.75 * 0.25) ** 0.5
    only = mixture(files, {"lines": 0, "made": 0.5})
    assert {only.next_document()[0] for _ in range(200)} == {"made"}


@given(before=st.integers(0, 30), seed=st.integers(0, 5))
def test_mixture_resumes_exactly(files, before, seed):
    mixed = mixture(files, {"lines": 1, "made": 2}, seed)
    for _ in range(before):
        mixed.next_document()
    state = json.loads(json.dumps(mixed.state_dict()))
    expected = [mixed.next_document() for _ in range(10)]
    other = mixture(files, {"lines": 1, "made": 2}, seed + 1)
    other.load_state_dict(state)
    assert [other.next_document() for _ in range(10)] == expected


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lines": -1, "made": 2}, "weight -1 of source 'lines'"),
        ({"lines": float("nan"), "made": 2}, "weight nan"),
        ({"lines": 0, "made": 0}, "sum to 0"),
        ({"lines": 1, "made": 1, "code": 1}, r"unknown sources \['code'\]"),
        ({"lines": 1}, r"no weight for the sources \['made'\]"),
    ],
)
def test_mixture_refuses_bad_weights(files, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture(files, weights)


def test_states_of_other_files_or_sources_are_refused(files):
    source = open_kind(files, "lines")
    one = FileSource(source.files[:1])
    for refuse in (source.load_state_dict, source.unchanged):
        with pytest.raises(
            ValueError, match=r"cannot resume: a source had 1 files or parts of files and has \d now \(.*lines0\.txt"
        ):
            refuse(one.state_dict())
    one.next_document()
    other = FileSource(open_kind(files, "paragraphs").files[:1])
    with pytest.raises(ValueError, match=r"paragraphs0\.txt has changed in the part that was trained on"):
        other.unchanged(one.state_dict())
    path, reader = source.files[0]
    renamed = path.with_name("renamed.txt")
    renamed.write_bytes(path.read_bytes())
    assert FileSource([(renamed, reader)]).unchanged(one.state_dict())  # what is in a file counts, not its name
    mixed = mixture(files, {"lines": 1, "made": 1})
    state = mixed.state_dict()
    del state["sources"]["made"]
    with pytest.raises(ValueError, match=r"the sources were \['lines'\], now \['lines', 'made'\]"):
        mixed.load_state_dict(state)


def read_all(path, **options):
    source = open_source(path, **options)
    while source.epochs == 0:
        source.next_document()


def test_malformed_jsonl_is_named_by_line_even_after_a_resume(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"text": "x"}) + "\n"
    for bad, message in [
        ("{", "not JSON"),
        ("[1]", "a JSON list where an object is needed"),
        ('{"body": "x"}', r"no string under 'text'; the keys are \['body'\]"),
        ('{"text": 3}', "no string under 'text'"),
        ('{"text": "\\ud83d"}', r"half a character, \\ud83d; mend the escape"),
    ]:
        path.write_text(good + good + bad + "\n")
        with pytest.raises(ValueError, match=rf"a\.jsonl:3: {message}"):
            read_all(path)
        source = open_source(path)
        source.load_state_dict(source.state_dict() | {"place": len(good)})
        source.next_document()
        with pytest.raises(ValueError, match=rf"a\.jsonl:3: {message}"):
            source.next_document()
    path.write_bytes(good.encode() + b'{"text": "\xff"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: not JSON"):
        read_all(path)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.txt is missing"):
        FileSource([(tmp_path / "gone.txt", reading.TextLines())])
    with pytest.raises(ValueError, match="at least one file"):
        FileSource([])
    (tmp_path / "blank.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"no documents in .*blank\.txt"):
        read_all(tmp_path / "blank.txt", documents="line")
    (tmp_path / "latin.txt").write_bytes("ok\nnaïve\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt:2: not UTF-8 at byte 5 \(.*\); save it as UTF-8"):
        read_all(tmp_path / "latin.txt", documents="line")
    (tmp_path / "text.parquet").write_text("not parquet")
    with pytest.raises(ValueError, match=r"text\.parquet is not a Parquet file"):
        read_all(tmp_path / "text.parquet")
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=r"no column 'text'; its columns are \['body', 'n'\]"):
        read_all(tmp_path / "table.parquet")
    with pytest.raises(ValueError, match="column 'n' holds int, not text"):
        read_all(tmp_path / "table.parquet", field="n")
    assert open_source(tmp_path / "table.parquet", field="body").next_document() == "x"


def test_kinds_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"a\.csv is none of the kinds that can be read \(\.txt, \.md"):
        open_source(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"a\.csv is none of the kinds"):
        reading.reader_for(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="documents = 'page'"):
        open_source(tmp_path / "a.txt", documents="page")


@given(lines=st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1))
def test_any_lines_come_back_with_growing_places(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    read = list(reading.TextLines()(path, 0))
    assert [line for line, _ in read] == lines
    assert all(before < after for (_, before), (_, after) in pairwise(read))
