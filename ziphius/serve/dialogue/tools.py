"""Tool calls that must come, or must be right: a grammar for them, in the model's own form. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ziphius.engine.settings import JSON_WHITESPACE, Constraint
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.formats import AnyFormat, JsonSchemaFormat
from ziphius.serve.contracts.tools import NamedTool, Tool
from ziphius.serve.dialogue.forms import form_of
from ziphius.serve.dialogue.forms.form import CallForm
from ziphius.text.tokenizer import Tokenizer

_ANY = {"type": "object"}


def tool_settings(asked: ChatRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tools`, `tool_choice` and `parallel_tool_calls` mean to the engine: settings, a constraint among them.

    Raises ApiError where the tokenizer has no tokens for calls, or a format that calls cannot be combined with.
    """
    if not asked.tools:
        return {}
    form = form_of(tokenizer)
    if form is None:
        raise ApiError(422, "tools: this model has no form of tool calls that is known here", param="tools")
    if asked.tool_choice == "none":
        begins = [token for token in (form.calls_begin, form.call_begin) if token is not None]
        return {"logit_bias": dict.fromkeys(begins, -100.0)}
    one = asked.parallel_tool_calls is False
    must = asked.tool_choice == "required" or isinstance(asked.tool_choice, NamedTool)
    allowed = asked.tools
    if isinstance(asked.tool_choice, NamedTool):
        allowed = [tool for tool in asked.tools if tool.function.name == asked.tool_choice.function.name]
    shaped = asked.response_format is not None and asked.response_format.type != "text"
    if must or shaped or any(tool.function.strict for tool in asked.tools):
        text = _grammar(form, allowed, one or isinstance(asked.tool_choice, NamedTool), must, _answer(asked))
        return {"constraint": Constraint(kind="grammar", text=text)}
    return {"stop_token_ids": (form.call_end,)} if one and form.call_end is not None else {}


def _answer(asked: ChatRequest) -> str:
    """What may be said instead of, or before, a call: a rule's body."""
    form = asked.response_format
    if form is None or form.type == "text":
        return r"/(.|\n)*/"
    if isinstance(form, JsonSchemaFormat):
        return _json(form.json_schema.schema_)
    if isinstance(form, AnyFormat):
        return _json(_ANY)
    raise ApiError(422, f"response_format {form.type!r} cannot be combined with tools", param="response_format")


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({"x-guidance": {"whitespace_pattern": JSON_WHITESPACE}} | dict(schema))


def _grammar(form: CallForm, tools: Sequence[Tool], one: bool, must: bool, answer: str) -> str:
    """In llguidance's Lark, where `<[7]>` is the token 7."""
    shaped = answer.startswith("%json")
    start = "calls" if must else "answer | calls" if shaped else "answer calls?"
    lines = [
        f"start: {start}",
        f"calls: {_token(form.calls_begin)} {'call' if one or form.bare else 'call+'} {_token(form.calls_end)}",
        "call: " + " | ".join(f"call_{place}" for place in range(len(tools))),
    ]
    if not must:
        lines.append(f"answer: {answer}")
    for place, tool in enumerate(tools):
        before, after = _around(form, tool.function.name)
        begin, end = _token(form.call_begin), _token(form.call_end)
        lines.append(f"call_{place}: {begin} {before} args_{place} {after} {end}")
        lines.append(f"args_{place}: {_json(tool.function.parameters or _ANY)}")
    return "\n".join(lines) + "\n"


def _around(form: CallForm, name: str) -> tuple[str, str]:
    """What stands before and after the arguments of a call, in Lark."""
    if form.key is None:
        return f"{json.dumps(name)} {_token(form.sep)}", ""
    lead = f'{form.gap}{{"name": {json.dumps(name)}, {json.dumps(form.key)}: '
    return json.dumps(lead), json.dumps("}" + form.gap)


def _token(id: int | None) -> str:
    return "" if id is None else f"<[{id}]>"
