"""What can be said about sampling and about the engine. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Between the parts of JSON: a blank, or a line break and an indent. Free to write blanks, a model may never stop.
JSON_WHITESPACE = r" |\n {0,16}"
MOST_LOGPROBS = 64  # alternatives a token
_INT32 = 2**31 - 1

Bias = Annotated[float, Field(ge=-1e6, le=1e6)]


class Constraint(BaseModel):
    """A form that the answer must have; thinking is never bound by it.

    `text` is a JSON schema, a regular expression or a Lark grammar (llguidance's dialect); `json` asks for any JSON
    object and has none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["json", "json_schema", "regex", "grammar"]
    text: str = ""

    @model_validator(mode="after")
    def _has_text(self) -> Constraint:
        if (self.kind == "json") == bool(self.text):
            raise ValueError(f"a constraint of kind {self.kind!r} {'takes no' if self.text else 'needs a'} text")
        return self


class SamplingSettings(BaseModel):
    """How an answer is drawn. R1 is evaluated at temperature 0.6 and top-p 0.95.

    - `temperature` 0, or below 1e-5, takes the likeliest token.
    - `top_k` (0: all), `top_p`, `min_p` cut the tail in this order; a token as likely as the last one kept stays too.
    - `presence_penalty` and `frequency_penalty` count the answer's tokens, `repetition_penalty` the prompt's as well.
    - `seed`: the same request gives the same tokens. None takes another seed each time.
    - `stop` strings are looked for in the answer, not in the thinking nor in the whitespace behind it;
      `stop_token_ids` end the answer like its end token. Neither does before `min_tokens`.
    - `max_new_tokens` counts thinking and answer; with 0 the prompt is read and nothing drawn. `thinking_budget` ends
      the thinking after so many tokens, and so leaves the rest to the answer.
    - `logprobs`: how many likeliest alternatives come back with each token (its own log-probability always does).
    - `ignore_eos`: go on past the model's end token.

    Numbers are finite and within what tensors hold, lists no longer than a step can look through for each token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=_INT32)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=1e-3, le=10)
    logit_bias: dict[int, Bias] = Field(default_factory=dict, max_length=4096)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: tuple[Annotated[str, Field(max_length=4096)], ...] = Field((), max_length=64)
    stop_token_ids: tuple[int, ...] = Field((), max_length=1024)
    min_tokens: int = Field(0, ge=0, le=_INT32)
    max_new_tokens: int = Field(256, ge=0, le=_INT32)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    thinking_budget: int | None = Field(None, ge=0, le=_INT32)
    constraint: Constraint | None = None
    ignore_eos: bool = False

    @model_validator(mode="after")
    def _fits(self) -> SamplingSettings:
        if "" in self.stop:
            raise ValueError("stop holds an empty string, which would end every answer at once; leave it out")
        if self.min_tokens > self.max_new_tokens:
            raise ValueError(f"min_tokens ({self.min_tokens}) exceeds max_new_tokens ({self.max_new_tokens})")
        if self.thinking_budget is not None and self.thinking_budget + 1 >= self.max_new_tokens:
            raise ValueError(
                f"thinking_budget ({self.thinking_budget}) leaves no room for an answer within max_new_tokens "
                f"({self.max_new_tokens}); lower it, or raise max_new_tokens"
            )
        return self


class EngineSettings(BaseModel):
    """Size and habits of an engine.

    - `memory_gib` sizes the latent cache, `blocks` says it outright; with neither, there is room for `max_rows`
      sequences of the model's full length, at most 1 GiB. A block holds `block_size` tokens.
    - `max_batch_tokens` of prompts and answers go through the network in one step; longer prompts are read in chunks.
    - `step_seconds`: prompts are read in chunks so small that a step takes about so long, for others wait meanwhile.
      Chunks then follow the clock, and the rounding of one run may differ from that of the next.
    - `max_rows` sequences run at once.
    - `prefix_cache`: keep what was computed for those who begin with the same tokens.
    - `speculation`: how many tokens the model's own prediction module drafts each step; `auto` drafts as many as pay,
      on this machine and for these answers, or none.
    - `batch_invariant`: see below.
    - `grammar_seconds` of processor time a constraint may take to prepare, and again to say what may come next;
      `grammar_mib` of memory. Those that nobody uses are kept for seconds, up to `grammar_cache_mib`; all together may
      take `grammars_mib`, beyond which the largest goes. One that breaks a limit fails its own requests alone.

    What is guaranteed: with a seed, an answer's random numbers depend on seed, sample and place alone, and drafts,
    chunks, preemption, cached prefixes and neighbours change nothing in what is asked of the network. What remains is
    the rounding of its matrix products, whose order can follow the number of tokens in a step: two tokens within a
    rounding of each other may swap. `batch_invariant` rules that out too: tokens go through the network one by one
    unless its kernels give each token the same bits in any company, so that the same request gives the same tokens
    always, at the cost of speed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory_gib: float | None = Field(None, gt=0)
    blocks: int | None = Field(None, gt=0)
    block_size: int = Field(16, gt=0)
    max_batch_tokens: int = Field(2048, gt=0)
    step_seconds: float | None = Field(None, gt=0)
    max_rows: int = Field(256, gt=0)
    prefix_cache: bool = True
    speculation: Literal["auto", "off"] | int = "auto"
    batch_invariant: bool = False
    grammar_seconds: float = Field(2.0, gt=0)
    grammar_mib: int = Field(128, ge=8)
    grammar_cache_mib: int = Field(128, ge=0)
    grammars_mib: int = Field(1024, ge=32)

    @model_validator(mode="after")
    def _fits(self) -> EngineSettings:
        if self.memory_gib is not None and self.blocks is not None:
            raise ValueError("give memory_gib or blocks, not both")
        if isinstance(self.speculation, int) and not 1 <= self.speculation <= 16:
            raise ValueError(f"speculation is {self.speculation}; it must be 'auto', 'off' or 1 to 16 drafted tokens")
        drafted = self.speculation if isinstance(self.speculation, int) else 0
        if self.max_batch_tokens < self.max_rows * (1 + drafted):
            raise ValueError(
                f"max_batch_tokens ({self.max_batch_tokens}) is below the {self.max_rows * (1 + drafted)} that "
                f"max_rows ({self.max_rows}) answers bring in a step; raise it or lower max_rows"
            )
        return self
