"""`/tokenize`, `/detokenize`, `/tokenizer_info`: what the model would read, and what ids spell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel
from starlette.responses import Response

from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, TokenizerInfo, Tokens
from ziphius.serve.endpoints.answer import as_json
from ziphius.serve.wire.service import Service
from ziphius.text.tokenizer import Tokenizer

Asked = TypeVar("Asked", TokenizeRequest, DetokenizeRequest)


def spelled(tokenizer: Tokenizer, token: int) -> str:
    """A token as a name: its text, or `bytes:\\xNN…` where its bytes are no whole text, as OpenAI has it."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


async def tokenize(service: Service, asked: TokenizeRequest) -> Response:
    """Raises ApiError for what cannot be read."""
    return await _apart(service, _tokens, asked, "/tokenize", "prompt" if asked.messages is None else "messages")


async def detokenize(service: Service, asked: DetokenizeRequest) -> Response:
    """Raises ApiError for ids that are none."""
    return await _apart(service, _text, asked, "/detokenize", "tokens")


def describe(tokenizer: Tokenizer) -> TokenizerInfo:
    """What a client reads that counts tokens here instead of at home, as lm-evaluation-harness does."""
    bos, eos = tokenizer.decode(tokenizer.begin), tokenizer.decode([tokenizer.eos_id])
    return TokenizerInfo(bos_token=bos, eos_token=eos, chat_template=tokenizer.chat_template or "")


def _tokens(service: Service, asked: TokenizeRequest) -> Tokens:
    if asked.messages is not None:
        service.check_length([message.content or "" for message in asked.messages], "messages")
        tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or []]
        ids = service.prompts.chat(asked.messages, None, tools).ids
    else:
        text = asked.prompt or ""
        service.check_length([text], "prompt")
        bare = asked.add_special_tokens is False
        ids = service.tokenizer.encode(text) if bare else service.prompts.text(text)
    names = [spelled(service.tokenizer, token) for token in ids] if asked.return_token_strs else None
    return Tokens(count=len(ids), max_model_len=service.limits.context, tokens=ids, token_strs=names)


def _text(service: Service, asked: DetokenizeRequest) -> DetokenizedText:
    ids = service.prompts.text(asked.tokens) if asked.tokens else []
    return DetokenizedText(prompt=service.tokenizer.decode(ids))


async def _apart(
    service: Service, make: Callable[[Service, Asked], BaseModel], asked: Asked, path: str, param: str
) -> Response:
    """What a long text takes, others must not wait for."""
    if asked.model is not None:
        service.check_model(asked.model)
    with service.aside(path):
        try:
            made = await service.lanes.run(lambda: as_json(make(service, asked)))
        except ValueError as error:
            raise ApiError(422, str(error), param=param) from None
    return Response(made, media_type="application/json")
