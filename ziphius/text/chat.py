"""Rendering a conversation with its chat template."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ziphius.text.template import TOOLS_SECTION


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    thinking: bool | None = True,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The text of a conversation, as `transformers.apply_chat_template` would write it.

    The template is code from a checkpoint folder, so it runs in jinja2's immutable sandbox, with the whitespace
    settings transformers uses.

    Args:
        template: jinja2 source, for instance `CHAT_TEMPLATE`.
        messages: mappings with the strings `role` and `content`, oldest first; an assistant's with `tool_calls` may
            have no content.
        thinking: end the generation prompt with an open thinking block (else with a closed one); None leaves it to
            the template.
        add_generation_prompt: end with the opening of the assistant's next turn.
        tools: functions that the model may call, as the OpenAI API describes them. A template that knows nothing of
            tools is told of them at the end of the system message.

    Raises:
        ValueError: a message without a string `role` or `content`, or one the template refuses.
    """
    for index, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str) and not (key == "content" and message.get("tool_calls")):
                raise ValueError(f"message {index} needs a string {key!r}, not {message.get(key)!r}")
    given = {} if thinking is None else {"thinking": thinking}
    try:
        if tools and not _knows_tools(template):
            messages, tools = _told_of_tools(messages, tools), None
        return _compile(template).render(
            messages=messages,
            tools=tools or None,
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            **given,
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refused the conversation: {error}") from error


def _told_of_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The messages, the first of them a system message that ends with the section on tools."""
    first, rest = (messages[0], messages[1:]) if messages[0]["role"] == "system" else (None, messages)
    said = first["content"] if first is not None else ""
    section = _compile(TOOLS_SECTION).render(tools=tools, lead=bool(said))
    return [{"role": "system", "content": said + section}, *rest]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json  # jinja2's own escapes HTML, transformers' does not
    return environment


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    return _environment().from_string(template)


@lru_cache(maxsize=8)
def _knows_tools(template: str) -> bool:
    return "tools" in meta.find_undeclared_variables(_environment().parse(template))


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)
