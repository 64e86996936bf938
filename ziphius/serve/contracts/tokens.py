"""`/tokenize`, `/detokenize`, `/tokenizer_info`. Source: vLLM's API of the same names. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, model_validator

from ziphius.serve.contracts.lenient import Lenient, Refused
from ziphius.serve.contracts.messages import Message
from ziphius.serve.contracts.tools import Tool


class TokenizeRequest(Lenient):
    """A text, or a conversation. With `add_special_tokens` (the default) a text begins with bos, as it is read."""

    refused: ClassVar = {
        "chat_template": Refused("the folder's template is used"),
        "continue_final_message": Refused("a conversation is read with the assistant's turn begun"),
    }

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[Tool] | None = Field(None, max_length=128)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _agrees(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages, one of the two")
        if self.tools and self.messages is None:
            raise ValueError("tools need messages")
        if self.add_generation_prompt is False:
            raise ValueError("add_generation_prompt: a conversation is always read with the assistant's turn begun")
        return self


class Tokens(BaseModel):
    """`max_model_len` is the longest sequence that the model reads and writes."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class TokenizerInfo(BaseModel):
    """What a client needs that has no tokenizer of its own."""

    bos_token: str
    eos_token: str
    chat_template: str


class DetokenizeRequest(Lenient):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, lt=2**31)]]


class DetokenizedText(BaseModel):
    prompt: str
