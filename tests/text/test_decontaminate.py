import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ziphius.text.corpora import GeneratedSource
from ziphius.text.decontaminate import Decontaminated, Decontaminator

SHORT = "What is 2+3?"
LONG = " ".join(f"word{number}" for number in range(20)) + "."


@pytest.mark.parametrize(
    ("text", "contaminated"),
    [
        (SHORT, True),
        ("Q:  what IS\n2 + 3 ?  A: 5", True),
        ('He asked: "What is 2+3?"', True),
        ("What is 2*3?", False),
        ("What is 12+3?", False),
        ("What is 2+3+4?", False),
        ("", False),
        (LONG, True),
        ("x " + " ".join(f"WORD{number}" for number in range(3, 16)) + " y", True),
        ("x " + " ".join(f"word{number}" for number in range(3, 15)) + " y", False),
    ],
)
def test_overlap(text, contaminated):
    assert Decontaminator([SHORT, LONG]).is_contaminated(text) is contaminated


def test_chinese_counts_by_characters():
    decontaminator = Decontaminator(["一头鲸鱼每天潜水三次请问它一周一共潜水多少次"])
    assert decontaminator.is_contaminated("题目：鲸鱼每天潜水三次请问它一周一共，答案")
    assert not decontaminator.is_contaminated("题目：鲸鱼每天潜水三次，答案")


def test_rules_and_table_borders_are_not_evidence():
    decontaminator = Decontaminator(["a question about this table\n" + "|---" * 10 + "|\nwith an answer"])
    assert not decontaminator.is_contaminated("another table\n" + "|---" * 10 + "|\n")
    assert Decontaminator(["?!" * 20]).is_contaminated("?!" * 20)  # nothing else to know it by


@given(
    words=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=30),
    before=st.text(alphabet="xyz ", max_size=20),
    n=st.integers(1, 15),
)
def test_a_text_that_contains_the_question_is_always_found(words, before, n):
    question = " ".join(words)
    assert Decontaminator([question], n).is_contaminated(f"{before} {question.upper()}\n{before}")


def contaminated_source(seed=0):
    def make(rng: random.Random) -> str:
        return SHORT if rng.random() < 0.25 else f"What is {rng.randint(10, 99)}+1?"

    return Decontaminated(GeneratedSource(make, seed), Decontaminator([SHORT]), "sums")


def test_a_source_is_filtered_counted_and_resumed():
    source = contaminated_source()
    documents = [source.next_document() for _ in range(100)]
    assert SHORT not in documents
    checked, dropped = source.decontaminator.checked["sums"], source.decontaminator.dropped["sums"]
    assert checked == 100 + dropped
    assert 10 < dropped < 70
    state = json.loads(json.dumps(source.state_dict()))
    expected = [source.next_document() for _ in range(20)]
    other = contaminated_source(seed=1)
    other.load_state_dict(state)
    assert [other.next_document() for _ in range(20)] == expected
    assert other.state_dict() == source.state_dict()
    assert other.epochs == 0


def test_a_source_of_nothing_but_evaluation_is_given_up():
    source = Decontaminated(GeneratedSource(lambda rng: SHORT, 0), Decontaminator([SHORT]), "leak")
    with pytest.raises(ValueError, match="'leak': 10000 documents in a row"):
        source.next_document()


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="no evaluation text"):
        Decontaminator(["", " \n"])
    with pytest.raises(ValueError, match="n 0 is not"):
        Decontaminator([SHORT], n=0)


def test_thousands_of_documents_a_second():
    rng = random.Random(0)
    questions = [" ".join(f"w{rng.randint(0, 500)}" for _ in range(40)) for _ in range(300)]
    documents = [" ".join(f"w{rng.randint(0, 500)}" for _ in range(40)) for _ in range(1000)]
    decontaminator = Decontaminator(questions)
    start = time.process_time()
    assert not any(decontaminator.is_contaminated(document) for document in documents)
    assert time.process_time() - start < 1.0
