import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.text.fim import FillInTheMiddle
from ziphius.text.tokens import FIM_BEGIN, FIM_END, FIM_HOLE


@given(document=st.text(), seed=st.integers(0, 100))
def test_the_parts_are_the_document(document, seed):
    rearranged = FillInTheMiddle(1.0, seed)(document)
    assert rearranged.startswith(FIM_BEGIN)
    prefix, rest = rearranged.removeprefix(FIM_BEGIN).split(FIM_HOLE)
    suffix, middle = rest.split(FIM_END)
    assert prefix + middle + suffix == document


def test_tokens_are_those_of_the_parts_between_the_fim_ids(tokenizer):
    ids = tokenizer.encode(FillInTheMiddle(1.0, 4)("Seven whales dive deep."))
    begin, hole, end = (ids.index(i) for i in (tokenizer.fim_begin_id, tokenizer.fim_hole_id, tokenizer.fim_end_id))
    assert begin == 0 < hole < end
    prefix, suffix, middle = ids[1:hole], ids[hole + 1 : end], ids[end + 1 :]
    assert tokenizer.decode(prefix + middle + suffix) == "Seven whales dive deep."
    assert prefix == tokenizer.encode(tokenizer.decode(prefix))


def test_rate_and_seed():
    fim = FillInTheMiddle(0.1, 0)
    results = [fim("whale") for _ in range(5000)]
    assert 400 < sum(result != "whale" for result in results) < 600
    again = FillInTheMiddle(0.1, 0)
    assert [again("whale") for _ in range(5000)] == results
    assert {FillInTheMiddle(0.0, seed)("whale") for seed in range(50)} == {"whale"}


def test_resume():
    fim = FillInTheMiddle(0.5, 0)
    fim("whale")
    state = json.loads(json.dumps(fim.state_dict()))
    expected = [fim("seven whales") for _ in range(50)]
    other = FillInTheMiddle(0.5, 1)
    other.load_state_dict(state)
    assert [other("seven whales") for _ in range(50)] == expected


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate):
    with pytest.raises(ValueError, match="is not a probability"):
        FillInTheMiddle(rate, 0)
