"""The tokenizer in a GGUF file is the tokenizer of the folder."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, models, pre_tokenizers

from ziphius.text import tokens
from ziphius.text.gguf import CONTROL, NORMAL, UNUSED, USER_DEFINED, vocabulary_keys
from ziphius.text.learn import SPLITS


@pytest.fixture
def keys(folder, tokenizer):
    return vocabulary_keys(folder, tokenizer.vocab_size + 3)


def rebuilt(keys) -> tokenizers.Tokenizer:
    """A tokenizer made of nothing but the keys, as llama.cpp has to."""
    spellings, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    vocabulary = {s: token for token, s in enumerate(spellings) if kinds[token] != UNUSED}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    added = [s for s, kind in zip(spellings, kinds, strict=True) if kind in (CONTROL, USER_DEFINED)]
    inner.add_tokens([AddedToken(s, normalized=False) for s in added])
    return inner


@pytest.mark.parametrize(
    "text",
    [
        "Seven whales dive 12345 metres deep, naïvely.\n\n  Then?",
        f"{tokens.BOS}{tokens.USER}hi{tokens.ASSISTANT}{tokens.THINK}\nhm{tokens.END_THINK}\n\nyes{tokens.EOS}",
        "鲸鱼潜入深海 🐋",
    ],
)
def test_the_keys_alone_give_the_same_ids(keys, tokenizer, text):
    assert rebuilt(keys).encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


def test_ids_and_settings(keys, tokenizer):
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "deepseek-v3"
    assert keys["tokenizer.ggml.bos_token_id"] == tokenizer.bos_id
    assert keys["tokenizer.ggml.eos_token_id"] == tokenizer.eos_id
    assert keys["tokenizer.ggml.padding_token_id"] == tokenizer.pad_id
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert keys["tokenizer.chat_template"] == tokenizer.chat_template


def test_kinds_of_tokens(keys, tokenizer):
    kinds = keys["tokenizer.ggml.token_type"]
    thinking = {tokenizer.think_id, tokenizer.end_think_id}
    assert [token for token, kind in enumerate(kinds) if kind == USER_DEFINED] == sorted(thinking)
    assert {token for token, kind in enumerate(kinds) if kind == CONTROL} == set(tokenizer.added_ids) - thinking
    assert kinds[-3:] == [UNUSED] * 3  # the network has more rows than the tokenizer has tokens
    assert keys["tokenizer.ggml.tokens"][-1] == f"[PAD{tokenizer.vocab_size + 2}]"
    assert kinds.count(NORMAL) == tokenizer.vocab_size - len(tokenizer.added_ids)


def test_a_folder_without_tokenizer(tmp_path):
    assert vocabulary_keys(tmp_path, 100) == {}


def test_older_files_spell_merges_in_one_string(folder, tokenizer, tmp_path, keys):
    described = json.loads((folder / "tokenizer.json").read_text())
    described["model"]["merges"] = [" ".join(merge) for merge in described["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    assert vocabulary_keys(tmp_path, tokenizer.vocab_size + 3) == keys


def test_another_way_of_cutting_text_is_refused(folder, tokenizer, tmp_path):
    described = json.loads((folder / "tokenizer.json").read_text())
    described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}"
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    (tmp_path / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    with pytest.raises(ValueError, match="does not cut text in a way that is known here"):
        vocabulary_keys(tmp_path, tokenizer.vocab_size)


def test_more_tokens_than_the_network_has(folder, tokenizer):
    with pytest.raises(ValueError, match=r"tokens in tokenizer\.json"):
        vocabulary_keys(folder, tokenizer.vocab_size - 1)
