"""The HTTP interface: routes, refusals, the life of the engine's thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from ziphius.serve.contracts.anthropic.reply import MessageError, MessageReply, TokenCount
from ziphius.serve.contracts.anthropic.request import CountRequest, MessagesRequest
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.completions import CompletionRequest
from ziphius.serve.contracts.errors import ApiError, ErrorBody, of_validation
from ziphius.serve.contracts.reply import ChatCompletion, Health, ModelCard, ModelList, TextCompletion
from ziphius.serve.contracts.responses.reply import ResponseObject
from ziphius.serve.contracts.responses.request import ResponsesRequest
from ziphius.serve.contracts.tokens import DetokenizedText, DetokenizeRequest, TokenizeRequest, TokenizerInfo, Tokens
from ziphius.serve.endpoints import page
from ziphius.serve.endpoints.chat import complete_chat
from ziphius.serve.endpoints.completions import complete_text
from ziphius.serve.endpoints.messages.endpoint import count_tokens, create_message
from ziphius.serve.endpoints.responses.endpoint import make_response, nothing_stored
from ziphius.serve.endpoints.tokens import describe, detokenize, tokenize
from ziphius.serve.wire import gate
from ziphius.serve.wire.body import route_class
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.stream import ClientLeft

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 413, 415, 422, 429, 500, 503)
}
_MESSAGE_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": MessageError} for status in (400, 401, 404, 413, 429, 500, 503)
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Whole, or as a stream"}
}


def make_app(service: Service) -> FastAPI:
    """The application. Its startup starts the engine's thread, its shutdown ends it."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        for runner in service.runners:
            runner.start(asyncio.get_running_loop())
        keeping = asyncio.create_task(service.allowances.keep())
        try:
            yield
        finally:
            for runner in service.runners:
                runner.stop()
            service.lanes.close()
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            service.allowances.save()

    app = FastAPI(title="Ziphius", version=version("ziphius"), lifespan=life, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False  # the gate has put them right
    app.router.route_class = route_class(service.lanes, service.limits.context)
    app.add_middleware(gate.Gate, service=service)
    if service.settings.cors:
        _let_pages_of_others_in(app, service.settings.cors)
    _handle_errors(app, service)
    page.mount(app)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=_REFUSALS | _STREAMED)
    async def chat_completions(asked: ChatRequest, request: Request) -> Response:
        """Answer a conversation: thinking, answer and tool calls apart."""
        return await complete_chat(service, asked, request)

    @app.post("/v1/completions", response_model=TextCompletion, responses=_REFUSALS | _STREAMED)
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Continue a text, or write what stands between a prompt and a suffix."""
        return await complete_text(service, asked, request)

    @app.post("/tokenize", response_model=Tokens, responses=_REFUSALS)
    async def tokenized(asked: TokenizeRequest) -> Response:
        """The ids of a text, or of a conversation as the model would read it."""
        return await tokenize(service, asked)

    @app.post("/detokenize", response_model=DetokenizedText, responses=_REFUSALS)
    async def detokenized(asked: DetokenizeRequest) -> Response:
        """The text of ids."""
        return await detokenize(service, asked)

    @app.get("/tokenizer_info", responses={401: {"model": ErrorBody}})
    async def tokenizer_info() -> TokenizerInfo:
        """The special tokens and the chat template."""
        return describe(service.tokenizer)

    @app.post("/v1/embeddings", include_in_schema=False)
    async def embeddings() -> Response:
        """There are none."""
        raise ApiError(501, "this server has no embeddings: its model writes text", code="not_implemented")

    @app.post("/v1/responses", response_model=ResponseObject, responses=_REFUSALS | _STREAMED)
    async def responses(asked: ResponsesRequest, request: Request) -> Response:
        """Answer a conversation given as items: thinking, messages and calls, and nothing kept afterwards."""
        return await make_response(service, asked, request)

    @app.api_route("/v1/responses/{stored:path}", methods=["GET", "DELETE", "POST"], include_in_schema=False)
    async def stored_responses(stored: str) -> Response:
        raise nothing_stored(stored)

    @app.post(gate.DEEPSEEKS + gate.MESSAGES, include_in_schema=False)
    @app.post(gate.MESSAGES, response_model=MessageReply, responses=_MESSAGE_REFUSALS | _STREAMED)
    async def messages(asked: MessagesRequest, request: Request) -> Response:
        """Answer a conversation in Anthropic's form: blocks of thinking, text and tool use."""
        return await create_message(service, asked, request)

    @app.post(gate.DEEPSEEKS + gate.COUNT_TOKENS, include_in_schema=False)
    @app.post(gate.COUNT_TOKENS, responses=_MESSAGE_REFUSALS)
    async def message_tokens(asked: CountRequest) -> TokenCount:
        """How long the prompt of a message would be."""
        return await count_tokens(service, asked)

    def card(name: str) -> ModelCard:
        context, created = service.limits.context, datetime.fromtimestamp(service.created, UTC)
        return ModelCard(
            id=name, created=service.created, owned_by="ziphius", context_length=context,
            examples=service.examples, display_name=name, created_at=created.isoformat(),
            max_input_tokens=context,
        )  # fmt: skip

    @app.get("/v1/models", responses={401: {"model": ErrorBody}})
    async def models() -> ModelList:
        """The model that is served, and its adapters."""
        return ModelList(data=[card(name) for name in service.names])

    @app.get("/v1/models/{model:path}", responses={401: {"model": ErrorBody}, 404: {"model": ErrorBody}})
    async def model(model: str) -> ModelCard:
        """The model of that name."""
        service.check_model(model)
        return card(model)

    @app.get("/health", responses={503: {"model": Health}})
    async def health() -> Response:
        """Whether requests are taken: 200 `ok`, or 503 `draining` or `failed`."""
        status = (
            "failed" if any(runner.broken for runner in service.runners) else "draining" if service.draining else "ok"
        )
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: {"model": ErrorBody}})
    async def metrics() -> Response:
        """Prometheus's text form."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    service.paths = frozenset(getattr(route, "path", "") for route in app.routes)
    return app


def _let_pages_of_others_in(app: FastAPI, origins: Sequence[str]) -> None:
    """A browser asks before it sends a key or JSON for another site's page; the question itself carries no key.

    Cookies are never asked for, so that no page can use what the browser remembers.
    """
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After", "X-Ignored-Fields", "request-id", "x-request-id"],
    )


def _handle_errors(app: FastAPI, service: Service) -> None:
    def refuse(request: Request, error: ApiError) -> Response:
        service.refuse(request.url.path, error)
        return gate.answer(error, request.url.path)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return refuse(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return refuse(request, of_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        response = refuse(request, ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=499)
