"""`POST /v1/chat/completions`. Source: the public API references of DeepSeek and OpenAI. Imports no torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ziphius.serve.contracts.fields import CHAT_IGNORED, CHAT_REFUSED
from ziphius.serve.contracts.lenient import Lenient
from ziphius.serve.contracts.messages import AssistantMessage, Message
from ziphius.serve.contracts.sampling import MOST, Sampling
from ziphius.serve.contracts.tools import Function, NamedFunction, NamedTool, Tool

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra"]


class Thinking(Lenient):
    """`budget_tokens` ends the thinking after so many tokens."""

    minds_slips: ClassVar = True

    type: Literal["enabled", "disabled"]
    budget_tokens: int | None = Field(None, ge=1, le=MOST)

    @model_validator(mode="after")
    def _thinks(self) -> Thinking:
        if self.type == "disabled" and self.budget_tokens is not None:
            raise ValueError("budget_tokens is for thinking that is enabled")
        return self


class TemplateSwitches(Lenient):
    """What vLLM and SGLang hand on to the template; both switch thinking."""

    minds_slips: ClassVar = True

    thinking: bool | None = None
    enable_thinking: bool | None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`.

    `functions` and `function_call` are OpenAI's form of 2023: they become `tools` and `tool_choice`, and calls are
    answered in that form too (`old_calls`).
    """

    ignored: ClassVar = CHAT_IGNORED
    refused: ClassVar = CHAT_REFUSED
    _old_calls: bool = False

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=-1, le=MOST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    thinking: Thinking | None = None
    reasoning_effort: Effort | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: TemplateSwitches | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = Field(None, max_length=128)
    function_call: Literal["none", "auto"] | NamedFunction | None = None

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if 0 in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens is 0; a turn needs one token at least")
        if self.max_completion_tokens == -1:
            self.max_completion_tokens = None
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        self._read_functions()
        self._check_tools()
        if len(self._switches) > 1:
            raise ValueError("thinking is switched on and off at once; leave out thinking or reasoning_effort")
        self._check_end()
        return self

    def _read_functions(self) -> None:
        if self._old_calls or (self.functions is None and self.function_call is None):
            return  # a request that has been read may be looked at again
        if self.tools or self.tool_choice is not None:
            raise ValueError("functions and tools say the same thing; give one of them")
        self.tools = [Tool(type="function", function=function) for function in self.functions or []]
        if isinstance(self.function_call, NamedFunction):
            self.tool_choice = NamedTool(type="function", function=self.function_call)
        else:
            self.tool_choice = self.function_call
        self.parallel_tool_calls, self._old_calls = False, True

    def _check_tools(self) -> None:
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is not among the tools")

    def _check_end(self) -> None:
        """A conversation ends with what is to be answered, or with the beginning of the answer."""
        last = self.messages[-1]
        if self.continue_final_message:
            if not isinstance(last, AssistantMessage):
                raise ValueError("continue_final_message needs an assistant message at the end")
            last.prefix = True
        elif self.add_generation_prompt is False:
            raise ValueError("add_generation_prompt: false needs continue_final_message: true")
        for place, message in enumerate(self.messages[:-1]):
            if isinstance(message, AssistantMessage) and message.prefix:
                raise ValueError(f"messages.{place}: only the last message can be a prefix")
        begun = isinstance(last, AssistantMessage) and last.prefix
        if begun and last.content is None and last.reasoning_content is None:
            raise ValueError("a prefix needs content or reasoning_content")

    @property
    def _switches(self) -> set[bool]:
        """What the fields that switch thinking say."""
        kwargs = self.chat_template_kwargs or TemplateSwitches()
        said: list[Any] = [self.enable_thinking, kwargs.thinking, kwargs.enable_thinking]
        if self.thinking is not None:
            said.append(self.thinking.type == "enabled")
        if self.reasoning_effort is not None:
            said.append(self.reasoning_effort != "none")
        return {switch for switch in said if switch is not None}

    @property
    def thinks(self) -> bool | None:
        """Whether thinking is wanted; None where nothing is said."""
        return next(iter(self._switches), None)

    @property
    def old_calls(self) -> bool:
        """Whether calls are answered as `function_call`."""
        return self._old_calls

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
