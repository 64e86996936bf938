"""Constraints on answers, kept by llguidance: JSON, JSON schemas, regular expressions, Lark grammars. No torch."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ziphius.engine.settings import JSON_WHITESPACE, Constraint
from ziphius.text.tokenizer import Tokenizer


class GrammarError(Exception):
    """A constraint that its own tokens broke, or that grew past the library's limits."""


class Grammars:
    """The tokenizer as the library wants it, made when the first constraint comes."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Words(tokenizer, vocab_size)), n_vocab=vocab_size)
        self._vocab_size = vocab_size
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def matcher(self, constraint: Constraint) -> Matcher:
        """Follows one answer. Raises ValueError for a constraint that cannot be read. May take seconds the first time
        that a constraint comes; any thread may call it."""
        return Matcher(self._compiled(constraint).deep_copy(), self._vocab_size)

    def _compile(self, constraint: Constraint) -> LLMatcher:
        inner = LLMatcher(self._tokenizer, _grammar(constraint))
        name = _KIND[constraint.kind]
        if inner.is_error():
            raise ValueError(f"the {name} cannot be used: {_first_line(inner.get_error())}")
        begun = inner.deep_copy()
        begun.compute_bitmask()
        if begun.is_error():
            raise ValueError(f"the {name} cannot be used: no answer has it ({_first_line(begun.get_error())})")
        return inner


class Matcher:
    """What may follow the part of an answer seen so far."""

    def __init__(self, inner: LLMatcher, vocab_size: int) -> None:
        self._inner, self.vocab_size = inner, vocab_size

    @property
    def finished(self) -> bool:
        """Whether nothing more can follow."""
        return self._inner.is_stopped()

    def allowed(self) -> np.ndarray:
        """bool [W]."""
        bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self.vocab_size, bitorder="little").astype(bool)

    def accepts(self, token: int) -> bool:
        return self._inner.validate_tokens([token]) == 1

    def advance(self, token: int) -> None:
        self._inner.consume_token(token)
        self._check()

    def retreat(self) -> None:
        self._inner.rollback(1)
        self._check()

    def _check(self) -> None:
        if self._inner.is_error():
            raise GrammarError(f"the constraint failed: {_first_line(self._inner.get_error())}")


class _Words:
    """What the library asks of a tokenizer; an id without a token spells nothing and is never allowed."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = tokenizer.added_ids
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


_KIND = {"json": "JSON form", "json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}


def _grammar(constraint: Constraint) -> str:
    if constraint.kind == "regex":
        return LLMatcher.grammar_from_regex(constraint.text)
    if constraint.kind == "grammar":
        return LLMatcher.grammar_from_lark(constraint.text)
    schema = constraint.text if constraint.kind == "json_schema" else json.dumps({"type": "object"})
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": JSON_WHITESPACE})
    except ValueError as error:
        raise ValueError(f"the JSON schema cannot be used: {_first_line(str(error))}") from error


def _first_line(text: str) -> str:
    return " ".join(text.strip().splitlines()[:1])
