"""Rows of a batch: documents cut into rows for pretraining, samples packed or padded into rows for SFT and RL."""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
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


class PackedStream:
    """An endless stream of pretraining rows: bos + document + eos, one after another, cut every `seq_len` tokens.

    Source: DeepSeek-V3 report, section 4.1: documents are packed without a mask between samples, so a row is one
    segment with positions 0..T-1. No token is lost or repeated at a cut; a row's first token, which nothing in the row
    predicts, has weight 0 and every other token weight 1. A share `fim_rate` of the documents is rearranged for
    fill-in-the-middle.
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
        self._left: list[int] = []  # tokenised but not yet in a row

    @property
    def epochs(self) -> dict[str, int]:
        """How many times each source has been read to its end."""
        return {name: source.epochs for name, source in self.mixture.sources.items()}

    def next_rows(self, n: int) -> list[Row]:
        """The next `n` rows; how calls are grouped does not change the rows."""
        self._fill(n * self.seq_len)
        taken = np.array(self._left[: n * self.seq_len], dtype=np.int64).reshape(n, self.seq_len)
        del self._left[: n * self.seq_len]
        return [_row([(tokens, np.ones(self.seq_len, np.float32))], self.seq_len, pad_id=0) for tokens in taken]

    def state_dict(self) -> dict[str, Any]:
        """All that the next rows depend on, ready for JSON."""
        return {
            "mixture": self.mixture.state_dict(),
            "fim": self.fim.state_dict(),
            "left": list(self._left),
            "documents": dict(self.documents),
            "tokens": dict(self.tokens),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state` was taken."""
        self.mixture.load_state_dict(state["mixture"])
        self.fim.load_state_dict(state["fim"])
        self._left = list(state["left"])
        self.documents = Counter(state["documents"])
        self.tokens = Counter(state["tokens"])

    def _fill(self, needed: int) -> None:
        """Tokenises documents until `needed` tokens wait, in batches of about a character for each missing token."""
        while (missing := needed - len(self._left)) > 0:
            names, texts = [], []
            while missing > 0:
                name, document = self.mixture.next_document()
                names.append(name)
                texts.append(self.fim(document))
                missing -= len(document) + 2
            for name, ids in zip(names, self.tokenizer.encode_batch(texts), strict=True):
                self._left += [self.tokenizer.bos_id, *ids, self.tokenizer.eos_id]
                self.documents[name] += 1
                self.tokens[name] += len(ids) + 2


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
    free: list[tuple[int, int]] = []  # (tokens still free, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(free, (lengths[index], 0))
        if place == len(free):
            room, row = seq_len, len(rows)
            rows.append([])
        else:
            room, row = free.pop(place)
        rows[row].append(index)
        insort(free, (room - lengths[index], row))
    return sorted(sorted(row) for row in rows)


def pack_samples(samples: Sequence[Sample], seq_len: int, pad_id: int) -> list[Row]:
    """Rows of `seq_len` tokens, several samples in each as `plan_packing` says, padded at the right.

    Segments number the samples of a row, and positions start again at 0 with each, so that attention can be masked per
    sample. A sample's first token has weight 0 whatever was given.

    Raises:
        ValueError: a sample that is empty, longer than `seq_len`, or has not one weight for each token.
    """
    _check_weights(samples)
    plan = plan_packing([len(tokens) for tokens, _ in samples], seq_len)
    return [_row([samples[index] for index in row], seq_len, pad_id) for row in plan]


def pad_samples(samples: Sequence[Sample], pad_id: int, multiple: int = 1) -> list[Row]:
    """One sample a row, in order, padded at the right to the longest, rounded up to a multiple of `multiple` tokens.

    Raises:
        ValueError: a sample that is empty or has not one weight for each token.
    """
    _check_weights(samples)
    longest = max((len(tokens) for tokens, _ in samples), default=0)
    return [_row([sample], -(-longest // multiple) * multiple, pad_id) for sample in samples]


def _check_weights(samples: Sequence[Sample]) -> None:
    for index, (tokens, weights) in enumerate(samples):
        if len(tokens) != len(weights):
            raise ValueError(
                f"sample {index} has {len(tokens)} tokens but {len(weights)} weights: give one for each token"
            )
        if not tokens:
            raise ValueError(f"sample {index} is empty: leave it out")


def _row(samples: Sequence[tuple[Any, Any]], length: int, pad_id: int) -> Row:
    """Lays samples side by side in a row of `length` tokens."""
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
