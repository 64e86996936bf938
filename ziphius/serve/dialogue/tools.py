"""Tool calls that must come, or must be right: a grammar for them, in the tokens of V3.1's form. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ziphius.engine.settings import JSON_WHITESPACE, Constraint
from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.contracts.formats import AnyFormat, JsonSchemaFormat
from ziphius.serve.contracts.tools import NamedTool, Tool
from ziphius.text import tokens
from ziphius.text.tokenizer import Tokenizer

_ANY = {"type": "object"}


def tool_settings(asked: ChatRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tools`, `tool_choice` and `parallel_tool_calls` mean to the engine: settings, a constraint among them.

    Raises ApiError where the tokenizer has no tokens for calls, or a format that calls cannot be combined with.
    """
    if not asked.tools:
        return {}
    found = {name: tokenizer.inner.token_to_id(name) for name in tokens.TOOLS}
    ids = {name: id for name, id in found.items() if id is not None}
    if len(ids) < len(found):
        raise ApiError(422, "tools: this model's tokenizer has no tokens for tool calls", param="tools")
    if asked.tool_choice == "none":
        return {"logit_bias": dict.fromkeys((ids[tokens.CALLS_BEGIN], ids[tokens.CALL_BEGIN]), -100.0)}
    one = asked.parallel_tool_calls is False
    must = asked.tool_choice == "required" or isinstance(asked.tool_choice, NamedTool)
    allowed = asked.tools
    if isinstance(asked.tool_choice, NamedTool):
        allowed = [tool for tool in asked.tools if tool.function.name == asked.tool_choice.function.name]
    shaped = asked.response_format is not None and asked.response_format.type != "text"
    if must or shaped or any(tool.function.strict for tool in asked.tools):
        text = _grammar(ids, allowed, one or isinstance(asked.tool_choice, NamedTool), must, _answer(asked))
        return {"constraint": Constraint(kind="grammar", text=text)}
    return {"stop_token_ids": (ids[tokens.CALL_END],)} if one else {}


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


def _grammar(ids: dict[str, int], tools: Sequence[Tool], one: bool, must: bool, answer: str) -> str:
    """In llguidance's Lark, where `<[7]>` is the token 7."""
    mark = {name: f"<[{id}]>" for name, id in ids.items()}
    shaped = answer.startswith("%json")
    start = "calls" if must else "answer | calls" if shaped else "answer calls?"
    lines = [
        f"start: {start}",
        f"calls: {mark[tokens.CALLS_BEGIN]} call{'' if one else '+'} {mark[tokens.CALLS_END]}",
        "call: " + " | ".join(f"call_{place}" for place in range(len(tools))),
    ]
    if not must:
        lines.append(f"answer: {answer}")
    for place, tool in enumerate(tools):
        begin, sep, end = mark[tokens.CALL_BEGIN], mark[tokens.TOOL_SEP], mark[tokens.CALL_END]
        lines.append(f"call_{place}: {begin} {json.dumps(tool.function.name)} {sep} args_{place} {end}")
        lines.append(f"args_{place}: {_json(tool.function.parameters or _ANY)}")
    return "\n".join(lines) + "\n"
