"""A tokenizer comes back out of a GGUF file's keys as it went in."""

import json

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ziphius.text import tokens
from ziphius.text.from_gguf import GGUFTokenizerError, tokenizer_files
from ziphius.text.gguf import vocabulary_keys

TEXTS = (
    "Seven whales dive 12345 metres deep, naïvely.\n\n  Then?",
    f"{tokens.BOS}{tokens.USER}hi{tokens.ASSISTANT}{tokens.THINK}\nhm{tokens.END_THINK}\n\nyes{tokens.EOS}",
    "鲸鱼潜入深海 🐋\t\t  x",
)


@pytest.fixture
def keys(folder, tokenizer):
    return vocabulary_keys(folder, tokenizer.vocab_size + 3)


def of(keys):
    return Tokenizer.from_str(tokenizer_files(keys)["tokenizer.json"])


def test_the_folders_own_tokenizer(keys, tokenizer, tmp_path):
    for name, text in tokenizer_files(keys).items():
        (tmp_path / name).write_text(text)
    back = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert back(text).input_ids == tokenizer.encode(text)
        assert back.decode(tokenizer.encode(text)) == text
    assert (back.bos_token, back.eos_token, back.pad_token) == (tokens.BOS, tokens.EOS, tokens.PAD)
    assert back.chat_template == tokenizer.chat_template
    assert len(back) == tokenizer.vocab_size  # rows of the network that no token has are left out


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a 12's", ["a", "Ġ", "1", "2", "'", "s"]),
        ("smollm", "a 12's", ["a", "Ġ", "1", "2", "'", "s"]),
        ("smollm", "a  1", ["a", "ĠĠ", "1"]),
        ("gpt-2", "a  1", ["a", "Ġ", "Ġ", "1"]),
        ("llama-bpe", "a  1", ["a", "Ġ", "Ġ", "1"]),
        ("qwen2", "e\u0301", ["Ã", "©"]),
        ("deepseek-r1-qwen", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_each_way_to_cut(pre, text, pieces):
    assert of(byte_level(pre)).encode(text).tokens == pieces


def test_a_whole_word_is_one_token_where_merges_cannot_make_it():
    keys = byte_level("llama-bpe") | {"tokenizer.ggml.tokens": [*_alphabet(), "ĠĠ", "whale"]}
    assert of(keys).encode("whale").tokens == ["whale"]
    assert of(keys | {"tokenizer.ggml.pre": "qwen2"}).encode("whale").tokens == list("whale")


def test_a_token_is_put_before_a_text_where_the_file_says_so():
    keys = byte_level("smollm") | {"tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    assert of(keys).encode("b").tokens == [_alphabet()[0], "b"]
    assert of(keys).encode("b", add_special_tokens=False).tokens == ["b"]


def _alphabet():
    return sorted(ByteLevel.alphabet())


def byte_level(pre):
    """A vocabulary of the bytes and of two spaces."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*_alphabet(), "ĠĠ"],
        "tokenizer.ggml.merges": ["Ġ Ġ"],
    }


# --- SentencePiece's -------------------------------------------------------------------------------------------------

PIECES = ["▁", "w", "h", "a", "l", "e", "s", "wh", "al", "▁wh", "ale", "whale", "▁whale", "▁whales", "▁a"]


@pytest.fixture
def sentencepiece():
    """Unknown, beginning, end, the bytes, then pieces, the earlier the better."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(PIECES))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_pieces_join_by_their_scores_and_the_rest_is_bytes(sentencepiece):
    inner = of(sentencepiece)
    assert inner.encode("whales").tokens == ["<s>", "▁whales"]
    assert inner.encode("a whale é").tokens == ["<s>", "▁a", "▁whale", "▁", "<0xC3>", "<0xA9>"]
    assert inner.decode(inner.encode("a whale é").ids) == "a whale é"
    bare = of(sentencepiece | {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False})
    assert bare.encode("whale</s>").tokens == ["whale", "</s>"]


def test_pieces_join_as_in_transformers(sentencepiece):
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    stated = {name.removeprefix("tokenizer.ggml."): value for name, value in sentencepiece.items()}
    stated |= {"tokenizer_type": stated.pop("model")}
    theirs = PreTrainedTokenizerFast(tokenizer_object=mapping.convert_gguf_tokenizer("llama", stated)[0])
    ours = of(sentencepiece)
    for text in ("whales", "a whale", "ales  whal", "hale é whaleswhales", "sea"):
        expected = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, add_special_tokens=False).ids == expected


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "rwkv"}, "of the kind 'rwkv'"),
        ({"pre": "tekken"}, "'tekken'; only deepseek-r1-qwen"),
        ({"pre": None}, "None; only"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": [1, 2]}, "no list of texts"),
        ({"tokens": ["a", "a"]}, "a token twice"),
        ({"tokens": ["a" * 2000]}, "more than 1024"),
        ({"token_type": [1]}, "token_type"),
        ({"merges": None}, "merges is missing"),
    ],
    ids=str,
)
def test_keys_that_make_no_tokenizer(change, said):
    keys = byte_level("smollm") | {f"tokenizer.ggml.{name}": value for name, value in change.items()}
    with pytest.raises(GGUFTokenizerError, match=said):
        tokenizer_files(keys)


def test_a_file_without_tokenizer():
    assert tokenizer_files({"tokenizer.ggml.model": "none"}) == {}


def test_roles_that_are_no_tokens_are_left_out(keys):
    config = json.loads(tokenizer_files(keys | {"tokenizer.ggml.padding_token_id": 10**6})["tokenizer_config.json"])
    assert "pad_token" not in config
