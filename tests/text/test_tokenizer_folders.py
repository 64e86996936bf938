"""Tokenizers in folders of other families: what begins, what ends, which template, and SentencePiece's spelling."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from ziphius.text.detokenise import Detokeniser
from ziphius.text.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level():
    letters = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = tokenizers.Tokenizer(models.BPE(letters, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eom|>"])
    return inner


def write(path, inner, **files):
    (path / "tokenizer.json").write_text(inner.to_str())
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / (name + (".jinja" if name == "chat_template" else ".json"))).write_text(text)
    return path


def test_a_folder_without_bos_and_with_several_ends(tmp_path):
    files = {
        "tokenizer_config": {"bos_token": None, "eos_token": "<|endoftext|>", "chat_template": CHATML, "odd": 1},
        "generation_config": {"eos_token_id": [259, 99_999, True]},
        "config": {"bos_token_id": 0, "eos_token_id": 3},
    }
    found = Tokenizer.load(write(tmp_path, byte_level(), **files))
    end, start = (found.inner.token_to_id(token) for token in ("<|im_end|>", "<|im_start|>"))
    assert (found.begin, found.eos_id, found.eos_ids, found.pad_id) == ([], 256, [256, 259, end], 256)
    assert found.next_turn == [start]
    with pytest.raises(ValueError, match="no bos token"):
        _ = found.bos_id
    with pytest.raises(ValueError, match="no token <｜fim▁hole｜>"):
        _ = found.fim_hole_id
    ((ids, weights),) = found.render_training([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    assert [id for id, weight in zip(ids, weights, strict=True) if weight] == [*found.encode("a"), end]


@pytest.mark.parametrize(
    ("files", "eos"),
    [
        ({"tokenizer_config": {"eos_token": {"content": "<|im_end|>"}}, "config": {"eos_token_id": 256}}, 258),
        ({"special_tokens_map": {"eos_token": "<|eom|>"}, "generation_config": {"eos_token_id": 256}}, 259),
        ({"generation_config": {"eos_token_id": [257, 258]}, "config": {"eos_token_id": 256}}, 257),
        ({"config": {"eos_token_id": 256}}, 256),
    ],
)
def test_the_end_is_the_first_that_is_named(tmp_path, files, eos):
    assert Tokenizer.load(write(tmp_path, byte_level(), **files)).eos_id == eos


def test_a_folder_that_names_no_end_is_refused_and_says_so(tmp_path):
    with pytest.raises(ValueError, match="name it as eos_token in tokenizer_config"):
        Tokenizer.load(write(tmp_path, byte_level(), tokenizer_config={"eos_token": "<|unheard|>"}))


def test_named_templates_and_none(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]
    config = {"eos_token": "<|im_end|>", "chat_template": named}
    found = Tokenizer.load(write(tmp_path, byte_level(), tokenizer_config=config))
    asked = [{"role": "user", "content": "q"}]
    assert found.render(asked) == "plain"
    assert found.render(asked, tools=[{"function": {"name": "f"}}]) == "1 tools"
    found.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text()) == config
    bare = Tokenizer.load(write(tmp_path, byte_level(), tokenizer_config={"eos_token": "<|im_end|>"}))
    assert bare.encode("q")
    with pytest.raises(ValueError, match="has no chat template"):
        bare.prompt_ids("q")


def test_special_tokens_map_is_kept(tmp_path):
    named = {"eos_token": {"content": "<|im_end|>", "lstrip": False}, "additional_special_tokens": ["<|eom|>"]}
    Tokenizer.load(write(tmp_path, byte_level(), special_tokens_map=named)).save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "special_tokens_map.json").read_text()) == named


def sentence_piece(legacy):
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdehilw?",
        "▁w",
        "wh",
        "▁wh",
    ]
    merges = [("▁", "w"), ("w", "h"), ("▁w", "h")]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:  # Llama 2's
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:  # Mistral's
        inner.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    strip = decoders.Strip(" ", 1, 0)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    inner.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return inner


@pytest.mark.parametrize("legacy", [True, False])
def test_sentence_piece(tmp_path, legacy):
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    config["chat_template"] = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    )
    found = Tokenizer.load(write(tmp_path, sentence_piece(legacy), tokenizer_config=config))
    text = "whale 鲸 a\nwhale?"
    ids = found.encode(text)
    assert found.decode(ids) == text
    assert b"".join(map(found.token_bytes, ids)).decode() == " " + text
    assert found.inner.id_to_token(found.encode_more("whale")[0]) == "wh"
    stream = Detokeniser(found)
    assert "".join(stream.push([token]) for token in found.encode_more(text)) + stream.finish() == text
    assert (found.begin, found.eos_ids) == ([1], [2])
    talk = [{"role": "user", "content": "a</s>"}, {"role": "assistant", "content": "whale"}]
    ((ids, weights),) = found.render_training([*talk, *talk])
    assert [ids.count(2), sum(ids[place] == 2 for place, weight in enumerate(weights) if weight)] == [2, 2]
    said = b"".join(found.token_bytes(id) for id, weight in zip(ids, weights, strict=True) if weight)
    assert said.decode() == " whale</s> whale</s>"


def test_a_template_that_says_nothing_of_thinking_opens_it_once_a_model_learns_to(tmp_path):
    files = {"tokenizer_config": {"eos_token": "<|im_end|>"}, "chat_template": CHATML}
    plain = Tokenizer.load(write(tmp_path, byte_level(), **files))
    asked = [{"role": "user", "content": "q"}]
    thinks = plain.made_to_think()
    assert (plain.can_think, thinks.can_think) == (False, True)
    assert thinks.made_to_think() is thinks
    assert thinks.render(asked) == plain.render(asked) + "<think>\n"
    assert thinks.render(asked, thinking=False) == plain.render(asked)
    assert thinks.prompt_ids("q", thinking=True) == plain.prompt_ids("q", thinking=True)
    thinks.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    said = [*asked, {"role": "assistant", "content": "t</think>a"}]
    assert again.render_training(said) == thinks.render_training(said)
    ((ids, weights),) = thinks.render_training(said)
    trained = [id for id, weight in zip(ids, weights, strict=True) if weight]
    assert thinks.decode(ids).count("<think>") == 1
    assert thinks.decode(trained).startswith("t")
