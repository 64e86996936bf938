import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models

from ziphius.text import tokens
from ziphius.text.tokenizer import Tokenizer

ASSORTED = [
    "",
    " ",
    "\n",
    "a\r\n\r\n b\t\tc   ",
    "x1234567890y ٣٤٥ Ⅷ",
    "if (a[0]==b->c) {\n\treturn 'x';\n}\n",
    "中文 と かな カナ 한국어 mixed中文and",
    "🐋👩‍👩‍👧 e\u0301 \u200b\ufeff \x00",
    f"{tokens.USER}hi{tokens.ASSISTANT}{tokens.THINK}\nhm{tokens.END_THINK}\n\nyes{tokens.EOS}",
]


@given(text=st.text())
def test_round_trip_of_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(texts=st.lists(st.text(), max_size=5))
def test_batch_equals_one_by_one(tokenizer, texts):
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_ids_are_where_deepseek_has_them(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2)
    size = tokenizer.vocab_size
    assert size == 420
    markup = [tokenizer.inner.token_to_id(token) for token in tokens.MARKUP]
    assert markup == list(range(size - len(tokens.MARKUP), size))
    named = [tokenizer.think_id, tokenizer.end_think_id]
    named += [tokenizer.fim_hole_id, tokenizer.fim_begin_id, tokenizer.fim_end_id]
    named += [tokenizer.user_id, tokenizer.assistant_id]
    assert named == markup[:7]


def test_each_special_token_is_one_id_and_no_bos_is_added(tokenizer):
    for token in tokens.CONTROL + tokens.MARKUP:
        assert tokenizer.encode(token) == [tokenizer.inner.token_to_id(token)]
    assert tokenizer.bos_id not in tokenizer.encode("plain text")


def test_skipping_special_tokens_keeps_the_thinking_tags(tokenizer):
    ids = tokenizer.encode(f"{tokens.BOS}{tokens.THINK}a{tokens.END_THINK}b{tokens.EOS}{tokens.PAD}")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think>b"
    assert tokenizer.decode(ids) == f"{tokens.BOS}<think>a</think>b{tokens.EOS}{tokens.PAD}"


def test_text_is_cut_as_v3_cuts_it(tokenizer):
    cut = tokenizer.inner.pre_tokenizer.pre_tokenize_str
    text = "deep 12345 dives 鲸鱼ab.\n\nOk (x)"
    pieces = [text[start:end] for _, (start, end) in cut(text)]
    assert pieces == ["deep", " ", "123", "45", " dives", " ", "鲸鱼", "ab", ".\n\n", "Ok", " (", "x", ")"]


def test_save_and_load(tokenizer, folder, tmp_path):
    loaded = Tokenizer.load(folder)
    loaded.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert [loaded.encode(text) for text in ASSORTED] == [tokenizer.encode(text) for text in ASSORTED]


def test_a_folder_keeps_its_own_template(folder, tmp_path):
    tokenizer = Tokenizer.load(folder)
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).render([{"role": "user", "content": "hi"}]) == tokens.BOS + "hi"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert Tokenizer.load(tmp_path).render([{"role": "user", "content": "hi"}]) == "from the file"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_file_is_named(folder, tmp_path, name):
    Tokenizer.load(folder).save(tmp_path)
    (tmp_path / name).write_text("{]")
    with pytest.raises(ValueError, match=name) as broken:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(broken.value)
    assert str(tmp_path) in str(broken.value)


def test_tokenizer_json_must_be_there_and_its_config_need_not(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.bos_id, loaded.eos_ids, loaded.pad_id) == (0, [1], 2)


def test_a_tokenizer_that_ends_nothing_is_refused(tokenizer, folder, tmp_path):
    foreign = type(tokenizer.inner)(models.BPE())
    foreign.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be used: no end token is known"):
        Tokenizer.load(tmp_path)


def test_a_token_that_v3_lacks_is_named_when_asked_for(folder, tmp_path):
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace('"<think>"', '"<placeholder>"'), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id == 1
    with pytest.raises(ValueError, match="no token <think>"):
        _ = tokenizer.think_id


@pytest.mark.parametrize("model_type", [None, "deepseek_v3"])
def test_auto_tokenizer_agrees(tokenizer, texts, tmp_path, model_type):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (0, 1, 2)
    assert len(auto) == tokenizer.vocab_size
    for text in ASSORTED + texts:
        ids = tokenizer.encode(text)
        assert auto(text)["input_ids"] == ids
        assert auto.decode(ids) == text
        assert auto.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)
    messages = [
        {"role": "system", "content": "Be brief.  "},
        {"role": "user", "content": " hi\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nhello"},
        {"role": "user", "content": "12+34?"},
    ]
    for options in [{}, {"thinking": True}, {"thinking": False}]:
        for prompt in (True, False):
            ours = tokenizer.render(messages, add_generation_prompt=prompt, **options)
            theirs = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt, **options)
            assert theirs == ours
            theirs = auto.apply_chat_template(messages, add_generation_prompt=prompt, **options)
            assert theirs["input_ids"] == tokenizer.encode(ours)
