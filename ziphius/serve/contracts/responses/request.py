"""`POST /v1/responses`: what is asked, and the same as a chat request. Imports no torch.

Source: `openai.types.responses.ResponseCreateParams`. The switches of sampling that chat knows beyond OpenAI's are
known here, too.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from ziphius.serve.contracts.chat import ChatRequest, Effort
from ziphius.serve.contracts.formats import AnyFormat, GrammarFormat, JsonSchema, RegexFormat
from ziphius.serve.contracts.lenient import Lenient
from ziphius.serve.contracts.responses.fields import (
    CHAT_NAMES,
    LOGPROBS,
    RESPONSE_IGNORED,
    RESPONSE_REFUSED,
    TOOL_IGNORED,
    in_these_words,
)
from ziphius.serve.contracts.responses.items import Input, by_type, messages_of
from ziphius.serve.contracts.sampling import Sampling
from ziphius.serve.contracts.tools import Function

_FUNCTIONS = "this tool is not offered; describe a function, which is called on your side"
_PASSED_ON = (
    "model", "stream", "user", "user_id", "safety_identifier", "metadata", "temperature", "top_p", "top_k", "min_p",
    "min_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "seed", "stop",
    "stop_token_ids", "ignore_eos", "parallel_tool_calls",
)  # fmt: skip


class FunctionTool(Function):
    """A function in the flat form of this API."""

    ignored: ClassVar = TOOL_IGNORED

    type: Literal["function"]


class NamedFunctionTool(Lenient):
    type: Literal["function"]
    name: str


class AllowedTools(Lenient):
    """Some of the tools, which are all that the model is told of."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Annotated[NamedFunctionTool, by_type({"function": NamedFunctionTool}, _FUNCTIONS)]] = Field(
        min_length=1
    )


class FlatJsonSchema(JsonSchema):
    """A form whose schema stands beside its name."""

    type: Literal["json_schema"]


class TextSettings(Lenient):
    """The form of the answer: OpenAI's three, and chat's regex and grammar."""

    ignored: ClassVar = {"verbosity": "the model knows no such switch; say it in a message"}

    format: (
        Annotated[
            AnyFormat | FlatJsonSchema | RegexFormat | GrammarFormat,
            by_type(
                {
                    "text": AnyFormat,
                    "json_object": AnyFormat,
                    "json_schema": FlatJsonSchema,
                    "regex": RegexFormat,
                    "grammar": GrammarFormat,
                },
                "there is no such form; text, json_object, json_schema, regex and grammar are offered",
            ),
        ]
        | None
    ) = None


class ReasoningSettings(Lenient):
    """`effort` as chat's `reasoning_effort`; where a summary is wanted, the thinking stands in its place, whole."""

    ignored: ClassVar = {"context": "earlier thinking is not shown to the model again", "mode": "there is one mode"}

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(Sampling):
    """`POST /v1/responses`."""

    ignored: ClassVar = RESPONSE_IGNORED
    refused: ClassVar = RESPONSE_REFUSED
    _chat: ChatRequest = PrivateAttr()

    input: Input
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=2**53 - 1)
    include: list[str] | None = Field(None, max_length=64)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    tools: list[Annotated[FunctionTool, by_type({"function": FunctionTool}, _FUNCTIONS)]] | None = Field(
        None, max_length=128
    )
    tool_choice: (
        Annotated[
            Literal["none", "auto", "required"] | NamedFunctionTool | AllowedTools,
            by_type({"function": NamedFunctionTool, "allowed_tools": AllowedTools}, _FUNCTIONS, word=True),
        ]
        | None
    ) = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = Field(None, max_length=64)
    prompt_cache_key: str | None = None

    @model_validator(mode="after")
    def _reads_as_chat(self) -> Self:
        if self.n not in (None, 1):
            raise ValueError("n: a response holds one answer; ask again for another")
        for name in ("max_tokens", "response_format"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: it is called {CHAT_NAMES[name]} here")
        try:
            self._chat = ChatRequest.model_validate(self._as_chat())
        except ValidationError as error:
            raise ValueError(in_these_words(str(error.errors()[0]["msg"]).removeprefix("Value error, "))) from None
        return self

    @property
    def chat(self) -> ChatRequest:
        """The same request, as chat has it."""
        return self._chat

    @property
    def with_summary(self) -> bool:
        """Whether the thinking shall stand in the place of a summary, too."""
        return self.reasoning is not None and bool(self.reasoning.summary or self.reasoning.generate_summary)

    def _as_chat(self) -> dict[str, Any]:
        chat = {name: value for name in _PASSED_ON if (value := getattr(self, name)) is not None}
        if "logit_bias" in chat:
            chat["logit_bias"] = {str(token): bias for token, bias in chat["logit_bias"].items()}
        chat["messages"] = messages_of(self.input, self.instructions)
        if not chat["messages"]:
            raise ValueError("input holds thinking alone; send the messages, too")
        chat["max_tokens"] = self.max_output_tokens
        chat["reasoning_effort"] = self.reasoning and self.reasoning.effort
        if self.text is not None and self.text.format is not None:
            chat["response_format"] = _nested(self.text.format)
        if self.top_logprobs or LOGPROBS in (self.include or ()):
            chat |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        return chat | self._tools()

    def _tools(self) -> dict[str, Any]:
        tools, choice = self.tools or [], self.tool_choice
        if isinstance(choice, AllowedTools):
            names = {tool.name for tool in choice.tools}
            tools, choice = [tool for tool in tools if tool.name in names], choice.mode
            if len(tools) < len(names):
                raise ValueError("tool_choice allows a tool that is not among the tools")
        if isinstance(choice, NamedFunctionTool):
            chosen: Any = {"type": "function", "function": {"name": choice.name}}
        else:
            chosen = None if choice == "auto" else choice  # what holds without it
        functions = [tool.model_dump(exclude={"type"}, exclude_none=True) for tool in tools]
        return {"tools": [{"type": "function", "function": function} for function in functions] or None} | (
            {"tool_choice": chosen} if chosen is not None else {}
        )


def _nested(form: AnyFormat | FlatJsonSchema | RegexFormat | GrammarFormat) -> dict[str, Any]:
    """A form as chat has it, where the schema stands one level deeper."""
    flat = form.model_dump(by_alias=True, exclude_none=True)
    if not isinstance(form, FlatJsonSchema):
        return flat
    return {"type": flat.pop("type"), "json_schema": flat}
