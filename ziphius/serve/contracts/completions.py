"""`POST /v1/completions`. Source: OpenAI's API reference, and DeepSeek's for the middle. Imports no torch."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from ziphius.serve.contracts.fields import COMPLETION_IGNORED, COMPLETION_REFUSED
from ziphius.serve.contracts.sampling import MAX_CHOICES, Sampling


class CompletionRequest(Sampling):
    """`POST /v1/completions`: a text continued as it stands, or, with `suffix`, what stands between the two.

    `prompt` is a text, its token ids, or a list of either. In texts the special tokens are read as such. With
    `max_tokens` 0 nothing is written: with `echo` and `logprobs` that scores a prompt.
    """

    ignored: ClassVar = COMPLETION_IGNORED
    refused: ClassVar = COMPLETION_REFUSED

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
