"""Readers on what is too large to be read at once."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.text import files as reading
from ziphius.text.corpora import open_source
from ziphius.text.files import JsonLines, Parquet, TextFiles, TextLines, TextParagraphs

LINE = "Wale tauchen 深く, und 2 atmen 🐋 auf.\n"
SHAPES = {
    "lines": LINE * 40_000,
    "one line": (LINE * 40_000).replace("\n", " "),
    "one line of one kind": "🐋" * 300_000,
    "paragraphs": (LINE * 9_000 + "\n") * 4,
    "blanks": " " * 300_000 + "x\n" + "\n" * 300_000,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reader", [TextFiles(), TextLines(), TextParagraphs()], ids=lambda r: type(r).__name__)
def test_pieces_are_bounded_lose_nothing_and_resume(tmp_path, shape, reader):
    path = tmp_path / "a.txt"
    path.write_text(SHAPES[shape], encoding="utf-8")
    pieces = list(reader(path, 0))
    assert max(len(text.encode()) for text, _ in pieces) <= reading.PIECE
    assert "".join("".join(text for text, _ in pieces).split()) == "".join(SHAPES[shape].split())
    if isinstance(reader, TextFiles):
        assert "".join(text for text, _ in pieces) == SHAPES[shape]
        assert [len(text) for text, _ in pieces if text.endswith("\n")] or "line" in shape or shape == "blanks"
    for index in {0, len(pieces) // 2, len(pieces) - 2} & set(range(len(pieces))):
        assert list(reader(path, pieces[index][1])) == pieces[index + 1 :]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=200), piece=st.integers(5, 40))
def test_a_file_is_cut_between_characters(tmp_path_factory, text, piece):
    path = tmp_path_factory.mktemp("any") / "a.txt"
    path.write_bytes(text.encode())
    pieces = list(TextFiles(piece)(path, 0))
    assert "".join(text for text, _ in pieces) == text
    assert all(len(text.encode()) <= piece for text, _ in pieces)
    for index, (_, place) in enumerate(pieces):
        assert list(TextFiles(piece)(path, place)) == pieces[index + 1 :]


def test_a_row_of_json_too_long_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROW", 1 << 10)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x"}) + "\n" + json.dumps({"text": "y" * 2000}) + "\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: a row of more than 0 MiB; split it"):
        list(JsonLines()(path, 0))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_long_row_is_given_in_parts_and_resumes_inside(tmp_path, suffix):
    texts, path = ["short", LINE * 20_000, "x" * 600_000, "end"], tmp_path / f"a{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), path)
    source = open_source(path)
    parts: list[str] = []
    states = []
    while "".join(parts) != "".join(texts):
        states.append(json.loads(json.dumps(source.state_dict())))
        parts.append(source.next_document())
    assert max(map(len, parts)) <= reading.PIECE
    assert source.epochs == 0
    for index, state in enumerate(states):
        other = open_source(path)
        other.load_state_dict(state)
        assert [other.next_document() for _ in parts[index:]] == parts[index:]


def test_parquet_decodes_a_few_large_rows_at_a_time(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    texts = [f"{number} " * 50_000 for number in range(40)]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=20, compression="none", use_dictionary=False)
    asked = []
    plain = pq.ParquetFile.iter_batches

    def watched(self, rows, **options):
        asked.append(rows)
        return plain(self, rows, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    assert [text for text, _ in Parquet()(path, 0)] == texts
    assert all(rows * len(texts[0]) < 2 << 20 for rows in asked)
