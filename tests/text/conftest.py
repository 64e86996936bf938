import pytest
from hypothesis import settings

from ziphius.text.learn import train_tokenizer
from ziphius.text.tokenizer import Tokenizer

settings.register_profile("ziphius", deadline=None)  # a busy machine must not fail a test
settings.load_profile("ziphius")

TEXTS = [
    "Seven whales dive 12345 metres; each wave (and every wind) knows the way down.\n\nThey do not hurry.",
    "def dive(depth):\n    for step in range(depth):\n        yield step + 1  # slowly\n",
    "鲸鱼潜入深海，くじらは深くもぐる。 Ça va? Naïve façade, Привет мир!",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 4, 420)


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path
