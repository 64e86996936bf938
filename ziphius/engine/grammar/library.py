"""JSON, JSON schemas, regular expressions and Lark grammars as llguidance reads them.

Runs in the processes of `process.py` only: a hostile grammar makes the library slow, hungry, or end its process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ziphius.engine.settings import JSON_WHITESPACE
from ziphius.text.tokenizer import Tokenizer

_NAMES = {"json": "JSON form", "json_schema": "JSON schema", "regex": "regular expression", "grammar": "grammar"}
_LONGEST_REASON = 300  # characters
_REHEARSED = 3  # tokens
_EMBEDDED = re.compile(r"%json\s*(?={)")


class View(NamedTuple):
    """What holds at one place of an answer: the tokens that may come, a bit each [W / 8], the first token's lowest.

    `stopped`: nothing more can follow.
    """

    stopped: bool
    bits: bytes


class Words:
    """What the library asks of a tokenizer; an id without a token spells nothing and is never allowed."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = next(iter(tokenizer.begin), None)
        self.tokens = [tokenizer.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = tokenizer.added_ids
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def library_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> LLTokenizer:
    """The tokenizer as the library wants it, with `vocab_size` rows of logits."""
    return LLTokenizer(TokenizerWrapper(Words(tokenizer, vocab_size)), n_vocab=vocab_size)


def name_of(kind: str) -> str:
    """A kind of constraint as people call it."""
    return _NAMES[kind]


_OURS = re.compile(r'"x-guidance": \{[^}]*\},? ?')  # what is put into a schema before it is embedded


def compiled(tokenizer: LLTokenizer, kind: str, text: str) -> tuple[LLMatcher, View]:
    """At the beginning of an answer. Raises ValueError for what cannot be read and for what no answer has."""
    matcher, first = _begun(tokenizer, _grammar(kind, text), name_of(kind))
    for schema in _embedded(text) if kind == "grammar" else ():
        _begun(tokenizer, _grammar("json_schema", schema), f"schema {_OURS.sub('', schema, 1)[:80]}")
    return matcher, first


def look(matcher: LLMatcher, drafts: Sequence[int]) -> list[View]:
    """What holds now, and behind each draft in turn that may come itself. Raises ValueError where the form fails."""
    views = [_view(matcher)]
    for draft in drafts:
        if views[-1].stopped or not views[-1].bits[draft // 8] >> draft % 8 & 1:
            break
        take(matcher, draft)
        views.append(_view(matcher))
    if len(views) > 1:
        matcher.rollback(len(views) - 1)
    return views


def take(matcher: LLMatcher, token: int) -> None:
    """Go on by a token. Raises ValueError where it cannot come."""
    matcher.consume_token(token)
    _check(matcher)


def _begun(tokenizer: LLTokenizer, grammar: str, name: str) -> tuple[LLMatcher, View]:
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    if matcher.is_error():
        raise ValueError(f"the {name} cannot be used: {_reason(matcher.get_error())}")
    begun = matcher.deep_copy()
    try:
        first = _view(begun)
    except ValueError:
        raise ValueError(f"the {name} cannot be used: no answer has it") from None
    try:
        _rehearse(begun, first)
    except ValueError as error:
        raise ValueError(f"the {name} cannot be used: it fails within a few tokens ({error})") from None
    return matcher, first


def _rehearse(matcher: LLMatcher, view: View) -> None:
    """Take the highest tokens that may come, which are seldom control tokens: what fails soon is better known now.

    Raises ValueError where it does.
    """
    for _ in range(_REHEARSED):
        if view.stopped or not any(view.bits):
            return
        take(matcher, int.from_bytes(view.bits, "little").bit_length() - 1)
        view = _view(matcher)


def _view(matcher: LLMatcher) -> View:
    bits = bytes(matcher.compute_bitmask())
    _check(matcher)
    return View(matcher.is_stopped(), bits)


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise ValueError(_reason(matcher.get_error()))


def _grammar(kind: str, text: str) -> str:
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    if kind == "grammar":
        return LLMatcher.grammar_from_lark(text)
    schema = text if kind == "json_schema" else json.dumps({"type": "object"})
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": JSON_WHITESPACE})
    except ValueError as error:
        raise ValueError(f"the {name_of(kind)} cannot be used: {_reason(str(error))}") from error


def _embedded(text: str) -> list[str]:
    """The JSON schemas within a Lark grammar: the library notices only when it comes to one that nothing fits it."""
    found = []
    for begin in _EMBEDDED.finditer(text):
        try:
            _, end = json.JSONDecoder().raw_decode(text, begin.end())
        except (ValueError, RecursionError):  # not one after all, or one that the library refuses itself
            continue
        found.append(text[begin.end() : end])
    return found


def _reason(text: str) -> str:
    """The first line of what the library says, which may quote the grammar."""
    line = " ".join(text.strip().splitlines()[:1])
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}…"
