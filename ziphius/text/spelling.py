"""The bytes that a token stands for, in the two ways in which vocabularies spell them."""

from __future__ import annotations

import json
import re

import tokenizers

BYTES = 256
SPACE = "▁"  # U+2581, SentencePiece's
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def spelled_bytes(inner: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of each id, added tokens as they are spelt; none for an id without a token."""
    to_bytes = _byte_level if b'"ByteLevel"' in _decoder(inner) else _sentence_piece
    added = inner.get_added_tokens_decoder()
    spellings = map(inner.id_to_token, range(inner.get_vocab_size(with_added_tokens=True)))
    return [
        b"" if text is None else text.encode() if token in added else to_bytes(text)
        for token, text in enumerate(spellings)
    ]


def _decoder(inner: tokenizers.Tokenizer) -> bytes:
    return json.dumps(json.loads(inner.to_str()).get("decoder")).encode()


def _byte_level(text: str) -> bytes:
    """Undoes the byte-level alphabet, as its decoder does."""
    try:
        return bytes(_ALPHABET[letter] for letter in text)
    except KeyError:
        return text.encode()


def _sentence_piece(text: str) -> bytes:
    byte = _BYTE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(SPACE, " ").encode()


def _alphabet() -> dict[str, int]:
    """The character that byte-level BPE writes for each byte (GPT-2's): printable ones as they are, others from 256."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(BYTES + place): byte for place, byte in enumerate(others)}


_ALPHABET = _alphabet()
