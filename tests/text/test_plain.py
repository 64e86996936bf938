"""No text of a person gives a control token, whatever the tokenizer makes of texts."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers

from ziphius.text.special import breaker

MARK = "\ufdd0"
CONTROL = ["<think>", "x<think>", "<|im_end|>", "</s>", "<|<"]
LETTERS = "<>|/_xthinkims＜＞ＫTHINK "  # some become others under NFKC


def vocabulary(normalizer, normalized):
    inner = tokenizers.Tokenizer(models.BPE({letter: place for place, letter in enumerate("<>|/_xthinkmsed ")}, []))
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.add_tokens([AddedToken(text, normalized=normalized) for text in CONTROL])
    return inner


@pytest.mark.parametrize("normalizer", [None, normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend("_")])
@pytest.mark.parametrize("normalized", [True, False])
def test_no_text_forges_a_token(normalizer, normalized):
    inner = vocabulary(normalizer, normalized)
    control, breaks = set(inner.get_added_tokens_decoder()), breaker(inner)

    def encode(text):
        return inner.encode(text, add_special_tokens=False).ids

    @given(st.lists(st.sampled_from([*CONTROL, "＜think＞", "<THINK>"]) | st.text(LETTERS, max_size=6), max_size=4))
    def check(parts):
        text = "".join(parts)
        broken = breaks.broken(text, MARK)
        assert broken.replace(MARK, "") == text
        assert control.isdisjoint(breaks.encode(broken, MARK, encode, encode))

    check()
