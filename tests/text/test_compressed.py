"""Compressed files give what plain ones do, from every place on."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pytest

from ziphius.text.check import inspect
from ziphius.text.compressed import open_bytes, unpacked_size
from ziphius.text.corpora import open_source
from ziphius.text.files import JsonLines, reader_for
from ziphius.text.paths import expand, kind_of, suffix_of
from ziphius.text.shuffle import Shuffled

LINES = [f"Zeile {number} 鲸鱼" for number in range(3000)]
PACK = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}


def write(folder, packed, kind=".jsonl"):
    path = folder / f"a{kind}{packed}"
    lines = [json.dumps({"text": line}) if kind == ".jsonl" else line for line in LINES]
    halves = ["\n".join(lines[:1500]) + "\n", "\n".join(lines[1500:]) + "\n"]
    path.write_bytes(b"".join(PACK[packed](half.encode()) for half in halves))  # several members, as tools append them
    return path


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_every_document_from_every_place(tmp_path, packed, kind):
    path = write(tmp_path, packed, kind)
    reader = reader_for(path, "line")
    found = list(reader(path, 0))
    assert [document for document, _ in found] == LINES
    assert unpacked_size(path) == reader.extent(path) == found[-1][1]
    for number in (0, 1, 1499, 1500, 2998):
        assert list(reader(path, found[number][1])) == found[number + 1 :]
    assert inspect(path, reader).documents == len(LINES)
    assert inspect(path, reader).bytes == path.stat().st_size


@pytest.mark.parametrize("packed", PACK)
def test_a_killed_run_goes_on_where_it_was(tmp_path, packed):
    path = write(tmp_path, packed)
    source = Shuffled(open_source(path, seed=0), seed=0, size=50)
    drawn = [source.next_document() for _ in range(700)]
    state = json.loads(json.dumps(source.state_dict()))
    expected = [source.next_document() for _ in range(2500)]
    assert sorted(drawn + expected[:2300]) == sorted(LINES)
    other = Shuffled(open_source(path, seed=0), seed=0, size=50)
    assert other.unchanged(state)
    other.load_state_dict(state)
    assert [other.next_document() for _ in range(2500)] == expected
    assert other.passes == source.passes


def test_a_sample_is_spread_over_the_file(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("".join(f"line {number:06d}\n" for number in range(60_000)).encode()))
    source = open_source(path, "line", sample=1 << 18)
    drawn = []
    while not source.epochs:
        drawn.append(int(source.next_document().split()[1]))
    drawn = drawn[:-1]
    assert (1 << 17) < 12 * len(drawn) < (1 << 19)
    assert min(drawn) == 0
    assert max(drawn) > 45_000
    assert drawn == sorted(set(drawn))


@pytest.mark.parametrize("packed", PACK)
def test_what_is_damaged_is_named(tmp_path, packed):
    path = write(tmp_path, packed)
    data = path.read_bytes()
    for bad in (data[:-40], b"plain text, none of it compressed"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"a\.jsonl\.\w+ is damaged or not compressed as its suffix says"):
            list(JsonLines()(path, 0))


def test_a_malformed_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n' * 5 + b"{\n"))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz:6: not JSON"):
        list(JsonLines()(path, 0))


def test_kinds_by_name(tmp_path, monkeypatch):
    names = ["a.txt.gz", "b.jsonl.zst", "c.parquet", "d.parquet.gz", "e.gz", "f.tar.xz", "g.md.bz2"]
    for name in names:
        (tmp_path / name).touch()
    assert [kind_of(name) for name in names] == [".txt", ".jsonl", ".parquet", ".parquet.gz", "", ".tar", ".md"]
    assert [suffix_of(name) for name in names[:3]] == [".txt.gz", ".jsonl.zst", ".parquet"]
    found = expand(tmp_path)
    assert [path.rpartition("/")[2] for path in found] == ["a.txt.gz", "b.jsonl.zst", "c.parquet", "g.md.bz2"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand("~/*.txt*") == [str(tmp_path / "a.txt.gz")]
    with pytest.raises(ValueError, match="braces are no pattern: give a list of names"):
        expand(str(tmp_path / "{a,b}.*"))


def test_a_compressed_file_is_read_forwards(tmp_path):
    with open_bytes(write(tmp_path, ".gz")) as file:
        file.seek(40_000)
        assert file.tell() == 40_000
        with pytest.raises(OSError, match="read forwards only"):
            file.raw.seek(0)
