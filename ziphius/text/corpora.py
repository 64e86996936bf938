"""Where documents come from: endless sources with an exact position, and their mixture by weight."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from ziphius.text.files import PIECE, Reader, reader_for
from ziphius.text.parts import cut
from ziphius.text.paths import expand
from ziphius.text.sampling import Span, spread


class Source(Protocol):
    """An endless run of documents whose position can be saved (as JSON) and restored exactly."""

    @property
    def epochs(self) -> int:
        """How many times the source has been read to its end; 0 for ever where there is no end."""

    @property
    def passes(self) -> float:
        """`epochs` with the fraction of the one at hand."""

    def next_document(self) -> str: ...

    def unchanged(self, state: dict[str, Any]) -> bool:
        """Whether what had been read when `state` was taken is still the same; ValueError names what is not."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FileSource:
    """The documents of some files (or parts of files), over and over, in another order of the files each time.

    Blank documents are passed over.

    The position is a file and a place in it (a byte offset or a row), so resuming costs one seek. Beside it the state
    holds a digest of what has been read of each file, so that `unchanged` can tell a line mended behind the position
    from one mended before it. A document longer than `PIECE` characters is given in parts.
    """

    def __init__(self, files: Sequence[tuple[Path, Reader]], seed: int | None = None) -> None:
        """
        Args:
            files: each with its reader.
            seed: of the files' order, drawn anew each time; None keeps the order given.

        Raises:
            FileNotFoundError: a file that is not there.
            ValueError: no files.
        """
        if not files:
            raise ValueError("a source needs at least one file")
        for path, _ in files:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: correct the source's path")
        self.files = list(files)
        self.seed = seed
        self.epochs = 0
        self.sizes = [reader.size if isinstance(reader, Span) else path.stat().st_size for path, reader in files]
        self._at = 0  # which of the order is being read
        self._order = self._draw_order()
        self._place = 0
        self._digest = ""  # of the documents up to the place
        self._read: dict[str, list] = {}  # number of a file that was read to its end → [place, digest] there
        self._rest = ""  # of the document at hand
        self._reading: Iterator[tuple[str, int]] | None = None

    @property
    def passes(self) -> float:
        """How many times the files have been read, with the fraction of the pass at hand."""
        file = self._order[self._at]
        path, reader = self.files[file]
        begin = reader.begin if isinstance(reader, Span) else 0
        share = (self._place - begin) / max(1, reader.extent(path) - begin) if self._place else 0.0
        done = sum(self.sizes[before] for before in self._order[: self._at]) + share * self.sizes[file]
        return self.epochs + done / max(1, sum(self.sizes))

    def next_document(self) -> str:
        """The next document.

        Raises:
            ValueError: a malformed file (the reader names the spot), or no document in any of the files.
        """
        while True:
            whole = self._rest or self._next_whole()
            cut = len(whole) if len(whole) <= PIECE else whole.rfind("\n", 0, PIECE) + 1 or PIECE
            document, self._rest = whole[:cut], whole[cut:]
            if not document.isspace():
                return document

    def _next_whole(self) -> str:
        ends = 0
        while ends < 2:  # a whole pass without a document
            path, reader = self.files[self._order[self._at]]
            if self._reading is None:
                self._reading = reader(path, self._place)
            for document, place in self._reading:
                self._place, self._digest = place, _chain(self._digest, document)
                if document and not document.isspace():
                    return document
            self._read[str(self._order[self._at])] = [self._place, self._digest]
            self._reading, self._place, self._digest = None, 0, ""
            self._at += 1
            if self._at == len(self.files):
                self._at = 0
                self.epochs += 1
                self._order = self._draw_order()
                ends += 1
        raise ValueError(f"no documents in {self.files[0][0]}{' and the files beside it' * (len(self.files) > 1)}")

    def _draw_order(self) -> list[int]:
        order = list(range(len(self.files)))
        if self.seed is not None:
            random.Random(f"files/{self.seed}/{self.epochs}").shuffle(order)
        return order

    def unchanged(self, state: dict[str, Any]) -> bool:
        """Reads again what had been read when `state` was taken: True where each document is still the same.

        What follows the position may have been mended, and more may have been added.

        Raises:
            ValueError: other files than the state's, or one that is another now in the part that was read (named).
        """
        self._check_files(state)
        for number, (place, digest) in [*state["read"].items(), (state["file"], (state["place"], state["digest"]))]:
            path, reader = self.files[int(number)]
            if place and _digest_until(path, reader, place) != digest:
                raise ValueError(
                    f"{path} has changed in the part that was trained on; put it back to go on, or begin the stage anew"
                )
        return True

    def state_dict(self) -> dict[str, Any]:
        return {
            "files": len(self.files),
            "file": self._order[self._at],
            "at": self._at,
            "place": self._place,
            "digest": self._digest,
            "read": {number: list(end) for number, end in self._read.items()},
            "rest": self._rest,
            "epochs": self.epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError: the files are not those of the state."""
        self._check_files(state)
        self._at, self._place, self._digest = state["at"], state["place"], state["digest"]
        self._read = {number: list(end) for number, end in state["read"].items()}
        self._rest, self.epochs = state["rest"], state["epochs"]
        self._order = self._draw_order()
        self._reading = None

    def _check_files(self, state: dict[str, Any]) -> None:
        if state["files"] != len(self.files):
            shown = ", ".join(str(path) for path, _ in self.files[:3]) + ", …" * (len(self.files) > 3)
            raise ValueError(
                f"cannot resume: a source had {state['files']} files or parts of files and has {len(self.files)} now "
                f"({shown}); begin the stage anew"
            )


def _chain(digest: str, document: str) -> str:
    """The digest of some documents and one more."""
    return blake2b(digest.encode() + document.encode(), digest_size=16).hexdigest()


def _digest_until(path: Path, reader: Reader, end: int) -> str:
    """The digest of a file's documents up to the place `end`; of none where no document ends there."""
    digest = ""
    for document, place in reader(path, 0):
        digest = _chain(digest, document)
        if place >= end:
            return digest if place == end else ""
    return ""


def open_source(
    paths: str | Path | Sequence[str | Path],
    documents: str = "file",
    field: str = "text",
    seed: int | None = None,
    sample: int | None = None,
) -> FileSource:
    """A source over files, each read as its suffix says.

    Args:
        paths: `.txt`, `.md`, `.jsonl` or `.parquet` files, folders of them, or patterns such as `books/*.txt`.
        documents: what a document is in a text file: the "file", a "line" or a "paragraph".
        field: where the text is: the key in `.jsonl`, the column in `.parquet`.
        seed: of the order of the files, and of the parts of large ones; None keeps that given.
        sample: read parts only, of about so many bytes together, spread evenly over the files.

    Raises:
        ValueError: a path without files, another suffix, or another value of `documents`.
    """
    files = [(Path(path), reader_for(Path(path), documents, field)) for path in expand(paths)]
    if sample is not None:
        return FileSource(spread(files, sample), seed)
    return FileSource(files if seed is None else cut(files), seed)


class GeneratedSource:
    """Documents from a function: `make(rng)` returns one, and draws whatever it needs from `rng` alone."""

    epochs = 0
    passes = 0.0

    def __init__(self, make: Callable[[random.Random], str], seed: int) -> None:
        self._make = make
        self._rng = random.Random(seed)

    def next_document(self) -> str:
        return self._make(self._rng)

    def unchanged(self, state: dict[str, Any]) -> bool:
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"rng": save_rng(self._rng)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_rng(self._rng, state["rng"])


class Mixture:
    """Several sources as one: each document comes from a source drawn with probability proportional to its weight.

    Weights are shares of documents, not of tokens: a source of long documents gives more than its share of text.
    """

    def __init__(self, sources: Mapping[str, Source], weights: Mapping[str, float], seed: int) -> None:
        """ValueError: a weight negative or not finite, weights that sum to 0, names that are not the sources'."""
        if unknown := sorted(set(weights) - set(sources)):
            raise ValueError(f"weights for unknown sources {unknown}: the sources are {sorted(sources)}")
        if missing := sorted(set(sources) - set(weights)):
            raise ValueError(f"no weight for the sources {missing}: give 0 to leave one out")
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"weight {weight} of source {name!r} must be a number of 0 or more")
        if sum(weights.values()) == 0:
            raise ValueError(f"the weights of {sorted(sources)} sum to 0: give at least one source a weight above 0")
        self.sources = dict(sources)
        self._names = sorted(sources)  # whatever the order in which they are written down
        self._weights = [weights[name] for name in self._names]
        self._rng = random.Random(seed)

    def next_document(self) -> tuple[str, str]:
        """(the source's name, the document)."""
        name = self._rng.choices(self._names, self._weights)[0]
        return name, self.sources[name].next_document()

    def unchanged(self, state: dict[str, Any]) -> bool:
        """Whether all that had been read when `state` was taken is still the same; ValueError names a file."""
        self._check_sources(state)
        return all(source.unchanged(state["sources"][name]) for name, source in self.sources.items())

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": save_rng(self._rng),
            "sources": {name: source.state_dict() for name, source in self.sources.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError: the sources are not those of the state."""
        self._check_sources(state)
        load_rng(self._rng, state["rng"])
        for name, source in self.sources.items():
            source.load_state_dict(state["sources"][name])

    def _check_sources(self, state: dict[str, Any]) -> None:
        if set(state["sources"]) != set(self.sources):
            raise ValueError(f"cannot resume: the sources were {sorted(state['sources'])}, now {sorted(self.sources)}")


def save_rng(rng: random.Random) -> list[Any]:
    """The state of a generator, ready for JSON."""
    version, words, gauss = rng.getstate()
    return [version, list(words), gauss]


def load_rng(rng: random.Random, state: Sequence[Any]) -> None:
    """Sets a generator to a state that `save_rng` returned."""
    version, words, gauss = state
    rng.setstate((version, tuple(words), gauss))
