import json
from hashlib import blake2b

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ziphius.text.chats import Chats
from ziphius.text.check import inspect
from ziphius.text.files import JsonLines, Parquet, TextFiles, TextLines, TextParagraphs

WORDS = ["eins", "zwei", "drei vier", "鲸鱼", "x" * 700_000]


@pytest.mark.parametrize(
    ("reader", "write", "documents"),
    [
        (TextLines(), lambda path: path.write_text("\n\n".join(WORDS)), 7),  # the long one is three
        (TextParagraphs(), lambda path: path.write_text("\n\n".join(WORDS)), 7),
        (TextFiles(), lambda path: path.write_text("\n\n".join(WORDS[:4])), 1),
        (TextFiles(), lambda path: path.write_text(" \n"), 0),
        (TextFiles(), lambda path: path.write_text(""), 0),
        (JsonLines(), lambda path: path.write_text("\n".join(json.dumps({"text": w}) for w in ["", *WORDS])), 5),
        (Parquet(), lambda path: pq.write_table(pa.table({"text": [None, *WORDS, " "]}), path), 5),
    ],
)
def test_digest_and_counts(tmp_path, reader, write, documents):
    path = tmp_path / "file"
    write(path)
    found = inspect(path, reader)
    data = path.read_bytes()
    assert found.digest == blake2b(data, digest_size=16).hexdigest()
    assert (found.documents, found.bytes) == (documents, len(data))


@pytest.mark.parametrize(
    ("reader", "data", "message"),
    [
        (TextFiles(), b"ok\nna\xefve\n", r"file:2: not UTF-8 at byte 5 .*; save it as UTF-8"),
        (TextLines(), b"\xff\xfet\x00", "file:1: not UTF-8 at byte 0"),
        (JsonLines(), b'{"text": "x"}\n{"text": 3}\n', "file:2: no string under 'text'"),
        (JsonLines(), b'{"text": "x"}\n{"text"\n', "file:2: not JSON"),
        (Parquet(), b"PAR1", "file is not a Parquet file"),
        (Chats(), b'{"prompt": "a", "response": "b"}\n\n{"prompt": "a"}\n', "file.jsonl:3: 'response' is missing"),
        (Chats(), b'["a", "b"]\n', "file.jsonl:1: a JSON list where an object is needed"),
        (Chats(), b'{"prompt": "\\udc00", "response": "b"}\n', r"file.jsonl:1: half a character, \\udc00"),
    ],
)
def test_what_is_malformed_is_named(tmp_path, reader, data, message):
    path = tmp_path / ("file.jsonl" if isinstance(reader, Chats) else "file")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        inspect(path, reader)
    assert "\n" not in str(error.value)
