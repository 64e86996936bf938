"""What both kinds of completion share: how much, how many, how it is drawn. Imports no torch."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from ziphius.serve.contracts.formats import ResponseFormat
from ziphius.serve.contracts.strict import Strict

MAX_CHOICES = 128


class StreamOptions(Strict):
    include_usage: bool = False


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
