import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ziphius.text import sampling
from ziphius.text.corpora import open_source

WORDS = [f"word{number:06d}" for number in range(60_000)]
KNOWN = set(WORDS)
WRITE = {
    "line": lambda path, words: path.with_suffix(".txt").write_text("\n".join(words)),
    "paragraph": lambda path, words: path.with_suffix(".txt").write_text("\n\n".join(words)),
    "file": lambda path, words: path.with_suffix(".txt").write_text("\n".join(words)),
    "one line": lambda path, words: path.with_suffix(".txt").write_text(" ".join(words)),
    "jsonl": lambda path, words: path.with_suffix(".jsonl").write_text(
        "\n".join(json.dumps({"text": word}) for word in words)
    ),
    "parquet": lambda path, words: pq.write_table(
        pa.table({"text": words}), path.with_suffix(".parquet"), row_group_size=3000, compression="none"
    ),
}


def sampled(folder, kind, size, seed=None):
    """The words of one pass over a sample, and its characters."""
    source = open_source(folder, kind if kind in ("line", "paragraph") else "file", seed=seed, sample=size)
    words: list[str] = []
    length = 0
    while True:
        document = source.next_document()
        if source.epochs:
            return words, length
        words += document.split()
        length += len(document)


@pytest.mark.parametrize("kind", WRITE)
def test_a_sample_has_its_size_is_spread_and_cuts_no_row(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(sampling, "CHUNK", 1 << 13)
    for part in range(3):
        WRITE[kind](tmp_path / f"part{part}", WORDS[part * 20_000 : (part + 1) * 20_000])
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    words, length = sampled(tmp_path, kind, total // 5)
    assert 0.15 * len(WORDS) < len(words) < 0.27 * len(WORDS)
    whole = [word for word in words if word in KNOWN] if kind == "one line" else words
    assert len(whole) >= 0.95 * len(words)
    assert len(set(whole)) == len(whole)  # nothing twice
    numbers = [int(word.removeprefix("word")) for word in whole]
    assert numbers == sorted(numbers)
    for part in range(3):
        assert any(part * 20_000 <= number < (part + 1) * 20_000 for number in numbers)
    assert length < total * 0.3


@pytest.mark.parametrize("kind", sorted({*WRITE} - {"one line"}))
def test_what_is_small_is_read_whole(tmp_path, kind):
    WRITE[kind](tmp_path / "all", WORDS)
    words, _ = sampled(tmp_path, kind, 1 << 25)
    assert words == WORDS


def test_many_small_files_are_sampled_evenly(tmp_path):
    for number in range(300):
        (tmp_path / f"{number:03d}.txt").write_text(" ".join(WORDS[number * 200 : number * 200 + 200]))
    words, _ = sampled(tmp_path, "file", 300 * 2200 // 10, seed=1)
    files = [int(word.removeprefix("word")) // 200 for word in words if word in KNOWN]
    assert 10 <= len(set(files)) <= 40
    assert sum(file < 150 for file in set(files)) == pytest.approx(len(set(files)) / 2, abs=2)
    assert files != sorted(files)


def test_rows_longer_than_a_chunk_are_sampled_too(tmp_path):
    rows = [f"{number} " * 40_000 for number in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    words, length = sampled(tmp_path, "jsonl", 1 << 19)
    assert 3 <= len(set(words)) <= 60
    assert length % 40_000 == 0 or all(words.count(word) == 40_000 for word in set(words))
