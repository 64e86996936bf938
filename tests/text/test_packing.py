import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.text.corpora import GeneratedSource, Mixture
from ziphius.text.packing import PackedStream, pad_samples, plan_packing
from ziphius.train.batch import stack_rows

from ..packed import pack_samples

PAD = 2
samples_strategy = st.lists(
    st.lists(st.tuples(st.integers(3, 400), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=12).map(
        lambda pairs: ([token for token, _ in pairs], [weight for _, weight in pairs])
    ),
    max_size=30,
)


def make(rng: random.Random) -> str:
    return " ".join(str(rng.randint(0, 9999)) for _ in range(rng.randint(0, 20)))


def make_stream(tokenizer, seq_len=32, fim_rate=0.0, seed=0, make=make):
    sources = {"a": GeneratedSource(make, seed), "b": GeneratedSource(make, seed + 1)}
    return PackedStream(Mixture(sources, {"a": 1, "b": 2}, seed), tokenizer, seq_len, fim_rate, seed)


def long_text(rng: random.Random) -> str:
    return " ".join(str(rng.randint(0, 9999)) for _ in range(rng.randint(0, 90)))


def real_tokens(row):
    """A row without its padding, after checking where the padding is and what everything weighs."""
    used = row.segments >= 0
    length = int(used.sum())
    assert used.tolist() == [True] * length + [False] * (len(used) - length)
    assert (row.tokens[length:] == PAD).all()
    assert row.weights.tolist() == [0.0] + [1.0] * (length - 1) + [0.0] * (len(used) - length)
    assert row.segments.tolist() == [0] * length + [-1] * (len(used) - length)
    assert row.positions.tolist() == list(range(length)) + [0] * (len(used) - length)
    return row.tokens[:length].tolist()


def drawn_documents(stream, tokenizer, **settings):
    """Everything a fresh copy of the stream's mixture gave until now, as token ids."""
    mixture = make_stream(tokenizer, **settings).mixture
    texts = [mixture.next_document()[1] for _ in range(stream.documents.total())]
    return [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id] for text in texts]


def split_documents(tokens, bos):
    """A row's documents: each begins with bos."""
    starts = [*(i for i, token in enumerate(tokens) if token == bos), len(tokens)]
    assert starts[0] == 0
    return [tokens[a:b] for a, b in itertools.pairwise(starts)]


@given(seed=st.integers(0, 99), rows=st.integers(1, 30))
@settings(max_examples=15)
def test_every_document_stands_whole_in_one_row(tokenizer, seed, rows):
    stream = make_stream(tokenizer, seq_len=128, seed=seed)
    packed = [real_tokens(row) for row in stream.next_rows(rows)]
    found = [tuple(d) for row in packed for d in split_documents(row, tokenizer.bos_id)]
    waiting = [tuple(piece) for piece in stream.state_dict()["waiting"]]
    assert Counter(found + waiting) == Counter(map(tuple, drawn_documents(stream, tokenizer, seed=seed)))
    assert stream.epochs == {"a": 0, "b": 0}


def test_only_documents_longer_than_a_row_are_cut_and_no_token_is_lost(tokenizer):
    stream = make_stream(tokenizer, seq_len=64, make=long_text)
    packed = [real_tokens(row) for row in stream.next_rows(3) + stream.next_rows(0) + stream.next_rows(80)]
    pieces = [*packed, *stream.state_dict()["waiting"]]
    documents = drawn_documents(stream, tokenizer, make=long_text)
    assert Counter(t for piece in pieces for t in piece) == Counter(t for d in documents for t in d)
    assert stream.tokens.total() == sum(map(len, documents))
    written = {tuple(piece) for piece in pieces}
    for document in documents:
        if len(document) > 64:
            assert tuple(document[:64]) in written  # a full piece is a row by itself
    text = [" ".join(map(str, piece)) + " " for piece in pieces]
    for document in documents:
        if len(document) <= 64:
            assert any(" ".join(map(str, document)) + " " in row for row in text)


def test_rows_begin_with_the_oldest_and_leave_no_room_for_a_waiting_document(tokenizer):
    stream = make_stream(tokenizer, seq_len=48)
    stream.next_rows(1)
    fill = []
    for _ in range(60):
        before = stream.state_dict()["waiting"]
        tokens = real_tokens(stream.next_rows(1)[0])
        assert tokens[: len(before[0])] == before[0]
        after = stream.state_dict()["waiting"]
        assert all(len(piece) > 48 - len(tokens) for piece in after)
        fill.append(len(tokens) / 48)
    assert np.mean(fill) > 0.95


def test_padded_rows_reach_the_loop_as_invalid_tokens(tokenizer):
    rows = make_stream(tokenizer, seq_len=48).next_rows(40)
    batch = stack_rows(rows, masked=False)
    assert batch.segments is None
    assert batch.positions is None
    assert batch.valid.tolist() == [(row.segments >= 0).tolist() for row in rows]
    assert batch.token_count == sum(len(real_tokens(row)) for row in rows) < 40 * 48
    assert batch.norm == batch.token_count - 40
    full = [row for row in rows if (row.segments >= 0).all()]
    assert stack_rows(full, masked=False).valid is None


@settings(max_examples=25)
@given(before=st.integers(0, 5), first=st.integers(1, 4), fim_rate=st.sampled_from([0.0, 0.5]))
def test_stream_resumes_exactly(tokenizer, before, first, fim_rate):
    stream = make_stream(tokenizer, fim_rate=fim_rate)
    stream.next_rows(before)
    state = json.loads(json.dumps(stream.state_dict()))
    expected = stream.next_rows(6)
    other = make_stream(tokenizer, fim_rate=fim_rate, seed=9)
    other.load_state_dict(state)
    actual = other.next_rows(first) + other.next_rows(6 - first)  # how calls are grouped does not matter
    for one, two in zip(actual, expected, strict=True):
        assert np.array_equal(one.tokens, two.tokens)
    assert [other.next_rows(1)[0].tokens.tolist() for _ in range(9)] == [
        row.tokens.tolist() for row in stream.next_rows(9)
    ]


def test_stream_applies_fim_to_its_share(tokenizer):
    stream = make_stream(tokenizer, fim_rate=0.5)
    flat = np.concatenate([row.tokens for row in stream.next_rows(200)])
    share = (flat == tokenizer.fim_begin_id).sum() / (flat == tokenizer.bos_id).sum()
    assert 0.35 < share < 0.65


def test_stream_counts_documents_and_tokens_by_source(tokenizer):
    stream = make_stream(tokenizer, make=lambda rng: "")
    rows = stream.next_rows(3)
    assert stream.tokens == {name: 2 * count for name, count in stream.documents.items()}
    assert stream.tokens.total() == sum(len(real_tokens(row)) for row in rows) + 2 * len(stream.state_dict()["waiting"])


def test_stream_refuses_bad_settings(tokenizer):
    with pytest.raises(ValueError, match="seq_len 1"):
        make_stream(tokenizer, seq_len=1)
    with pytest.raises(ValueError, match=r"fim_rate 1\.5"):
        make_stream(tokenizer, fim_rate=1.5)


def unpack(rows):
    """The samples of some rows, checking everything that must hold inside a row."""
    for row in rows:
        used = row.segments >= 0
        assert not (used[1:] & ~used[:-1]).any()  # padding only at the right
        assert (row.tokens[~used] == PAD).all()
        assert (row.weights[~used] == 0).all()
        assert (row.positions[~used] == 0).all()
        assert sorted(set(row.segments[used].tolist())) == list(range(row.segments.max() + 1))
        assert (np.diff(row.segments[used]) >= 0).all()
        for segment in range(row.segments.max() + 1):
            inside = row.segments == segment
            assert row.positions[inside].tolist() == list(range(inside.sum()))
            assert row.weights[inside][0] == 0
            yield row.tokens[inside].tolist(), row.weights[inside].tolist()


def without_first_weight(samples):
    return [(tokens, [0.0, *weights[1:]]) for tokens, weights in samples]


@given(samples=samples_strategy, seq_len=st.integers(12, 40))
def test_packing_keeps_every_sample_once(samples, seq_len):
    rows = pack_samples(samples, seq_len, PAD)
    assert all(len(row.tokens) == seq_len for row in rows)
    assert sorted(unpack(rows)) == sorted(without_first_weight(samples))


@given(lengths=st.lists(st.integers(1, 20), max_size=40))
def test_plan_is_ordered_and_tight(lengths):
    plan = plan_packing(lengths, 20)
    assert sorted(index for row in plan for index in row) == list(range(len(lengths)))
    assert plan == sorted(sorted(row) for row in plan)
    loads = sorted(sum(lengths[index] for index in row) for row in plan)
    assert all(load <= 20 for load in loads)
    assert len(loads) < 2 or loads[0] + loads[1] > 20  # no two rows could have been one


def test_plan_takes_the_fullest_row_that_fits():
    assert plan_packing([5, 6, 4, 3, 2], 10) == [[0, 3, 4], [1, 2]]


@given(samples=samples_strategy, multiple=st.sampled_from([1, 8]))
def test_padding_keeps_order_and_rounds_up(samples, multiple):
    rows = pad_samples(samples, PAD, multiple)
    assert list(unpack(rows)) == without_first_weight(samples)
    longest = max((len(tokens) for tokens, _ in samples), default=0)
    for row in rows:
        assert len(row.tokens) % multiple == 0
        assert longest <= len(row.tokens) < longest + multiple


def test_bad_samples_are_named():
    good = ([5, 6], [0.0, 1.0])
    with pytest.raises(ValueError, match="sample 1 has 5 tokens but a row holds 4"):
        pack_samples([good, ([5] * 5, [1.0] * 5)], 4, PAD)
    with pytest.raises(ValueError, match="sample 1 has 2 tokens but 1 weights"):
        pad_samples([good, ([5, 6], [1.0])], PAD)
    for pack in (lambda samples: pack_samples(samples, 4, PAD), lambda samples: pad_samples(samples, PAD)):
        with pytest.raises(ValueError, match="sample 1 is empty"):
            pack([good, ([], [])])
