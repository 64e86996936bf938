"""The messages of a conversation, as DeepSeek's and OpenAI's chat APIs have them. Imports no torch.

A message comes back as a client keeps it: with fields that only an answer has (`refusal`, `annotations`, `parsed`,
`audio`), with null where nothing is, with its text in parts. What has no part in the conversation is left out.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from ziphius.serve.contracts.fields import ANSWER_IGNORED, ANSWER_REFUSED, CUSTOM_REFUSED, PART_IGNORED
from ziphius.serve.contracts.lenient import Lenient

# Types of content parts, and where their text stands. Thinking of earlier turns is not shown to the model again.
_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")


class TextPart(Lenient):
    ignored: ClassVar = PART_IGNORED

    type: Literal["text"]
    text: str


def _joined(content: Any) -> Any:
    """Text parts as one string; whatever else comes is left for the check of the type."""
    if content is None:
        return ""
    return "".join(map(_text, content)) if isinstance(content, list) else content


def _text(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise ValueError('a part of content is {"type": "text", "text": …}')
    if kind in _THOUGHTS:
        return ""
    if kind not in _TEXTS:
        raise ValueError(f"a part of type {kind[:40]!r} cannot be read: the model reads and writes text alone")
    text = part.get(_TEXTS[kind])
    if not isinstance(text, str):
        raise ValueError(f"a part of type {kind!r} needs the string {_TEXTS[kind]!r}")
    return text


def _written(arguments: Any) -> Any:
    """Arguments as JSON in a string, which some clients have taken apart."""
    return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments


Text = Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[str | TextPart] | None)]
Arguments = Annotated[str, BeforeValidator(_written, json_schema_input_type=str | dict[str, Any])]


class CalledFunction(Lenient):
    name: str
    arguments: Arguments


class ToolCall(Lenient):
    """A call that the model made in an earlier turn; `arguments` is JSON in a string."""

    refused: ClassVar = CUSTOM_REFUSED

    id: str | None = None
    type: Literal["function"] | None = "function"
    function: CalledFunction
    index: int | None = None


class SystemMessage(Lenient):
    role: Literal["system", "developer"]
    content: Text
    name: str | None = None


class UserMessage(Lenient):
    role: Literal["user"]
    content: Text
    name: str | None = None


class AssistantMessage(Lenient):
    """An earlier answer, or, with `prefix`, the beginning of the coming one.

    `reasoning_content` of an earlier answer is not shown to the model again, as DeepSeek has it; that of a prefix
    begins the thinking. A `refusal` stands for the content where there is none.
    """

    ignored: ClassVar = ANSWER_IGNORED
    refused: ClassVar = ANSWER_REFUSED

    role: Literal["assistant"]
    content: Text | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = None
    prefix: bool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> AssistantMessage:
        if self.function_call is not None:  # OpenAI's form of 2023
            if self.tool_calls:
                raise ValueError("function_call and tool_calls say the same thing; give one of them")
            self.tool_calls = [ToolCall(id=self.function_call.name, function=self.function_call)]
        if self.prefix and self.tool_calls:
            raise ValueError("a prefix cannot hold tool_calls")
        return self


class ToolMessage(Lenient):
    role: Literal["tool"]
    content: Text
    tool_call_id: str | None = None
    name: str | None = None


class FunctionMessage(Lenient):
    """What a function gave, in OpenAI's form of 2023: it answers the call of its name."""

    role: Literal["function"]
    content: Text
    name: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage, Field(discriminator="role")
]


def plain_message(message: Message) -> dict[str, Any]:
    """A message as chat templates know it: `content` always, and no other field that is not said."""
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        plain["name"] = message.name
    if isinstance(message, FunctionMessage):
        return plain | {"role": "tool", "tool_call_id": message.name}
    if message.role == "developer":
        plain["role"] = "system"
    elif isinstance(message, ToolMessage):
        plain["tool_call_id"] = message.tool_call_id or ""
    elif isinstance(message, AssistantMessage):
        if not (message.content or message.tool_calls):
            plain["content"] = message.refusal or ""
        if message.tool_calls:
            plain["tool_calls"] = [_plain_call(place, call) for place, call in enumerate(message.tool_calls)]
    return plain


def _plain_call(place: int, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id or f"call_{place}", "type": "function", "function": function}
