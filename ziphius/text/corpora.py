"""Where documents come from: endless sources with an exact position, and their mixture by weight."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ziphius.text.files import JsonLines, Parquet, Reader, TextFiles, TextLines, TextParagraphs


class Source(Protocol):
    """An endless run of documents whose position can be saved (as JSON) and restored exactly."""

    @property
    def epochs(self) -> int:
        """How many times the source has been read to its end; 0 for ever where there is no end."""

    def next_document(self) -> str: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FileSource:
    """The documents of some files in the order given, over and over. Blank documents are passed over.

    The position is a file and a place in it (a byte offset or a row), so resuming costs one seek.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], reader: Reader) -> None:
        """
        Args:
            paths: the files, read in this order.
            reader: how a file becomes documents: `TextLines`, `TextParagraphs`, `TextFiles`, `JsonLines` or `Parquet`.

        Raises:
            FileNotFoundError: a file that is not there.
            ValueError: no files.
        """
        self.paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        if not self.paths:
            raise ValueError("a source needs at least one file")
        for path in self.paths:
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing: correct the source's path")
        self.reader = reader
        self.epochs = 0
        self._file, self._place = 0, 0
        self._reading: Iterator[tuple[str, int]] | None = None

    def next_document(self) -> str:
        """The next document.

        Raises:
            ValueError: a malformed file (the reader names the spot), or no document in any of the files.
        """
        ends = 0
        while ends < 2:  # a whole pass without a document
            if self._reading is None:
                self._reading = self.reader(self.paths[self._file], self._place)
            for document, place in self._reading:
                self._place = place
                if document and not document.isspace():
                    return document
            self._reading, self._place = None, 0
            self._file = (self._file + 1) % len(self.paths)
            if self._file == 0:
                self.epochs += 1
                ends += 1
        raise ValueError(f"no documents in {self.paths[0]}{' and the files beside it' * (len(self.paths) > 1)}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "file": self._file,
            "name": self.paths[self._file].name,
            "place": self._place,
            "epochs": self.epochs,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError: the files are not those of the state."""
        names = [path.name for path in self.paths]
        if state["file"] >= len(names) or names[state["file"]] != state["name"]:
            raise ValueError(f"cannot resume: file {state['file']} was {state['name']}, the files now are {names}")
        self._file, self._place, self.epochs = state["file"], state["place"], state["epochs"]
        self._reading = None


def open_source(paths: str | Path | Sequence[str | Path], documents: str = "file", field: str = "text") -> FileSource:
    """A source over files of one kind, told by their suffix.

    Args:
        paths: `.txt`, `.jsonl` or `.parquet` files.
        documents: what a document is in a `.txt` file: the "file", a "line" or a "paragraph".
        field: where the text is: the key in `.jsonl`, the column in `.parquet`.

    Raises:
        ValueError: no files, another suffix, a mix of suffixes, or another value of `documents`.
        FileNotFoundError: a file that is not there.
    """
    texts: dict[str, Reader] = {"file": TextFiles(), "line": TextLines(), "paragraph": TextParagraphs()}
    if documents not in texts:
        raise ValueError(f"documents = {documents!r} must be one of {sorted(texts)}")
    readers: dict[str, Reader] = {".txt": texts[documents], ".jsonl": JsonLines(field), ".parquet": Parquet(field)}
    paths = [paths] if isinstance(paths, str | Path) else paths
    suffixes = {Path(path).suffix for path in paths}
    if len(suffixes) != 1 or not suffixes <= set(readers):
        raise ValueError(f"a source needs files of one kind out of {sorted(readers)}, not {sorted(suffixes)}")
    return FileSource(paths, readers[suffixes.pop()])


class GeneratedSource:
    """Documents from a function: `make(rng)` returns one, and draws whatever it needs from `rng` alone."""

    epochs = 0

    def __init__(self, make: Callable[[random.Random], str], seed: int) -> None:
        self._make = make
        self._rng = random.Random(seed)

    def next_document(self) -> str:
        return self._make(self._rng)

    def state_dict(self) -> dict[str, Any]:
        return {"rng": save_rng(self._rng)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_rng(self._rng, state["rng"])


class Shuffled:
    """A source seen through a buffer of `size` documents, each draw taking one of them at random.

    The buffer's documents are part of the state, so `size` times a document's length is what a state file must hold.
    """

    def __init__(self, source: Source, size: int, seed: int) -> None:
        """ValueError: a size below 1."""
        if size < 1:
            raise ValueError(f"a shuffle buffer of {size} holds no document: give 1 or more")
        self.source = source
        self.size = size
        self._rng = random.Random(seed)
        self._buffer: list[str] = []

    @property
    def epochs(self) -> int:
        return self.source.epochs

    def next_document(self) -> str:
        while len(self._buffer) < self.size:
            self._buffer.append(self.source.next_document())
        index = self._rng.randrange(self.size)
        document, self._buffer[index] = self._buffer[index], self.source.next_document()
        return document

    def state_dict(self) -> dict[str, Any]:
        return {"source": self.source.state_dict(), "rng": save_rng(self._rng), "buffer": list(self._buffer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        load_rng(self._rng, state["rng"])
        self._buffer = list(state["buffer"])


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
        self._names = list(sources)
        self._weights = [weights[name] for name in sources]
        self._rng = random.Random(seed)

    def next_document(self) -> tuple[str, str]:
        """(the source's name, the document)."""
        name = self._rng.choices(self._names, self._weights)[0]
        return name, self.sources[name].next_document()

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": save_rng(self._rng),
            "sources": {name: source.state_dict() for name, source in self.sources.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """ValueError: the sources are not those of the state."""
        if set(state["sources"]) != set(self.sources):
            raise ValueError(f"cannot resume: the sources were {sorted(state['sources'])}, now {sorted(self.sources)}")
        load_rng(self._rng, state["rng"])
        for name, source in self.sources.items():
            source.load_state_dict(state["sources"][name])


def save_rng(rng: random.Random) -> list[Any]:
    """The state of a generator, ready for JSON."""
    version, words, gauss = rng.getstate()
    return [version, list(words), gauss]


def load_rng(rng: random.Random, state: Sequence[Any]) -> None:
    """Sets a generator to a state that `save_rng` returned."""
    version, words, gauss = state
    rng.setstate((version, tuple(words), gauss))
