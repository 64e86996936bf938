"""A tokenizer in the words of llama.cpp: the `tokenizer.*` keys of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

from ziphius.text import tokens
from ziphius.text.tokenizer import SPLITS, Tokenizer

# What llama.cpp does with a token: from the merges; never read from plain text and not printed; read wherever its
# spelling stands, and printed; not there.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def vocabulary_keys(folder: Path, vocab_size: int) -> dict[str, str | bool | int | list[str] | list[int]]:
    """The keys for the tokenizer in `folder`, of a network with `vocab_size` tokens; none where the folder has none.

    Thinking tags are USER_DEFINED, so that an answer shows them; every other added token is CONTROL, so that a
    message which spells one cannot forge a turn.

    Raises ValueError for a tokenizer that cuts text in another way than DeepSeek-V3's, or has more tokens than the
    network.
    """
    if not (folder / "tokenizer.json").is_file():
        return {}
    tokenizer = Tokenizer.load(folder)
    described = json.loads(tokenizer.inner.to_str())
    if _cuts(described) != list(SPLITS):
        raise ValueError(
            f"{folder / 'tokenizer.json'} does not cut text as DeepSeek-V3's does, and only that way is known here by "
            "its llama.cpp name; convert this folder with llama.cpp's convert_hf_to_gguf.py"
        )
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{folder} has {tokenizer.vocab_size} tokens in tokenizer.json and {vocab_size} in config.json; "
            "give the tokenizer that the network was trained with"
        )
    spellings = [tokenizer.inner.id_to_token(token) for token in range(vocab_size)]
    added = set(tokenizer.added_ids)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    keys: dict[str, str | bool | int | list[str] | list[int]] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "deepseek-v3",
        "tokenizer.ggml.tokens": [f"[PAD{token}]" if s is None else s for token, s in enumerate(spellings)],
        "tokenizer.ggml.token_type": [_kind(s, token in added) for token, s in enumerate(spellings)],
        "tokenizer.ggml.merges": [_merge(merge) for merge in described["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.add_bos_token": bool(config.get("add_bos_token", False)),
        "tokenizer.ggml.add_eos_token": bool(config.get("add_eos_token", False)),
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    if tokenizer.inner.token_to_id(tokens.PAD) is not None:
        keys["tokenizer.ggml.padding_token_id"] = tokenizer.pad_id
    return keys


def _cuts(described: dict) -> list[str]:
    """The expressions by which a tokenizer.json parts text."""
    before = described.get("pre_tokenizer") or {}
    parts = before.get("pretokenizers", [before])
    return [part["pattern"].get("Regex", "") for part in parts if part.get("type") == "Split"]


def _kind(spelling: str | None, added: bool) -> int:
    if spelling is None:
        return UNUSED
    if not added:
        return NORMAL
    return USER_DEFINED if spelling in (tokens.THINK, tokens.END_THINK) else CONTROL


def _merge(merge: str | list[str]) -> str:
    """Older files write "a b", newer ones ["a", "b"]."""
    return merge if isinstance(merge, str) else " ".join(merge)
