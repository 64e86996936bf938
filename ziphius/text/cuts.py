"""How byte-level tokenizers part a text before they merge its bytes, under the names that llama.cpp has for it."""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

from ziphius.text.learn import SPLITS

# Llama 3's published expression; Qwen's differs in how many digits stand together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Cut(NamedTuple):
    """`expressions` are applied one after the other; without any, GPT-2's own is (behind single digits, if `digits`).

    `whole_words`: a word that is a token is taken as it is, whatever the merges would make of it. `composed`: the text
    is brought into the composed form of Unicode (NFC) first.
    """

    expressions: tuple[str, ...] = ()
    digits: bool = False
    whole_words: bool = False
    composed: bool = False

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.composed else None

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        parts: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(expression), "isolated") for expression in self.expressions
        ]
        if self.digits:
            parts.append(pre_tokenizers.Digits(individual_digits=True))
        own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.expressions)
        return pre_tokenizers.Sequence([*parts, own])


def _plain(expression: str) -> str:
    """Published files write quotes and line breaks with and without a backslash, which mean the same."""
    return expression.replace(r"\"", '"').replace(r"\r", "\r").replace(r"\n", "\n")


CUTS = {
    "deepseek-r1-qwen": Cut((_plain(_WORDS.format(digits="")),)),
    "deepseek-v3": Cut(tuple(map(_plain, SPLITS))),
    "gpt-2": Cut(),
    "llama-bpe": Cut((_plain(_WORDS.format(digits="{1,3}")),), whole_words=True),
    "qwen2": Cut((_plain(_WORDS.format(digits="")),), composed=True),
    "smollm": Cut(digits=True),
}


def cut_of(described: dict[str, Any]) -> Cut | None:
    """How a tokenizer.json parts text; None where it is no byte-level BPE of the kind that `Cut` can say."""
    model, before = described.get("model") or {}, described.get("pre_tokenizer") or {}
    parts = list(before.get("pretokenizers", [before]))
    if model.get("type") != "BPE" or not parts or parts.pop().get("type") != "ByteLevel":
        return None
    digits = bool(parts) and parts[-1].get("type") == "Digits" and bool(parts.pop().get("individual_digits"))
    if any(part.get("type") != "Split" or "Regex" not in part["pattern"] for part in parts):
        return None
    normalizer = described.get("normalizer") or {}
    composed = normalizer.get("type") == "NFC"
    if normalizer and not composed and normalizer.get("normalizers") != []:
        return None
    expressions = tuple(_plain(part["pattern"]["Regex"]) for part in parts)
    return Cut(expressions, digits, bool(model.get("ignore_merges")), composed)
