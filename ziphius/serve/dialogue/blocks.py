"""A request of Anthropic's Messages API as the chat it means. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pydantic import ValidationError

from ziphius.serve.contracts.anthropic.blocks import (
    AssistantTurn,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    TurnMessage,
)
from ziphius.serve.contracts.anthropic.request import CountRequest, MessagesRequest
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.errors import ApiError, of_validation
from ziphius.serve.dialogue.calls import WrittenCalls
from ziphius.serve.dialogue.seal import Seal


@dataclass(frozen=True)
class Chats:
    """Makes chats of requests. `can_think`: whether the model has tokens for it."""

    can_think: bool
    seal: Seal
    calls: WrittenCalls

    def of(self, asked: CountRequest) -> ChatRequest:
        """Raises ApiError where the chat would be refused, too."""
        body = {"model": asked.model} | self._thinking(asked) | _tools(asked)
        if isinstance(asked, MessagesRequest):
            body |= _sampling(asked)
        if asked.form is not None:
            schema = {"name": "answer", "schema": asked.form.schema_}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            return ChatRequest.model_validate(body | {"messages": self._messages(asked)})
        except ValidationError as error:
            raise of_validation(error.errors()) from None
        except RecursionError:
            raise ApiError(400, "the body is nested too deeply") from None

    def _thinking(self, asked: CountRequest) -> dict[str, Any]:
        """Nothing where the model's template is to decide."""
        thinking = asked.thinking
        if thinking is None or (thinking.type not in ("enabled", "disabled") and not self.can_think):
            return {}
        if thinking.type == "disabled":
            return {"thinking": {"type": "disabled"}}
        effort = asked.output_config.effort if asked.output_config is not None else None
        budget, most = thinking.budget_tokens, asked.max_tokens if isinstance(asked, MessagesRequest) else None
        if budget is not None and most is not None and budget + 2 > most:
            budget = None  # an upper bound, which would leave no room for an answer: the usual share holds
        if effort is not None and budget is None:
            return {"reasoning_effort": effort}
        return {"thinking": {"type": "enabled", "budget_tokens": budget}}

    def _messages(self, asked: CountRequest) -> list[dict[str, Any]]:
        """The conversation; of messages of one role that follow each other a blank line parts the texts."""
        found: list[dict[str, Any]] = []
        turns: list[TurnMessage] = []
        if asked.system:
            found.append({"role": "system", "content": _text(asked.system)})
        for role, run in groupby(asked.messages, key=lambda message: message.role):
            turns = list(run)
            if role == "assistant":
                found.append(self._said(turns))
            elif role == "user":
                found += _asked(turns)
            else:
                found.append({"role": "system", "content": _joined(turns)})
        if isinstance(turns[-1], AssistantTurn):
            found += self._beginning(found.pop(), turns, asked)
        return found

    def _said(self, turns: list[TurnMessage]) -> dict[str, Any]:
        calls = [
            {"id": block.id, "function": {"name": block.name, "arguments": self.calls.text(block.id, block.input)}}
            for turn in turns
            for block in turn.content
            if isinstance(block, ToolUseBlock)
        ]
        text = _joined(turns)
        if not calls:
            return {"role": "assistant", "content": text}
        return {"role": "assistant", "content": text or None, "tool_calls": calls}

    def _beginning(self, last: dict[str, Any], turns: list[TurnMessage], asked: CountRequest) -> list[dict[str, Any]]:
        """How the answer begins: with its text, and its thinking where it is on and was written here. Perhaps not."""
        if "tool_calls" in last:
            raise ApiError(400, "the last message calls tools; send what they said as tool_result blocks after it")
        known = ""
        if asked.thinking is not None and asked.thinking.type != "disabled" and self.can_think:
            blocks = [block for turn in turns for block in turn.content if isinstance(block, ThinkingBlock)]
            known = "".join(block.thinking for block in blocks if self.seal.knows(block.thinking, block.signature))
        if not (last["content"] or known):
            return []
        return [last | {"prefix": True, "content": last["content"] or None, "reasoning_content": known or None}]


def _asked(turns: list[TurnMessage]) -> list[dict[str, Any]]:
    """What the user said, and what tools said, in the order in which it stands."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        gap = "\n\n"
        for block in turn.content:
            if isinstance(block, ToolResultBlock):
                texts = ["Error: " if block.is_error else "", _text(block.content or [])]
                found.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": texts})
            elif isinstance(block, TextBlock):
                if not found or found[-1]["role"] != "user":
                    found.append({"role": "user", "content": [block.text]})
                else:
                    found[-1]["content"] += [gap, block.text]
                gap = ""
    return [message | {"content": "".join(message["content"])} for message in found] or [
        {"role": "user", "content": ""}
    ]


def _text(blocks: Iterable[Any]) -> str:
    return "".join(block.text for block in blocks if isinstance(block, TextBlock))


def _joined(turns: Iterable[TurnMessage]) -> str:
    return "\n\n".join(text for turn in turns if (text := _text(turn.content)))


def _tools(asked: CountRequest) -> dict[str, Any]:
    if not asked.tools and (asked.tool_choice is None or asked.tool_choice.type == "auto"):
        return {}
    tools = [
        {
            "type": "function",
            "function": {"name": tool.name, "parameters": tool.input_schema}
            | ({"description": tool.description} if tool.description is not None else {})
            | ({"strict": True} if tool.strict else {}),
        }
        for tool in asked.tools or []
    ]
    body: dict[str, Any] = {"tools": tools}
    if (choice := asked.tool_choice) is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        body["tool_choice"] = named if choice.type == "tool" else {"any": "required"}.get(choice.type, choice.type)
        body["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return body


def _sampling(asked: MessagesRequest) -> dict[str, Any]:
    return {
        "max_tokens": asked.max_tokens,
        "stream": asked.stream,
        "stop": asked.stop_sequences,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": None if asked.top_k is None else max(asked.top_k, 0),
        "user": asked.metadata.user_id if asked.metadata is not None else None,
    }
