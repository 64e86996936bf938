"""Text ↔ token ids, and what each token is."""

from collections.abc import Sequence
from functools import cached_property

import tokenizers

from ziphius.text import tokens
from ziphius.text.plain import Breaker
from ziphius.text.special import breaker
from ziphius.text.spelling import spelled_bytes


class Vocabulary:
    """Text ↔ token ids.

    Encoding recognises the special tokens wherever they stand in the text; it never adds one by itself.
    """

    def __init__(self, inner: tokenizers.Tokenizer) -> None:
        inner.no_padding()
        inner.no_truncation()
        self.inner = inner

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        return self.encode_batch([text])[0]  # thrice as fast as one by itself, and other threads run meanwhile

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores."""
        return [encoding.ids for encoding in self.inner.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_more(self, text: str) -> list[int]:
        """The ids of a text that goes on from another: without the space that SentencePiece puts before a text."""
        if not self._puts_space:
            return self.encode(text)
        lead = "a" if text.startswith("\n") else "\n"  # which no token holds together with what follows
        return self.encode(lead + text)[len(self.encode(lead)) :]

    @cached_property
    def _puts_space(self) -> bool:
        return self.encode("\n" + "a") != self.encode("\n") + self.encode("a")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of some ids; bytes that are not UTF-8 become U+FFFD. Skipping drops what is marked special only."""
        return self.inner.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes one id stands for, none for an id without a token; several ids may make up one character."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    @cached_property
    def longest_token(self) -> int | None:
        """The bytes of the longest token, so that a text of N characters has N over as many tokens at least.

        None where the tokenizer changes texts before it splits them: it may shorten them.
        """
        normalizer = self.inner.normalizer
        unchanged = normalizer is None or b'"normalizers":[]' in normalizer.__getstate__()
        return max(map(len, self._bytes)) if unchanged else None

    @property
    def added_ids(self) -> list[int]:
        """The ids of the special tokens, which no text but their own spelling gives."""
        return sorted(self.inner.get_added_tokens_decoder())

    @cached_property
    def breaker(self) -> Breaker:
        """Makes the spelling of a control token text."""
        return breaker(self.inner)

    @cached_property
    def _bytes(self) -> list[bytes]:
        return spelled_bytes(self.inner)

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return self.inner.get_vocab_size(with_added_tokens=True)

    # --- DeepSeek's tokens, ValueError where the vocabulary lacks them ------------------------------------------------

    @property
    def think_id(self) -> int:
        return self._id(tokens.THINK)

    @property
    def end_think_id(self) -> int:
        return self._id(tokens.END_THINK)

    @property
    def user_id(self) -> int:
        return self._id(tokens.USER)

    @property
    def assistant_id(self) -> int:
        return self._id(tokens.ASSISTANT)

    @property
    def fim_begin_id(self) -> int:
        return self._id(tokens.FIM_BEGIN)

    @property
    def fim_hole_id(self) -> int:
        return self._id(tokens.FIM_HOLE)

    @property
    def fim_end_id(self) -> int:
        return self._id(tokens.FIM_END)

    def _id(self, token: str) -> int:
        token_id = self.inner.token_to_id(token)
        if token_id is None:
            raise ValueError(f"this tokenizer has no token {token}: train one with train_tokenizer, or use R1's")
        return token_id

    def _spelling(self, id: int | None) -> str:
        return "" if id is None else self.inner.id_to_token(id) or ""
