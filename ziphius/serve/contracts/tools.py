"""The functions that a model may call, and which it must. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ziphius.serve.contracts.strict import Strict

TOOL_NAME = r"^[a-zA-Z0-9_-]{1,128}$"


class Function(Strict):
    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction
