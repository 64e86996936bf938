"""Log-probabilities as OpenAI's chat and responses have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ziphius.serve.contracts.reply import TokenLogprob, TopLogprob, written
from ziphius.serve.endpoints.answer import TokenLog
from ziphius.text.tokenizer import Tokenizer


def token_logprobs(tokenizer: Tokenizer, logs: Sequence[TokenLog], part: str) -> list[TokenLogprob]:
    """The logs of one part's tokens, as OpenAI has them."""
    return [
        TokenLogprob(
            **_named(tokenizer, log.token, log.logprob),
            top_logprobs=[TopLogprob(**_named(tokenizer, token, logprob)) for token, logprob in log.top],
        )
        for log in logs
        if log.part == part
    ]


def _named(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    spelled = tokenizer.token_bytes(token)
    return {"token": spelled.decode("utf-8", "replace"), "logprob": written(logprob), "bytes": list(spelled)}
