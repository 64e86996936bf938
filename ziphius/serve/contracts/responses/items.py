"""What the input of a response is made of: messages, thinking, calls and what they gave. Imports no torch.

Items come back as a client keeps them: with the ids and the status that an answer gave them, with null where nothing
is. Source: `openai.types.responses.ResponseInputItemParam`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field

from ziphius.serve.contracts.lenient import Lenient
from ziphius.serve.contracts.messages import Text
from ziphius.serve.contracts.responses.fields import ITEM_IGNORED

_STORED = "nothing is stored here; send the item itself, as clients do that are told store: false"
_NOT_READ = "it is no message, reasoning, function_call or function_call_output, which are what is read here"
_SHOWN = 64  # characters of a type that are repeated


def by_type(
    kinds: Mapping[str, type[BaseModel]], else_why: str, reasons: Mapping[str, str] | None = None, word: bool = False
) -> BeforeValidator:
    """Reads an object as the model that its `type` names, so that an error's path is what the client wrote.

    `reasons` say why a type is refused, `else_why` for all that are not named. With `word` it may be a string instead.
    """

    def read(value: Any) -> Any:
        if isinstance(value, tuple(kinds.values())) or (word and isinstance(value, str)):
            return value
        if not isinstance(value, dict):
            raise ValueError("must be an object with a type")
        kind = value.get("type")
        if kind is None and "role" in value:
            kind = "message"
        if not isinstance(kind, str):
            raise ValueError("needs a type")
        if kind not in kinds:
            raise ValueError(f"type {kind[:_SHOWN]!r}: {(reasons or {}).get(kind, else_why)}")
        return kinds[kind].model_validate(value)

    return BeforeValidator(read)


def _besides(own: str) -> dict[str, str]:
    """What is ignored in an item that has this field itself."""
    return {name: why for name, why in ITEM_IGNORED.items() if name != own}


class InputMessage(Lenient):
    """A message; its `type` may be left out."""

    ignored: ClassVar = _besides("content")

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Text


class ReasoningInput(Lenient):
    """Thinking of an earlier answer, which is not shown to the model again."""

    ignored: ClassVar = ITEM_IGNORED

    type: Literal["reasoning"]


class FunctionCallInput(Lenient):
    """A call that the model made; `arguments` is JSON in a string."""

    ignored: ClassVar = _besides("name")

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(Lenient):
    """What a call gave."""

    ignored: ClassVar = ITEM_IGNORED

    type: Literal["function_call_output"]
    call_id: str
    output: Text


Item = Annotated[
    InputMessage | ReasoningInput | FunctionCallInput | FunctionCallOutput,
    by_type(
        {
            "message": InputMessage,
            "reasoning": ReasoningInput,
            "function_call": FunctionCallInput,
            "function_call_output": FunctionCallOutput,
        },
        _NOT_READ,
        {"item_reference": _STORED, "compaction": "what was compacted elsewhere cannot be read here"},
    ),
]


def _as_items(given: Any) -> Any:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


Input = Annotated[list[Item], Field(min_length=1), BeforeValidator(_as_items, json_schema_input_type=str | list[Item])]


def messages_of(items: list[Item], instructions: str | None) -> list[dict[str, Any]]:
    """The items as messages of a chat: what the model said in one turn becomes one message, thinking left out."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        last = messages[-1] if messages else {}
        if isinstance(item, FunctionCallOutput):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
        elif isinstance(item, FunctionCallInput):
            if last.get("role") != "assistant":
                messages.append(last := {"role": "assistant", "content": None})
            call = {"id": item.call_id, "function": {"name": item.name, "arguments": item.arguments}}
            last.setdefault("tool_calls", []).append(call)
        elif isinstance(item, InputMessage) and item.role == "assistant" and last.get("tool_calls"):
            last["content"] = (last["content"] or "") + item.content
        elif isinstance(item, InputMessage):
            messages.append({"role": item.role, "content": item.content})
    return messages
