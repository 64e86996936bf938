"""One large file costs no memory: a process of its own learns a tokenizer from it and streams rows of it."""

import subprocess
import sys

import numpy as np
import pytest

SIZE = 200 << 20  # bytes

# What the tokenizer and the pretraining stage do with a corpus; prints the growth of the peak in MiB.
WORK = """
import resource, sys
from ziphius.text.check import inspect
from ziphius.text.corpora import Mixture, open_source
from ziphius.text.files import reader_for
from ziphius.text.packing import PackedStream
from ziphius.text.shuffle import Shuffled
from ziphius.text.learn import train_tokenizer

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

path, documents, size = sys.argv[1], sys.argv[2], 1 << 21
before = peak()
from pathlib import Path
print(inspect(Path(path), reader_for(Path(path), documents)).bytes)
sample = open_source(path, documents, sample=size)
def texts():
    while True:
        text = sample.next_document()
        if sample.epochs:
            return
        yield text
tokenizer = train_tokenizer(texts(), 400)
shuffled = Shuffled(open_source(path, documents, seed=0), 0)
stream = PackedStream(Mixture({"text": shuffled}, {"text": 1}, 0), tokenizer, 512)
for _ in range(60):
    stream.next_rows(16)
stream.state_dict()
print(stream.tokens["text"], stream.epochs["text"], peak() - before)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file of SIZE bytes, of lines of words that follow Zipf's law, and a blank line now and then."""
    rng = np.random.default_rng(0)
    words = np.array(["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(5000)])
    block = "\n".join(" ".join(words[np.minimum(rng.zipf(1.3, 15) - 1, 4999)]) for _ in range(10_000)) + "\n\n"
    path = tmp_path_factory.mktemp("large") / "large.txt"
    with open(path, "wb") as file:
        while file.tell() < SIZE:
            file.write(block.encode())
    yield path
    path.unlink()


@pytest.mark.parametrize("documents", ["file", "paragraph"])
def test_a_large_file_is_streamed(corpus, documents):
    done = subprocess.run([sys.executable, "-c", WORK, corpus, documents], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    size, tokens, epochs, growth = done.stdout.split()
    assert int(size) == corpus.stat().st_size >= SIZE
    assert int(tokens) > 60 * 16 * 400
    assert 0 < float(epochs) < 0.2
    assert float(growth) < 150  # MiB; read whole it is a file of 200 MiB, and ten times that in tokens
