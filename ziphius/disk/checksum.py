"""The checksum of a file.

CRC-32: it has to find damage, not malice, and runs at 4 GB/s where a disk takes a tenth of that (BLAKE2: 0.9).
"""

from __future__ import annotations

import zlib
from pathlib import Path

_CHUNK = 1 << 22


def crc32_of(path: Path) -> int:
    """Of all bytes of `path`. Raises OSError."""
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found
