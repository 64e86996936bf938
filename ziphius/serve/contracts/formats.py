"""The form that an answer must have. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from ziphius.serve.contracts.fields import FORM_IGNORED, FORM_REFUSED
from ziphius.serve.contracts.lenient import Lenient


class AnyFormat(Lenient):
    refused: ClassVar = FORM_REFUSED

    type: Literal["text", "json_object"]


class JsonSchema(Lenient):
    ignored: ClassVar = FORM_IGNORED

    name: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Lenient):
    type: Literal["json_schema"]
    json_schema: JsonSchema


class RegexFormat(Lenient):
    type: Literal["regex"]
    pattern: str = Field(min_length=1)


class GrammarFormat(Lenient):
    """A Lark grammar, as llguidance reads it."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1)


ResponseFormat = Annotated[AnyFormat | JsonSchemaFormat | RegexFormat | GrammarFormat, Field(discriminator="type")]
