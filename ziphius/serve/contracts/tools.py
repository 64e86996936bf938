"""The functions that a model may call, and which it must. Imports no torch."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from ziphius.serve.contracts.fields import CUSTOM_REFUSED
from ziphius.serve.contracts.lenient import Lenient

TOOL_NAME = r"^[a-zA-Z0-9_-]{1,128}$"


class Function(Lenient):
    minds_slips: ClassVar = True

    name: str = Field(pattern=TOOL_NAME)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Lenient):
    refused: ClassVar = CUSTOM_REFUSED

    type: Literal["function"]
    function: Function


class NamedFunction(Lenient):
    name: str


class NamedTool(Lenient):
    type: Literal["function"]
    function: NamedFunction
