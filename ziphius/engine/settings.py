"""What can be said about sampling. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class SamplingSettings(BaseModel):
    """How an answer is drawn. Temperature 0 takes the likeliest token; R1 is evaluated at 0.6 and top-p 0.95."""

    model_config = ConfigDict(extra="forbid")

    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(256, gt=0)
