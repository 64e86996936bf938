"""The blocks that a message of Anthropic's API is made of. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ziphius.serve.contracts.lenient import Lenient


class TextBlock(Lenient):
    type: Literal["text"]
    text: str


class ThinkingBlock(Lenient):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Lenient):
    type: Literal["redacted_thinking"]


class ToolUseBlock(Lenient):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


def _blocks_of_text(content: Any) -> Any:
    """A string as the one block it stands for."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _is_offered(*types: str) -> BeforeValidator:
    """Refuses a block of another type by its name."""

    def check(block: Any) -> Any:
        if isinstance(block, dict) and isinstance(found := block.get("type"), str) and found not in types:
            raise ValueError(f"{found[:64]!r} is no block that this model can read here; it reads {', '.join(types)}")
        return block

    return BeforeValidator(check)


Texts = Annotated[
    list[Annotated[TextBlock, _is_offered("text")]],
    BeforeValidator(_blocks_of_text, json_schema_input_type=str | list[TextBlock]),
]


class ToolResultBlock(Lenient):
    """What a tool said, or, with `is_error`, why it did not."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: Texts | None = None
    is_error: bool | None = None


SaidBlock = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock
AskedBlock = TextBlock | ToolResultBlock

Said = Annotated[
    list[
        Annotated[
            SaidBlock,
            Field(discriminator="type"),
            _is_offered("text", "thinking", "redacted_thinking", "tool_use"),
        ]
    ],
    BeforeValidator(_blocks_of_text, json_schema_input_type=str | list[SaidBlock]),
]
Asked = Annotated[
    list[Annotated[AskedBlock, Field(discriminator="type"), _is_offered("text", "tool_result")]],
    BeforeValidator(_blocks_of_text, json_schema_input_type=str | list[AskedBlock]),
]


class UserTurn(Lenient):
    role: Literal["user"]
    content: Asked


class AssistantTurn(Lenient):
    """An earlier answer; as the last message, the beginning of the coming one."""

    role: Literal["assistant"]
    content: Said


class SystemTurn(Lenient):
    role: Literal["system"]
    content: Texts


TurnMessage = Annotated[UserTurn | AssistantTurn | SystemTurn, Field(discriminator="role")]
