import pytest
from hypothesis import settings

from ziphius.text.tokenizer import Tokenizer, train_tokenizer

settings.register_profile("ziphius", deadline=None)  # a busy machine must not fail a test
settings.load_profile("ziphius")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a whale dives deep", "1 + 2 = 3", "many whales dive", "鲸鱼"] * 3, 330)
