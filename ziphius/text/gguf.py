"""A tokenizer in the words of llama.cpp: the `tokenizer.*` keys of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Set
from hashlib import blake2b
from pathlib import Path

from ziphius.text import tokens
from ziphius.text.special import control_spellings
from ziphius.text.tokenizer import SPLITS, Tokenizer

# What llama.cpp does with a token: from the merges; never read from plain text and not printed; read wherever its
# spelling stands, and printed; not there.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


# How the pre-tokenizers that llama.cpp knows part text: its name, the split expressions in their order (with what else
# parts), and the normalisers. Source: the files of DeepSeek-V3, Llama 3.1, Qwen2.5/3, SmolLM2 and GPT-2 as published;
# the names are llama.cpp's `tokenizer.ggml.pre`.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = "ByteLevel"  # without an expression of its own
_GPT2 = "ByteLevel: GPT-2's expression"
PRE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "deepseek-v3": ((*(split.replace(r"\"", '"') for split in SPLITS), _BYTES), ()),
    "llama-bpe": ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST, _BYTES), ()),
    "qwen2": ((_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST, _BYTES), ("NFC",)),
    "smollm": (("Digits: each", _GPT2), ()),
    "gpt-2": ((_GPT2,), ()),
}
# As `PRE`, of expressions that list letters by the hundred: BLAKE2b of how Python spells the way. This one is V2's too.
_LONG = {"deepseek-llm": "62849f0c6a734e04"}


def vocabulary_keys(folder: Path, vocab_size: int) -> dict[str, str | bool | int | list[str] | list[int]]:
    """The keys for the tokenizer in `folder`, of a network with `vocab_size` tokens; none where the folder has none.

    Thinking tags are USER_DEFINED, so that an answer shows them; every other added token is CONTROL, so that a
    message which spells one cannot forge a turn.

    Raises ValueError for a tokenizer that cuts text in a way without a name in `PRE`, and for one that has more tokens
    than the network.
    """
    if not (folder / "tokenizer.json").is_file():
        return {}
    tokenizer = Tokenizer.load(folder)
    described = json.loads(tokenizer.inner.to_str())
    pre = pre_tokenizer(described)
    if pre is None:
        raise ValueError(
            f"{folder / 'tokenizer.json'} does not cut text in one of the ways that are known here by their llama.cpp "
            f"names ({', '.join((*PRE, *_LONG))}); convert this folder with llama.cpp's convert_hf_to_gguf.py"
        )
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{folder} has {tokenizer.vocab_size} tokens in tokenizer.json and {vocab_size} in config.json; "
            "give the tokenizer that the network was trained with"
        )
    spellings = [tokenizer.inner.id_to_token(token) for token in range(vocab_size)]
    added = set(tokenizer.added_ids)
    control = set(control_spellings(tokenizer.inner))
    config = tokenizer.config
    keys: dict[str, str | bool | int | list[str] | list[int]] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [f"[PAD{token}]" if s is None else s for token, s in enumerate(spellings)],
        "tokenizer.ggml.token_type": [_kind(s, token in added, control) for token, s in enumerate(spellings)],
        "tokenizer.ggml.merges": [_merge(merge) for merge in described["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.add_bos_token": tokenizer.adds_bos,
        "tokenizer.ggml.add_eos_token": bool(config.get("add_eos_token", False)),
    }
    if tokenizer.has_bos:
        keys["tokenizer.ggml.bos_token_id"] = tokenizer.bos_id
    if tokenizer.turn_ends.end not in (None, tokenizer.eos_id):
        keys["tokenizer.ggml.eot_token_id"] = tokenizer.turn_ends.end
    if tokenizer.chat_template is not None:
        keys["tokenizer.chat_template"] = tokenizer.chat_template
    if tokenizer.pad_id != tokenizer.eos_id:
        keys["tokenizer.ggml.padding_token_id"] = tokenizer.pad_id
    return keys


def pre_tokenizer(described: dict) -> str | None:
    """llama.cpp's name for how a tokenizer.json parts text; None where it has none here, or is no byte-level BPE."""
    if described["model"].get("type") != "BPE":
        return None
    way = _way(described)
    digest = blake2b(repr(way).encode(), digest_size=8).hexdigest()
    named = (*((name, way == known) for name, known in PRE.items()), *((n, digest == d) for n, d in _LONG.items()))
    return next((name for name, same in named if same), None)


def _way(described: dict) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How a tokenizer.json parts text and what it changes before, as `PRE` has it."""
    before, changes = described.get("pre_tokenizer") or {}, described.get("normalizer") or {}
    parts = before.get("pretokenizers", [before])
    kinds = [change.get("type", "") for change in changes.get("normalizers", [changes]) if change]
    return tuple(map(_part, parts)), tuple(kinds)


def _part(part: dict) -> str:
    match part.get("type"):
        case "Split":
            pattern = part["pattern"].get("Regex", "") if part.get("behavior") == "Isolated" else ""
            # V3's file has the letters themselves, and no stroke before the quotation mark
            return pattern.replace("\r", r"\r").replace("\n", r"\n").replace(r"\"", '"')
        case "ByteLevel" if not part.get("add_prefix_space"):
            return _GPT2 if part.get("use_regex", True) else _BYTES
        case "Digits" if part.get("individual_digits"):
            return "Digits: each"
    return str(part.get("type"))


def _kind(spelling: str | None, added: bool, control: Set[str]) -> int:
    if spelling is None:
        return UNUSED
    if not added:
        return NORMAL
    shown = spelling in (tokens.THINK, tokens.END_THINK) or spelling not in control
    return USER_DEFINED if shown else CONTROL


def _merge(merge: str | list[str]) -> str:
    """Older files write "a b", newer ones ["a", "b"]."""
    return merge if isinstance(merge, str) else " ".join(merge)
