"""`POST /tokenize` and `/detokenize`: what the model would read, and what ids spell."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, Tokens
from ziphius.serve.wire.service import Service
from ziphius.text.tokenizer import Tokenizer

Made = TypeVar("Made")


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as a name: its text, or `bytes:\\xNN…` where its bytes are no whole text, as OpenAI has it."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


async def tokenize(service: Service, asked: TokenizeRequest) -> Tokens:
    """Raises ApiError for what cannot be read."""
    if asked.model is not None:
        service.check_model(asked.model)
    return await _apart(lambda: _tokens(service, asked), "messages" if asked.messages else "prompt")


async def detokenize(service: Service, asked: DetokenizeRequest) -> DetokenizedText:
    """Raises ApiError for ids that are none."""
    if asked.model is not None:
        service.check_model(asked.model)

    def text() -> DetokenizedText:
        ids = service.prompts.text(asked.tokens) if asked.tokens else []
        return DetokenizedText(prompt=service.tokenizer.decode(ids))

    return await _apart(text, "tokens")


def _tokens(service: Service, asked: TokenizeRequest) -> Tokens:
    if asked.messages is not None:
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or []]
        ids = service.prompts.chat(asked.messages, None, tools).ids
    elif asked.add_special_tokens is False:
        ids = service.tokenizer.encode(asked.prompt or "")
    else:
        ids = service.prompts.text(asked.prompt or "")
    names = [spelled(service.tokenizer, token) for token in ids] if asked.return_token_strs else None
    return Tokens(count=len(ids), max_model_len=service.limits.context, tokens=ids, token_strs=names)


async def _apart(make: Callable[[], Made], param: str) -> Made:
    """What a long text takes, others must not wait for."""
    try:
        return await asyncio.to_thread(make)
    except ValueError as error:
        raise ApiError(422, str(error), param=param) from None
