"""`POST /v1/messages` and `/v1/messages/count_tokens`: what is asked. Imports no torch.

Source: the types of Anthropic's own client. What is read here and what is passed over stands in docs/SERVING.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ziphius.serve.contracts.anthropic.blocks import Texts, TurnMessage
from ziphius.serve.contracts.lenient import Lenient
from ziphius.serve.contracts.tools import TOOL_NAME

NO_THREADS = "thread_unsupported_request"
_LARGEST = 2**31 - 1


class Thinking(Lenient):
    """`adaptive` and `between_tools`: as the model was taught to. `omitted`: its text is not sent, its signature is."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=1, le=_LARGEST)
    display: Literal["summarized", "omitted"] | None = None


class CustomTool(Lenient):
    """A function that the client runs."""

    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


def _is_custom(tool: Any) -> Any:
    """Refuses by name a tool that Anthropic's servers run, or whose form only their models were taught."""
    if isinstance(tool, dict) and isinstance(kind := tool.get("type"), str) and kind != "custom":
        raise ValueError(
            f"{kind[:64]!r} is a tool of Anthropic's own, which is not offered here; describe a custom one"
        )
    return tool


class ToolChoice(Lenient):
    """`any`: one tool at least; `tool`: the one of that `name`."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _names(self) -> ToolChoice:
        if self.type == "tool" and self.name is None:
            raise ValueError('a choice of type "tool" gives the name of the tool')
        return self


class OutputFormat(Lenient):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Lenient):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Lenient):
    user_id: str | None = Field(None, max_length=512)


class CountRequest(Lenient):
    """`POST /v1/messages/count_tokens`: what a prompt is made of."""

    model: str
    messages: list[TurnMessage] = Field(min_length=1)
    system: Texts | None = None
    thinking: Thinking | None = None
    tools: list[Annotated[CustomTool, BeforeValidator(_is_custom)]] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    mcp_servers: Any = None
    thread: Any = None

    @field_validator("mcp_servers", "thread")
    @classmethod
    def _needs_no_other_server(cls, value: Any, field: ValidationInfo) -> Any:
        """A client that holds its conversation in a thread goes on without one when it reads the code of this error."""
        if value and field.field_name == "thread":
            raise PydanticCustomError(NO_THREADS, "this service keeps no conversations; send all of it each time")
        if value:
            raise ValueError("this service connects to no servers of tools; leave it out")
        return value

    @model_validator(mode="after")
    def _has_one_format(self) -> CountRequest:
        if self.output_format is not None and self.output_config is not None and self.output_config.format is not None:
            raise ValueError("output_format and output_config.format say the same thing; give one of them")
        return self

    @property
    def form(self) -> OutputFormat | None:
        """The form that the answer must have."""
        return self.output_format or (self.output_config.format if self.output_config is not None else None)


class MessagesRequest(CountRequest):
    """`POST /v1/messages`. `max_tokens` and `thinking.budget_tokens` are upper bounds: less where the context ends."""

    max_tokens: int = Field(ge=1, le=_LARGEST)
    stream: bool | None = None
    stop_sequences: list[Annotated[str, Field(min_length=1)]] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_LARGEST)
    metadata: Metadata | None = None
