"""How byte-level tokenizers part a text before they merge its bytes, under the names that llama.cpp has for it."""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

from ziphius.text.tokenizer import SPLITS

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


CUTS = {
    "deepseek-r1-qwen": Cut((_WORDS.format(digits=""),)),
    "deepseek-v3": Cut(SPLITS),
    "gpt-2": Cut(),
    "llama-bpe": Cut((_WORDS.format(digits="{1,3}"),), whole_words=True),
    "qwen2": Cut((_WORDS.format(digits=""),), composed=True),
    "smollm": Cut(digits=True),
}
