"""What a recipe can say about evaluation. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class EvaluationSettings(BaseModel):
    """`n` distinct problems of `split`, `samples` answers each at `temperature`, and one greedy answer."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    split: str = "test"
    n: int = Field(512, gt=0)
    samples: int = Field(4, gt=0)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: int = Field(128, gt=0)
    show: int = Field(6, ge=0)
