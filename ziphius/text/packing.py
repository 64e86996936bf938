"""Rows of a batch: documents cut into rows for pretraining, samples packed or padded into rows for SFT and RL."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np

from ziphius.text.corpora import Mixture
from ziphius.text.fim import FillInTheMiddle
from ziphius.text.tokenizer import Tokenizer

Sample = tuple[list[int], list[float]]  # token ids, and the weight of each as a prediction target


@dataclass(frozen=True)
class Row:
    """One row of a batch; every array has length T."""

    tokens: np.ndarray  # int64
    weights: (
        np.ndarray
    )  # float32, weight of token t as a prediction target; 0: not trained on (first token, prompt, padding)
    segments: np.ndarray  # int32, number of the sample inside the row (0, 1, 2 ...), -1 on padding
    positions: np.ndarray  # int64, RoPE positions


_WINDOW = 64  # pieces that wait to be packed
_DRAW = 32  # documents tokenised at a time,
_DRAW_LENGTH = 1 << 16  # or fewer, once they have so many characters together


class PackedStream:
    """An endless stream of pretraining rows, each made of whole documents (bos + document + eos) that fit together.

    Source: DeepSeek-V3 report, section 4.1: documents are packed so that few are cut (Ding et al. 2024, arXiv
    2404.10830), without a mask between samples. A row begins with the document that has waited longest; then the
    longest waiting one that fits is added until none fits, and the rest is padding. Only a document longer than a row
    is cut. A row is one segment with positions 0..T-1; its first token and the padding have weight 0, every other
    token weight 1. A share `fim_rate` of the documents is rearranged for fill-in-the-middle.
    """

    def __init__(
        self, mixture: Mixture, tokenizer: Tokenizer, seq_len: int, fim_rate: float = 0.0, seed: int = 0
    ) -> None:
        """ValueError: `seq_len` below 2, or a `fim_rate` outside [0, 1] or without FIM tokens in the tokenizer."""
        if seq_len < 2:
            raise ValueError(f"seq_len {seq_len} leaves nothing to predict: give 2 or more")
        if fim_rate:
            _ = tokenizer.fim_begin_id, tokenizer.fim_hole_id, tokenizer.fim_end_id  # refuse now, not at the first draw
        self.mixture = mixture
        self.tokenizer = tokenizer
        self.seq_len = seq_len
        self.fim = FillInTheMiddle(fim_rate, seed)
        self.documents: Counter[str] = Counter()  # by source, as far as tokenised
        self.tokens: Counter[str] = Counter()  # by source, bos and eos included
        self._waiting: list[list[int]] = []  # tokenised pieces not yet in a row, oldest first

    @property
    def epochs(self) -> dict[str, float]:
        """How many times each source has been read, with the fraction of the pass at hand."""
        return {name: source.passes for name, source in self.mixture.sources.items()}

    def next_rows(self, n: int) -> list[Row]:
        """The next `n` rows; how calls are grouped does not change the rows."""
        return [self._next_row() for _ in range(n)]

    def _next_row(self) -> Row:
        while len(self._waiting) < _WINDOW:
            self._draw()
        tokens = self._waiting.pop(0)
        while fitting := [piece for piece in self._waiting if len(piece) <= self.seq_len - len(tokens)]:
            best = max(fitting, key=len)  # of equals the one that has waited longest
            tokens = tokens + best
            self._waiting.remove(best)
        return lay_row([(tokens, np.ones(len(tokens), np.float32))], self.seq_len, self.tokenizer.pad_id)

    def state_dict(self) -> dict[str, Any]:
        """All that the next rows depend on, ready for JSON."""
        return {
            "mixture": self.mixture.state_dict(),
            "fim": self.fim.state_dict(),
            "waiting": [list(piece) for piece in self._waiting],
            "documents": dict(self.documents),
            "tokens": dict(self.tokens),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state` was taken."""
        self.mixture.load_state_dict(state["mixture"])
        self.fim.load_state_dict(state["fim"])
        self._waiting = [list(piece) for piece in state["waiting"]]
        self.documents = Counter(state["documents"])
        self.tokens = Counter(state["tokens"])

    def _draw(self) -> None:
        """Tokenises a handful of documents, cut in pieces where they are longer than a row."""
        names: list[str] = []
        texts: list[str] = []
        while len(texts) < _DRAW and sum(map(len, texts)) < _DRAW_LENGTH:
            name, text = self.mixture.next_document()
            names.append(name)
            texts.append(self.fim(text))
        encoded = self.tokenizer.encode_batch(texts)
        for name, ids in zip(names, encoded, strict=True):
            tokens = [*self.tokenizer.begin, *ids, self.tokenizer.eos_id]
            self._waiting += [tokens[start : start + self.seq_len] for start in range(0, len(tokens), self.seq_len)]
            self.documents[name] += 1
            self.tokens[name] += len(tokens)


def plan_packing(lengths: Sequence[int], seq_len: int) -> list[list[int]]:
    """Which samples share a row: best-fit decreasing.

    From the longest to the shortest, each sample goes into the fullest row that still holds it, or opens a new one.
    That is within 11/9 of the fewest possible rows (as first-fit decreasing is) and costs one bisection a sample.
    Inside a row, and among rows by their first sample, the given order is kept. Deterministic.

    Returns:
        For each row the indices of its samples; every index once.

    Raises:
        ValueError: an empty sample, or one longer than `seq_len`.
    """
    for index, length in enumerate(lengths):
        if length > seq_len:
            raise ValueError(
                f"sample {index} has {length} tokens but a row holds {seq_len}: shorten it or raise seq_len"
            )
        if length == 0:
            raise ValueError(f"sample {index} is empty: leave it out")
    rows: list[list[int]] = []
    free: dict[int, list[int]] = {}  # tokens still free → the rows with so many, a heap
    rooms: list[int] = []  # the keys of `free`, sorted: as many as a row has tokens at most, so each step is quick
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(rooms, lengths[index])
        if place == len(rooms):
            room, row = seq_len, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = heappop(free[room])
            if not free[room]:
                del free[room], rooms[place]
        rows[row].append(index)
        left = room - lengths[index]
        if left and left not in free:
            free[left] = []
            insort(rooms, left)
        if left:
            heappush(free[left], row)
    return sorted(sorted(row) for row in rows)


def pad_samples(samples: Sequence[Sample], pad_id: int, multiple: int = 1) -> list[Row]:
    """One sample a row, in order, padded at the right to the longest, rounded up to a multiple of `multiple` tokens.

    Raises:
        ValueError: a sample that is empty or has not one weight for each token.
    """
    _check_weights(samples)
    longest = max((len(tokens) for tokens, _ in samples), default=0)
    return [lay_row([sample], -(-longest // multiple) * multiple, pad_id) for sample in samples]


def _check_weights(samples: Sequence[Sample]) -> None:
    for index, (tokens, weights) in enumerate(samples):
        if len(tokens) != len(weights):
            raise ValueError(
                f"sample {index} has {len(tokens)} tokens but {len(weights)} weights: give one for each token"
            )
        if not tokens:
            raise ValueError(f"sample {index} is empty: leave it out")


def lay_row(samples: Sequence[tuple[Any, Any]], length: int, pad_id: int) -> Row:
    """Samples side by side in a row of `length` tokens, which must hold them, padded at the right.

    Segments number the samples of a row, and positions start again at 0 with each, so that attention can be masked per
    sample. A sample's first token has weight 0 whatever was given.
    """
    row = Row(
        tokens=np.full(length, pad_id, np.int64),
        weights=np.zeros(length, np.float32),
        segments=np.full(length, -1, np.int32),
        positions=np.zeros(length, np.int64),
    )
    start = 0
    for segment, (tokens, weights) in enumerate(samples):
        end = start + len(tokens)
        row.tokens[start:end] = tokens
        row.weights[start + 1 : end] = weights[1:]
        row.segments[start:end] = segment
        row.positions[start:end] = np.arange(len(tokens))
        start = end
    return row
