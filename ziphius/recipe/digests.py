"""What input files hold, remembered for as long as size and time of change stay. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from ziphius.ledger.folder import read_json, write_json
from ziphius.text.check import Inspected, inspect
from ziphius.text.files import Reader
from ziphius.text.paths import suffix_of

_CACHE = "inputs.json"


class Digests:
    """The files that a run reads, by content; kept in the run's folder, so that 10 GB are not read at every start."""

    def __init__(self, run: Path) -> None:
        self._path = run / _CACHE
        self._known: dict[str, dict[str, Any]] = read_json(self._path) or {}

    def inspect(self, path: Path, reader: Reader) -> Inspected:
        """`text.check.inspect`, once for each state of a file and each way to read it."""
        about = self._about(path)
        way = repr(reader)
        if way not in about["documents"]:
            found = inspect(path, reader)
            about |= {"digest": found.digest, "documents": about["documents"] | {way: found.documents}}
            write_json(self._path, self._known)
        return Inspected(about["digest"], about["documents"][way], about["stamp"][0])

    def of(self, paths: Sequence[str]) -> dict[str, str]:
        """A short name of the content of each file and of the kind of file that its suffix makes it."""
        return {path: self._digest(Path(path)) + suffix_of(path) for path in paths}

    def _digest(self, path: Path) -> str:
        about = self._about(path)
        if about["digest"] is None:
            with path.open("rb") as file:
                about["digest"] = file_digest(file, partial(blake2b, digest_size=16)).hexdigest()
            write_json(self._path, self._known)
        return about["digest"]

    def _about(self, path: Path) -> dict[str, Any]:
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        about = self._known.get(str(path))
        if about is None or about["stamp"] != stamp:
            about = self._known[str(path)] = {"stamp": stamp, "digest": None, "documents": {}}
        return about
