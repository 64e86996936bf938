"""`POST /v1/chat/completions`. Source: the public API references of DeepSeek and OpenAI. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ziphius.serve.contracts.messages import AssistantMessage, Message
from ziphius.serve.contracts.sampling import Sampling
from ziphius.serve.contracts.strict import Strict
from ziphius.serve.contracts.tools import NamedTool, Tool


class Thinking(Strict):
    """`budget_tokens` ends the thinking after so many tokens."""

    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _thinks(self) -> Thinking:
        if self.type == "disabled" and self.budget_tokens is not None:
            raise ValueError("budget_tokens is for thinking that is enabled")
        return self


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
