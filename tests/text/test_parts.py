"""Large files in parts: every document once, in an order that has nothing to do with the file's."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.text import parts as cutting
from ziphius.text.corpora import open_source
from ziphius.text.files import TextFiles, TextLines, TextParagraphs, reader_for
from ziphius.text.shuffle import Shuffled

LINES = [f"{number:05d} {'whale ' * (number % 7)}🐋" for number in range(4000)]
WRITE = {
    ".txt": lambda path, lines: path.write_text("\n".join(lines)),
    ".jsonl": lambda path, lines: path.write_text("\n".join(json.dumps({"text": line}) for line in lines)),
    ".parquet": lambda path, lines: pq.write_table(
        pa.table({"text": lines}), path, row_group_size=90, use_dictionary=False
    ),
}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(cutting, "PART", 1 << 11)


@pytest.fixture(params=WRITE)
def sorted_file(request, tmp_path):
    path = tmp_path / f"sorted{request.param}"
    WRITE[request.param](path, LINES)
    return path


def test_a_sorted_file_is_not_read_in_order(sorted_file):
    source = Shuffled(open_source(sorted_file, "line", seed=1), seed=1, size=100)
    passes = [[source.next_document() for _ in LINES] for _ in range(2)]
    assert source.passes == pytest.approx(2)
    for drawn in passes:
        assert sorted(drawn) == LINES  # every document once
        for start in range(0, 4000, 500):  # and from everywhere, all the time
            numbers = [int(line.split()[0]) for line in drawn[start : start + 500]]
            assert 1000 < sum(numbers) / 500 < 3000
            assert max(numbers) - min(numbers) > 2000
    assert passes[0] != passes[1]


def test_it_goes_on_exactly_where_it_was_killed(sorted_file):
    def made(seed=1):
        return Shuffled(open_source(sorted_file, "line", seed=seed), seed=seed, size=100)

    source = made()
    for _ in range(5):
        for _ in range(997):
            source.next_document()
        state = json.loads(json.dumps(source.state_dict()))
        other = made()
        assert other.unchanged(state)
        other.load_state_dict(state)
        assert [other.next_document() for _ in range(300)] == [source.next_document() for _ in range(300)]
        assert other.passes == source.passes
    assert [made(2).next_document() for _ in range(5)] != [made().next_document() for _ in range(5)]


def test_what_changed_in_a_part_that_was_read_is_told(tmp_path):
    path = tmp_path / "a.txt"
    WRITE[".txt"](path, LINES)
    source = open_source(path, "line", seed=1)
    read = {source.next_document() for _ in range(1000)}
    state = source.state_dict()
    unread = next(number for number, line in enumerate(LINES) if line not in read)
    WRITE[".txt"](path, [*LINES[:unread], LINES[unread].replace("0", "o"), *LINES[unread + 1 :]])
    assert open_source(path, "line", seed=1).unchanged(state)
    first = LINES.index(min(read))
    WRITE[".txt"](path, [*LINES[:first], LINES[first].replace("0", "o"), *LINES[first + 1 :]])
    with pytest.raises(ValueError, match=r"a\.txt has changed in the part that was trained on"):
        open_source(path, "line", seed=1).unchanged(state)


@given(
    texts=st.lists(st.text(st.sampled_from("ab 鲸\n"), max_size=60), max_size=60),
    reader=st.sampled_from([TextLines(), TextParagraphs(), TextFiles()]),
)
def test_parts_hold_what_the_file_holds(tmp_path_factory, texts, reader):
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_text("\n".join(texts))
    part, cutting.PART = cutting.PART, 64
    try:
        parts = cutting.cut([(path, reader)])
    finally:
        cutting.PART = part
    found = [document for path, part in parts for document, _ in part(path, 0)]
    whole = [document for document, _ in reader(path, 0)]
    if isinstance(reader, TextFiles):
        assert "".join(found) == "".join(whole)
    else:
        assert [text for text in found if text.strip()] == [text for text in whole if text.strip()]


def test_the_number_of_parts_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    WRITE[".txt"](path, LINES)
    assert len(cutting.cut([(path, reader_for(path, "line"))])) > 40
    monkeypatch.setattr(cutting, "MOST_PARTS", 8)
    assert len(cutting.cut([(path, reader_for(path, "line"))])) in (8, 9)
