from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ziphius.text import tokens
from ziphius.text.detokenise import Detokeniser, StopStrings
from ziphius.text.learn import train_tokenizer

TOKENIZER = train_tokenizer(["many whales dive deep, 1 + 2 = 3", "Wale tauchen tief – ça va 鲸鱼"], 320)


def test_every_byte_has_its_token():
    alphabet = [TOKENIZER.token_bytes(token) for token in range(3, 259)]
    assert sorted(alphabet) == [bytes([byte]) for byte in range(256)]
    assert TOKENIZER.token_bytes(TOKENIZER.end_think_id) == b"</think>"
    assert TOKENIZER.token_bytes(TOKENIZER.eos_id) == tokens.EOS.encode()
    assert TOKENIZER.token_bytes(TOKENIZER.vocab_size) == b""


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_texts_come_back_whole_characters_at_a_time(text):
    detokeniser = Detokeniser(TOKENIZER)
    ids = TOKENIZER.encode(text)
    pieces = [detokeniser.push([token]) for token in ids]
    assert "".join(pieces) + detokeniser.finish() == text
    assert all(text.startswith("".join(pieces[: i + 1])) for i in range(len(pieces)))


@given(st.lists(st.integers(0, TOKENIZER.vocab_size), max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_ids_give_what_decoding_at_once_gives(ids):
    detokeniser = Detokeniser(TOKENIZER)
    pieces = [detokeniser.push([token]) for token in ids]
    assert "".join(pieces) + detokeniser.finish() == TOKENIZER.decode(ids)


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 30), max_size=6),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_stop_strings_cut_before_the_first_however_the_text_arrives(text, stops, cuts):
    watch = StopStrings(stops)
    places = sorted({min(cut, len(text)) for cut in [0, *cuts, len(text)]})
    shown = ""
    for start, end in pairwise(places):
        shown += watch.push(text[start:end])
        assert not any(stop in shown for stop in stops)
        if watch.found:
            break
    shown += watch.finish()
    hits = [text.find(stop) for stop in stops if stop in text]
    if hits:
        assert watch.found in stops
        assert shown + watch.found == text[: len(shown) + len(watch.found)]
    else:
        assert (watch.found, shown) == (None, text)


@pytest.mark.parametrize(("text", "shown"), [("12END", "12"), ("12EN", "12EN"), ("ENEND!", "EN")])
def test_a_stop_string_in_single_letters(text, shown):
    watch = StopStrings(["END"])
    assert "".join(map(watch.push, text)) + watch.finish() == shown


def test_nothing_is_held_without_need():
    watch = StopStrings(["END"])
    assert watch.push("whale E") == "whale "
    assert watch.push("x") == "Ex"
