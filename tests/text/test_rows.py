import bz2
import gzip
import json
import lzma
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.text import rows as reading
from ziphius.text.chats import form_name, read_chats
from ziphius.text.files import Parquet
from ziphius.text.rows import count_rows, read_rows, where

ROWS = [{"prompt": f"鲸鱼 {number}?", "response": "[x], {y}\n\\" * number} for number in range(30)]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
WRITE: dict[str, Callable[[list], str]] = {
    ".jsonl": lambda rows: "\n".join(json.dumps(row, ensure_ascii=False) for row in rows),
    ".json": lambda rows: json.dumps(rows, ensure_ascii=False, indent=1),
}


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", WRITE)
def test_each_kind_plain_and_compressed(tmp_path, kind, packed, monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK", 64)  # rows end anywhere in it
    path = tmp_path / f"chats{kind}{packed}"
    text = WRITE[kind](ROWS)
    path.write_bytes(PACK[packed](text.encode()))
    assert [row for row, _ in read_rows(path)] == ROWS
    assert count_rows(path) == len(ROWS)
    for row, place in read_rows(path):
        line = text.encode()[:place].count(b"\n") + 1
        assert where(path, place) == f"{path}:{line}"
        assert text.encode()[place:].decode().lstrip("\n").startswith("{")
        assert json.dumps(row["prompt"], ensure_ascii=False) in text.encode()[place:].decode()[:60]


def test_parquet_with_nested_columns(tmp_path):
    said = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    pq.write_table(pa.Table.from_pylist([{"messages": said}] * 3), tmp_path / "a.parquet", row_group_size=2)
    path = tmp_path / "a.parquet"
    assert count_rows(path) == 3
    assert form_name(path) == "messages"
    assert [place for _, place in read_chats(path)] == [0, 1, 2]
    assert next(read_chats(path))[0].messages == said
    assert where(path, 2) == f"{path}, row 3"
    path.write_bytes(b"none")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        list(read_rows(path))


def test_json_lines_in_a_json_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("\ufeff" + WRITE[".jsonl"](ROWS))
    assert [row for row, _ in read_rows(path)] == ROWS
    path.write_text(" ")
    assert list(read_rows(path)) == []
    assert form_name(path) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n {"b": 2}', r"a\.json:2: not JSON \(a row ends nowhere\); a \.json file is a list of rows"),
        ('[{"a": 1},\n {"b": x, "c": "a long text behind what is wrong"}]', r"a\.json:2: not JSON \(Expecting value"),
        ('[{"a": 1}, 3]', r"a\.json:1: a JSON int where an object is needed"),
        ('[{"a": 1}]\n[]', r"a\.json:2: something stands behind the list; a \.json file is one list of rows"),
        ('[{"a": "' + "x" * 3000, r"a\.json:1: not JSON \(a row ends nowhere\)"),
    ],
)
def test_what_is_no_list_is_said(tmp_path, text, message, monkeypatch):
    monkeypatch.setattr(reading, "ROW", 1 << 10)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_rows(tmp_path / "a.json"))


@given(
    rows=st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=40) | st.floats(allow_nan=False)), max_size=9)
)
def test_any_list_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "a.json"
    path.write_text(json.dumps(rows))
    block, reading._BLOCK = reading._BLOCK, 16
    try:
        assert [row for row, _ in read_rows(path)] == rows
    finally:
        reading._BLOCK = block


def test_a_row_of_another_form_is_told_by_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "u", "response": "a"}\n\n{"messages": []}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:3: 'prompt' is missing \(the file's form is prompt and response\)"):
        list(read_chats(path))


def test_other_kinds_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv is none of the kinds that hold chats \(\.jsonl, "):
        list(read_rows(tmp_path / "a.csv"))


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize("row", ["[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_json_that_no_parser_takes_is_named(tmp_path, kind, row):
    path = tmp_path / f"a.{kind}"
    path.write_text('{"a": 1}\n' + row)
    with pytest.raises(ValueError, match=rf"a\.{kind}:2: "):
        list(read_rows(path))


def test_parquet_with_broken_text_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    damaged = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table({"prompt": damaged}), path)
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        list(read_rows(path))
    with pytest.raises(ValueError, match=r"a\.parquet is damaged in row group 0"):
        list(Parquet("prompt")(path, 0))
