"""What clients send: strict in what is honoured, lenient in what comes beside it. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import ConfigDict, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from ziphius.serve.contracts.strict import Strict

MAX_UNKNOWN = 64  # fields of one object
_NAME = 64  # characters of a field's name that are repeated
_NOTHING: tuple[Any, ...] = (False, "", [], {})


@dataclass(frozen=True)
class Refused:
    """Why a field is turned away, and the values beside null with which it asks for nothing."""

    why: str
    harmless: tuple[Any, ...] = _NOTHING


class Lenient(Strict):
    """An object of which clients may send more than is honoured here.

    What stands in `refused` would change the answer and is not done: it is turned away unless its value asks for
    nothing. All else that is no field of the object is left out: what stands in `ignored` (with the reason), and what
    nobody here knows. Where `minds_slips` says so, an unknown name that is nearly a field's is turned away too.
    """

    model_config = ConfigDict(extra="ignore")

    ignored: ClassVar[Mapping[str, str]] = {}
    refused: ClassVar[Mapping[str, Refused]] = {}
    minds_slips: ClassVar[bool] = False
    _left_out: tuple[str, ...] = ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """The fields that came with a value and have no effect."""
        return self._left_out

    @model_validator(mode="wrap")
    @classmethod
    def _sift(cls, body: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        left_out = cls._others(body) if isinstance(body, dict) else ()
        made = handler(body)
        if left_out:
            made._left_out = left_out
        return made

    @classmethod
    def _others(cls, body: Mapping[Any, Any]) -> tuple[str, ...]:
        """What of `body` is left out. Raises ValidationError for what is refused."""
        own = {field.alias or name for name, field in cls.model_fields.items()}
        others = [name for name in body if name not in own and body[name] is not None]
        if len(others) > MAX_UNKNOWN:
            raise ValueError(f"{len(others)} fields are none of this object's; leave them out")
        for name in others:
            refused = cls.refused.get(name)
            if refused is not None and not any(_same(body[name], value) for value in refused.harmless):
                raise cls._refusal(name, "unsupported_field", refused.why)
            if refused is None and name not in cls.ignored and cls.minds_slips and (meant := _nearest(name, own)):
                raise cls._refusal(name, "unknown_field", f"there is no such field; {meant} is meant, it seems")
        return tuple(name[:_NAME] for name in others if not any(_same(body[name], value) for value in _NOTHING))

    @classmethod
    def _refusal(cls, name: str, kind: str, why: str) -> ValidationError:
        error = PydanticCustomError(kind, "{why}", {"why": why})
        return ValidationError.from_exception_data(
            cls.__name__, [InitErrorDetails(type=error, loc=(name[:_NAME],), input=None)]
        )


def _same(value: Any, other: Any) -> bool:
    """Equal as JSON is: 0 is not false."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _nearest(name: str, own: set[str]) -> str | None:
    """The field of which `name` looks like a slip of the keyboard, or another way of writing it."""
    plain = {field.replace("_", ""): field for field in own}
    written = name[:_NAME].lower().replace("_", "").replace("-", "")
    found = difflib.get_close_matches(written, plain, n=1, cutoff=0.86)
    return plain[found[0]] if found else None
