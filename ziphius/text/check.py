"""Reading input files once, before anything is trained: what is malformed is named, and the content gets a name."""

import io
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ziphius.text.files import ByteReader, Reader
from ziphius.text.paths import is_compressed

BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Inspected:
    """What one pass over a file found."""

    digest: str  # BLAKE2b of its bytes, 16 bytes in hex
    documents: int  # those with something in them
    bytes: int


def inspect(path: str | Path, reader: Reader) -> Inspected:
    """Reads a whole file as training would, in bounded memory: plain text and JSON lines once, others twice.

    Raises:
        ValueError: what the reader cannot read, as file:line, what and the mend.
        OSError: a file that cannot be opened.
    """
    path = Path(path)
    with _HashedFile(path) as raw:
        if isinstance(reader, ByteReader) and not is_compressed(path):
            with io.BufferedReader(raw, BLOCK) as file:
                documents = sum(not text.isspace() for text, _ in reader.documents(file, path, 0) if text)
        else:
            block = memoryview(bytearray(BLOCK))
            while raw.readinto(block):
                pass
            documents = sum(not text.isspace() for text, _ in reader(path, 0) if text)
    return Inspected(raw.digest.hexdigest(), documents, raw.size)


class _HashedFile(io.FileIO):
    """A file that keeps the digest of what was read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.digest = blake2b(digest_size=16)
        self.size = 0

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        self.size += count
        return count
