"""What is learnt from texts, and when that is refused."""

import time

import pytest

from ziphius.text import tokens
from ziphius.text.learn import train_tokenizer
from ziphius.text.spelling import BYTES

SMALLEST = BYTES + len(tokens.CONTROL) + len(tokens.MARKUP)


def test_training_is_deterministic_and_reads_an_iterator_once(tokenizer, texts):
    again = train_tokenizer(iter(texts), 420)
    assert again.inner.to_str(pretty=True) == tokenizer.inner.to_str(pretty=True)


def test_markup_in_the_texts_costs_no_merges():
    plain = train_tokenizer(["deep deep dive"] * 9, 300)
    marked = train_tokenizer([f"{tokens.USER}deep deep dive{tokens.EOS}"] * 9, 300)
    assert marked.inner.get_vocab() == plain.inner.get_vocab()


def test_a_text_without_whitespace_is_learnt_from_in_parts():
    run = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(60_000))
    parted = " ".join(run[start : start + 200] for start in range(0, len(run), 200))
    seconds = []
    for text in (parted, run):
        began = time.process_time()
        tokenizer = train_tokenizer([text, "deep deep dive"], 600)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 4 * seconds[0] + 0.5  # as one word it takes twenty times as long
    assert tokenizer.decode(tokenizer.encode(run)) == run
    assert len(tokenizer.encode(run)) < 2 * len(run)


def test_vocab_size_below_the_minimum_is_refused(texts):
    with pytest.raises(ValueError, match=rf"{SMALLEST - 1} is too small.*need {SMALLEST}"):
        train_tokenizer(texts, SMALLEST - 1)
    assert train_tokenizer(texts, SMALLEST).vocab_size == SMALLEST
