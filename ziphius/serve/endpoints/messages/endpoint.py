"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's form of a turn."""

from __future__ import annotations

import secrets

from starlette.requests import Request
from starlette.responses import Response

from ziphius.serve.contracts.anthropic.reply import MessageReply, TokenCount
from ziphius.serve.contracts.anthropic.request import CountRequest, MessagesRequest
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.dialogue.blocks import Chats
from ziphius.serve.endpoints.answer import naming_ignored, respond
from ziphius.serve.endpoints.messages.events import message_events
from ziphius.serve.endpoints.messages.reply import MadeMessage
from ziphius.serve.endpoints.turn import begin_turn, make_prompt
from ziphius.serve.wire.gate import COUNT_TOKENS, MESSAGES
from ziphius.serve.wire.service import Service


async def create_message(service: Service, asked: MessagesRequest, request: Request) -> Response:
    """The message, whole or as a stream of events. Raises ApiError for what cannot be answered."""
    id = secrets.token_hex(12)
    chat = await _chat(service, asked)
    turn = await begin_turn(service, chat, MESSAGES, f"msg_{id}", asked.left_out)
    made = MadeMessage(turn, asked)

    def whole() -> MessageReply:
        made.remember()
        return made.reply()

    events = message_events(made) if asked.stream else None
    response = await respond(turn.answer, [turn.request], request.receive, events, whole)
    return naming_ignored(response, asked.left_out)


async def count_tokens(service: Service, asked: CountRequest) -> TokenCount:
    """How many tokens the prompt of such a message would have. Raises ApiError as the message would."""
    service.check_model(asked.model)
    with service.aside(COUNT_TOKENS):
        prompt = await service.lanes.run(make_prompt, service, await _chat(service, asked))
    return TokenCount(input_tokens=len(prompt.ids))


async def _chat(service: Service, asked: CountRequest) -> ChatRequest:
    chats = Chats(service.tokenizer.can_think, service.seal, service.calls)
    return await service.lanes.run(chats.of, asked)
