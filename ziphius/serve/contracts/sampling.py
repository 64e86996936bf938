"""What both kinds of completion share: how much, how many, how it is drawn. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from ziphius.serve.contracts.formats import ResponseFormat
from ziphius.serve.contracts.lenient import Lenient

MAX_CHOICES = 128
MOST = 2**53 - 1  # the largest whole number that every client can write
_MAX_BIASES = 4096
_BIAS_DIGITS = 10
_LABEL = 512  # characters
_LABELS = 16
_WHOLE = ("n", "max_tokens", "max_completion_tokens", "min_tokens", "top_k", "seed", "top_logprobs")


class StreamOptions(Lenient):
    minds_slips: ClassVar = True
    ignored: ClassVar = {
        "include_obfuscation": "nothing is padded",
        "continuous_usage_stats": "usage comes once, at the end",
    }

    include_usage: bool | None = None


def _token_ids(bias: Any) -> Any:
    """JSON has only strings as keys."""
    if not isinstance(bias, dict):
        return bias
    if len(bias) > _MAX_BIASES:
        raise ValueError(f"logit_bias holds {len(bias)} tokens; give at most {_MAX_BIASES}")
    if any(not (key.isascii() and key.isdecimal() and len(key) <= _BIAS_DIGITS) for key in bias):
        raise ValueError('logit_bias maps token ids to numbers, such as {"42": -100}')
    return {int(key): value for key, value in bias.items()}


Bias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_token_ids, json_schema_input_type=dict[str, float]),
]

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Sampling(Lenient):
    """What both kinds of completion share. What is left out comes from the folder's generation_config.json.

    As with other servers, -1 as `top_k` switches it off, and as the longest answer is as good as left out.
    """

    minds_slips: ClassVar = True

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=-1, le=MOST)
    min_tokens: int | None = Field(None, ge=0, le=MOST)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**63)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.001, le=2)
    logit_bias: Bias | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    user_id: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _are_whole(cls, body: Any) -> Any:
        """1.0 is a whole number in JSON."""
        if not isinstance(body, dict):
            return body
        whole = {name: int(x) for name in _WHOLE if isinstance(x := body.get(name), float) and x.is_integer()}
        return body | whole if whole else body

    @model_validator(mode="after")
    def _fits(self) -> Sampling:
        if self.max_tokens == -1:
            self.max_tokens = None
        if self.top_k == -1:
            self.top_k = 0
        if len(self.stops) > 16:
            raise ValueError(f"stop holds {len(self.stops)} strings; give at most 16")
        if "" in self.stops:
            raise ValueError("stop holds an empty string, which would end every answer at once")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def usage_apart(self) -> bool:
        """Whether a stream ends with usage on a chunk of its own."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def labels(self) -> dict[str, Any]:
        """What the client says about the request, for the log."""
        said = {name: getattr(self, name) for name in ("user", "user_id", "safety_identifier")}
        labels: dict[str, Any] = {name: text[:_LABEL] for name, text in said.items() if text is not None}
        if self.metadata:
            pairs = list(self.metadata.items())[:_LABELS]
            labels["metadata"] = {key[:_LABEL]: str(value)[:_LABEL] for key, value in pairs}
        return labels
