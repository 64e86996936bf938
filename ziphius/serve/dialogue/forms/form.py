"""What tells the forms of a tool call apart."""

from __future__ import annotations

from dataclasses import dataclass

from ziphius.serve.dialogue.forms.json_call import JsonCall


@dataclass(frozen=True)
class CallForm:
    """Ids of the tokens around a call, None where the form has none.

    `calls_begin` and `calls_end` enclose all calls of a turn, `call_begin` and `call_end` one; `sep` parts its name
    from its arguments. A form with a `key` writes a call as a JSON object of the name and, under that key, the
    arguments; with no token before it (`bare`), one that an answer begins with is a call. Tokens in `silent` say
    nothing.
    """

    calls_begin: int | None = None
    calls_end: int | None = None
    call_begin: int | None = None
    call_end: int | None = None
    sep: int | None = None
    key: str | None = None
    gap: str = ""  # what stands around the object
    silent: frozenset[int] = frozenset()

    @property
    def bare(self) -> bool:
        return self.key is not None and self.call_begin is None

    def reader(self) -> JsonCall | None:
        """Of one call, in a form that is JSON."""
        return None if self.key is None else JsonCall(strict=self.bare)
