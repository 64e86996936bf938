"""A tokenizer in the words of llama.cpp: the `tokenizer.*` keys of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ziphius.text.cuts import CUTS, cut_of

# What llama.cpp does with a token: from the merges; never read from plain text and not printed; read wherever its
# spelling stands, and printed; not there.
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_MARKS = (
    ("<｜", "｜>"),
    ("<|", "|>"),
)  # around what parts a conversation, also where a folder does not call it special
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_FURTHER_ENDS = ("eot", "eom")

Keys = dict[str, str | bool | int | list[str] | list[int]]


def vocabulary_keys(folder: Path, vocab_size: int) -> Keys:
    """The keys for the tokenizer in `folder`, of a network with `vocab_size` tokens; none where the folder has none.

    What an answer shows, such as thinking tags, is USER_DEFINED; special tokens, and those marked as one, are CONTROL,
    so that a message which spells one cannot forge a turn.

    Raises ValueError for a tokenizer whose way to part texts has no name here, or with more tokens than the network.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    described, config = _json(path), _json(folder / "tokenizer_config.json")
    name = name_of_cut(described)
    if name is None:
        raise ValueError(
            f"{path} does not cut text in a way that is known here by its llama.cpp name ({', '.join(CUTS)}); convert "
            "this folder with llama.cpp's convert_hf_to_gguf.py"
        )
    ids: dict[str, int] = dict(described["model"]["vocab"])
    added = {token["content"]: token for token in described.get("added_tokens") or []}
    ids |= {text: token["id"] for text, token in added.items()}
    if max(ids.values()) >= vocab_size:
        raise ValueError(
            f"{folder} has {max(ids.values()) + 1} tokens in tokenizer.json and {vocab_size} in config.json; "
            "give the tokenizer that the network was trained with"
        )
    spellings = [f"[PAD{token}]" for token in range(vocab_size)]
    kinds = [UNUSED] * vocab_size
    for text, token in ids.items():
        spellings[token], kinds[token] = text, _kind(added[text]) if text in added else NORMAL
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else config.get("chat_template")
    keys: Keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": spellings,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [_merge(merge) for merge in described["model"]["merges"]],
    }
    for end, there in zip(("bos", "eos"), _around(described), strict=True):
        stated = config.get(f"add_{end}_token")
        keys[f"tokenizer.ggml.add_{end}_token"] = there if stated is None else bool(stated)
    if isinstance(chat, str):
        keys["tokenizer.chat_template"] = chat
    return keys | _special_ids(config, ids, folder)


def _special_ids(config: dict[str, Any], ids: dict[str, int], folder: Path) -> Keys:
    """The ids of the tokens with a role; the folder's further end tokens are those of a turn and of a message."""
    found: Keys = {}
    for role, name in _ROLES.items():
        token = config.get(role)
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            found[f"tokenizer.ggml.{name}_token_id"] = ids[text]
    generation = folder / "generation_config.json"
    ends = _json(generation).get("eos_token_id") if generation.is_file() else None
    others = [end for end in ends if end != found.get("tokenizer.ggml.eos_token_id")] if isinstance(ends, list) else []
    return found | {f"tokenizer.ggml.{name}_token_id": end for name, end in zip(_FURTHER_ENDS, others, strict=False)}


def _around(described: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the tokenizer puts a token before a text, and one behind it."""
    after = described.get("post_processor") or {}
    for step in after.get("processors", [after]):
        if step.get("type") == "TemplateProcessing":
            single = step["single"]
            return "SpecialToken" in single[0], "SpecialToken" in single[-1]
    return False, False


def name_of_cut(described: dict[str, Any]) -> str | None:
    cut = cut_of(described)
    return next((name for name, known in CUTS.items() if known == cut), None)


def _kind(added: dict[str, Any]) -> int:
    text = added["content"]
    marked = any(text.startswith(start) and text.endswith(end) for start, end in _MARKS)
    return CONTROL if marked or added.get("special") else USER_DEFINED


def _merge(merge: str | list[str]) -> str:
    """Older files write "a b", newer ones ["a", "b"]."""
    return merge if isinstance(merge, str) else " ".join(merge)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
