"""What a client may ask: DeepSeek's and OpenAI's fields, and refusals by name for everything else. Imports no torch.

Source: the public API references of DeepSeek (chat completion, FIM completion) and OpenAI (chat, completions).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MAX_CHOICES = 128


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


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


class Function(Strict):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class AnyFormat(Strict):
    type: Literal["text", "json_object"]


class JsonSchema(Strict):
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Strict):
    type: Literal["regex"]
    pattern: str = Field(min_length=1)


class GrammarFormat(Strict):
    """A Lark grammar, as llguidance reads it."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1)


ResponseFormat = Annotated[AnyFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")]


class StreamOptions(Strict):
    include_usage: bool = False


class Thinking(Strict):
    """`budget_tokens` ends the thinking after so many tokens."""

    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _thinks(self) -> Thinking:
        if self.type == "disabled" and self.budget_tokens is not None:
            raise ValueError("budget_tokens is for thinking that is enabled")
        return self


def _token_ids(bias: Any) -> Any:
    """JSON has only strings as keys."""
    if not isinstance(bias, dict):
        return bias
    if any(not (isinstance(key, str) and key.isascii() and key.isdecimal()) for key in bias):
        raise ValueError('logit_bias maps token ids to numbers, such as {"42": -100}')
    return {int(key): value for key, value in bias.items()}


Bias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_token_ids, json_schema_input_type=dict[str, float]),
]


class Sampling(Strict):
    """What both kinds of completion share. What is left out comes from the folder's generation_config.json."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    logit_bias: Bias | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=64)
    response_format: ResponseFormat | None = None
    user: str | None = Field(None, max_length=512)

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, body: Any) -> Any:
        """JSON can spell half of a surrogate pair, which is no character and which nothing behind this can write."""
        if not isinstance(body, dict):
            return body
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise ValueError(f"the body holds \\u{ord(half):04x}, one half of a surrogate pair alone") from None
        except RecursionError:
            raise ValueError("the body is nested too deeply") from None
        return body

    @model_validator(mode="after")
    def _fits(self) -> Sampling:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if len(self.stops) > 16:
            raise ValueError(f"stop holds {len(self.stops)} strings; give at most 16")
        if "" in self.stops:
            raise ValueError("stop holds an empty string, which would end every answer at once")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    thinking: Thinking | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice needs tools")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is not among the tools")
        if self.thinking is not None and self.reasoning_effort is not None:
            raise ValueError("thinking and reasoning_effort say the same thing; give one of them")
        prefixes = [i for i, m in enumerate(self.messages) if isinstance(m, AssistantMessage) and m.prefix]
        if prefixes and prefixes != [len(self.messages) - 1]:
            raise ValueError(f"messages.{prefixes[0]}: only the last message can be a prefix")
        if isinstance(self.messages[-1], AssistantMessage) and not prefixes:
            raise ValueError(
                'the last message is the assistant\'s; add a user message, or "prefix": true to go on with it'
            )
        return self

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Sampling):
    """`POST /v1/completions`: a text continued as it stands, or, with `suffix`, what stands between the two.

    `prompt` is a text, its token ids, or a list of either. In texts the special tokens are read as such.
    """

    prompt: str | list[str] | list[int] | list[list[int]]
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=5)

    @model_validator(mode="after")
    def _agrees(self) -> CompletionRequest:
        if not self.prompts:
            raise ValueError("prompt is an empty list")
        if len(self.prompts) * (self.n or 1) > MAX_CHOICES:
            raise ValueError(f"{len(self.prompts)} prompts × n exceed {MAX_CHOICES} answers; send fewer at once")
        if self.suffix is not None and not all(isinstance(prompt, str) for prompt in self.prompts):
            raise ValueError("suffix needs a prompt of text, not of token ids")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not offered: the log-probabilities of a prompt are not kept")
        if self.echo and self.suffix is not None:
            raise ValueError("echo and suffix cannot be combined")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt, whatever the form it came in."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[int(token) for token in self.prompt]]
        return list(self.prompt)  # type: ignore[arg-type]


def plain_message(message: Message) -> dict[str, Any]:
    """A message as chat templates know it: no field that is not said, `content` always."""
    plain = message.model_dump(include={"role", "content", "tool_call_id"})
    if plain["role"] == "developer":
        plain["role"] = "system"
    if isinstance(message, AssistantMessage) and message.tool_calls:
        plain["tool_calls"] = [call.model_dump(exclude={"index"}) for call in message.tool_calls]
    return plain
