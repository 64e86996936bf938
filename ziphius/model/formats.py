"""Number formats that weights may have in memory. Imports no torch."""

from __future__ import annotations

from typing import Literal

Weights = Literal["auto", "fp32", "bf16", "int8", "fp8"]
Stored = Literal["fp32", "bf16"]
