"""The messages of a conversation, as DeepSeek's and OpenAI's chat APIs have them. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ziphius.serve.contracts.strict import Strict


class TextPart(Strict):
    type: Literal["text"]
    text: str


def _joined(content: Any) -> Any:
    """Text parts as one string; whatever else comes is left for the check of the type."""
    if isinstance(content, list):
        return "".join(TextPart.model_validate(part).text for part in content)
    return content


Text = Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart])]


class CalledFunction(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    """A call that the model made in an earlier turn; `arguments` is JSON in a string."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Text


class UserMessage(Strict):
    role: Literal["user"]
    content: Text


class AssistantMessage(Strict):
    """An earlier answer, or, with `prefix`, the beginning of the coming one.

    `reasoning_content` of an earlier answer is not shown to the model again, as DeepSeek has it; that of a prefix
    begins the thinking.
    """

    role: Literal["assistant"]
    content: Text | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None
    prefix: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> AssistantMessage:
        if self.content is None and not self.tool_calls and self.reasoning_content is None:
            raise ValueError("an assistant message needs content or tool_calls")
        if self.prefix and self.tool_calls:
            raise ValueError("a prefix cannot hold tool_calls")
        return self


class ToolMessage(Strict):
    role: Literal["tool"]
    content: Text
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


def plain_message(message: Message) -> dict[str, Any]:
    """A message as chat templates know it: no field that is not said, `content` always."""
    plain = message.model_dump(include={"role", "content", "tool_call_id"})
    if plain["role"] == "developer":
        plain["role"] = "system"
    if isinstance(message, AssistantMessage) and message.tool_calls:
        plain["tool_calls"] = [call.model_dump(exclude={"index"}) for call in message.tool_calls]
    return plain
