"""A turn of a conversation under way, whatever API it was asked through."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ziphius.engine.request import Request
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.dialogue.ask import chat_request
from ziphius.serve.dialogue.parse import ReplyParser
from ziphius.serve.dialogue.prompt import Prompt
from ziphius.serve.dialogue.tools import tool_settings
from ziphius.serve.endpoints.answer import Answer, Choice
from ziphius.serve.wire.service import Service


@dataclass
class Turn:
    """What was asked, the prompt made of it, the engine's request, and the answer that `respond` has it give."""

    service: Service
    name: str
    asked: ChatRequest
    prompt: Prompt
    request: Request
    answer: Answer

    @property
    def parsers(self) -> Sequence[ReplyParser]:
        """What each choice has said so far."""
        return [choice.parser for choice in self.answer.choices if isinstance(choice.parser, ReplyParser)]

    def remember(self) -> None:
        """Keep the tokens of what was written, so that the next turn reads them as they are and finds them in the
        cache."""
        prompts, begun = self.service.prompts, self.prompt.begun
        for parser in self.parsers:
            for text, ids in parser.written():
                if begun and text == parser.content:
                    text, ids = begun + text, [*prompts.plain_ids(begun), *ids]
                prompts.memory.keep(self.prompt.turn, text, ids)
        if self.service.settings.log_prompts:
            self.answer.about["answer"] = [parser.content for parser in self.parsers]


async def begin_turn(service: Service, asked: ChatRequest, path: str, name: str, left_out: Sequence[str]) -> Turn:
    """A place taken for the turn, which `respond` gives back. Raises ApiError for what cannot be answered.

    For the log and the metrics: the API's `path`, the answer's `name`, the fields of the request that have no effect.
    """
    service.check_model(asked.model)
    prompt, request = await service.lanes.run(_prepare, service, asked)
    ends = [*service.tokenizer.eos_ids, *request.settings.stop_token_ids]
    choices = [
        Choice(
            index,
            ReplyParser(
                service.tokenizer,
                bool(prompt.thinking),
                tools=bool(asked.tools) and asked.tool_choice != "none",
                stops=asked.stops,
                ends=ends,
            ),
            bool(asked.logprobs),
        )
        for index in range(request.samples)
    ]
    about: dict[str, Any] = {"path": path, "id": name, **asked.labels}
    if left_out:
        about["ignored"] = left_out
    if service.settings.log_prompts:
        about["prompt"] = await service.lanes.run(service.tokenizer.decode, prompt.ids)
    return Turn(service, name, asked, prompt, request, Answer(service, choices, about, asked.model))


def _prepare(service: Service, asked: ChatRequest) -> tuple[Prompt, Request]:
    """What takes as long as the conversation is."""
    prompt = make_prompt(service, asked)
    tools = tool_settings(asked, service.tokenizer)
    return prompt, chat_request(asked, prompt, service.limits, service.tokenizer.next_turn, tools)


def make_prompt(service: Service, asked: ChatRequest) -> Prompt:
    """What the model reads for this request. Raises ApiError where its template or its tokens do not allow it."""
    service.check_length([message.content or "" for message in asked.messages], "messages")
    tools = [tool.model_dump(exclude_none=True) for tool in asked.tools or []]
    service.check_length([json.dumps(tool, ensure_ascii=False, separators=(",", ":")) for tool in tools], "tools")
    try:
        return service.prompts.chat(asked.messages, asked.thinks, tools)
    except ValueError as error:
        raise ApiError(422, str(error), param="messages") from None
    except RecursionError:
        raise ApiError(422, "tools: the parameters are nested too deeply", param="tools") from None
