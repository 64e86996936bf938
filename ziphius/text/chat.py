"""Rendering a conversation with its chat template."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ziphius.text.template import TOOLS_SECTION

SWITCHES = ("thinking", "enable_thinking")  # what templates call it: V3.1's, Qwen3's
_NAME = "\ufdd0"  # of a function, in a probe
_BEGIN, _END = "\U0001fffe", "\U0001ffff"  # noncharacters, around what `{% generation %}` encloses


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    thinking: bool | None = True,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tools_section: str = TOOLS_SECTION,
) -> str:
    """The text of a conversation, as `transformers.apply_chat_template` would write it.

    The template is code from a checkpoint folder, so it runs in jinja2's immutable sandbox, with the whitespace
    settings transformers uses.

    Args:
        template: jinja2 source, for instance `CHAT_TEMPLATE`.
        messages: mappings with the strings `role` and `content`, oldest first; an assistant's with `tool_calls` may
            have no content. The arguments of a call come as the template wants them, as JSON or as an object.
        thinking: end the generation prompt with an open thinking block (else with a closed one), where the template
            knows such a switch; None leaves it to the template.
        add_generation_prompt: end with the opening of the assistant's next turn.
        tools: functions that the model may call, as the OpenAI API describes them. A template that knows nothing of
            tools is told of them at the end of the system message, by `tools_section`.

    Raises:
        ValueError: a message without a string `role` or `content`, or one the template refuses.
    """
    text, _ = render_spans(
        template,
        messages,
        bos_token=bos_token,
        eos_token=eos_token,
        thinking=thinking,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        tools_section=tools_section,
    )
    return text


def render_spans(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str,
    eos_token: str,
    thinking: bool | None = None,
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tools_section: str = TOOLS_SECTION,
) -> tuple[str, list[tuple[int, int]]]:
    """As `render_chat`, and the spans of the text that the template's `{% generation %}` tags enclose."""
    for index, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str) and not (key == "content" and message.get("tool_calls")):
                raise ValueError(f"message {index} needs a string {key!r}, not {message.get(key)!r}")
    given = {} if thinking is None else dict.fromkeys(SWITCHES, thinking)
    try:
        if tools and not knows(template, "tools"):
            messages, tools = _told_of_tools(messages, tools, tools_section), None
        rendered = _compile(template).render(
            messages=[_as_wanted(message, template) for message in messages],
            tools=tools or None,
            documents=None,
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=add_generation_prompt,
            **given,
        )
    except Exception as error:  # it is another's code: it may add None to a text, divide by 0, call itself for ever
        raise ValueError(f"the chat template refused the conversation: {error}") from error
    if not marks_answers(template):
        return rendered, []
    if any(mark in json.dumps((messages, tools), ensure_ascii=False, default=str) for mark in (_BEGIN, _END)):
        raise ValueError("the messages hold U+1FFFE or U+1FFFF, by which answers are told from the rest; leave it out")
    return _spans(rendered)


@lru_cache(maxsize=64)
def marks_answers(template: str) -> bool:
    """Whether the template says by `{% generation %}` what the model writes."""
    return any(text.data == _BEGIN for text in _parsed(template).find_all(nodes.TemplateData))


@lru_cache(maxsize=64)
def knows(template: str, name: str) -> bool:
    """Whether the template reads a variable of this name."""
    return name in meta.find_undeclared_variables(_parsed(template))


def _spans(rendered: str) -> tuple[str, list[tuple[int, int]]]:
    text, spans = "", []
    for place, piece in enumerate(rendered.split(_BEGIN)):
        inside, end, outside = piece.partition(_END)
        if place and end:
            spans.append((len(text), len(text) + len(inside)))
        text += inside + outside
    return text, spans


def _told_of_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], tools_section: str
) -> list[Mapping[str, Any]]:
    """The messages, the first of them a system message that ends with the section on tools."""
    first, rest = (messages[0], messages[1:]) if messages[0]["role"] == "system" else (None, messages)
    said = first["content"] if first is not None else ""
    section = _compile(tools_section).render(tools=tools, lead=bool(said))
    return [{"role": "system", "content": said + section}, *rest]


def _as_wanted(message: Mapping[str, Any], template: str) -> Mapping[str, Any]:
    """The message with its reasoning under both names in use, and its calls as the template reads them."""
    said = next((message[key] for key in ("reasoning_content", "thinking") if message.get(key) is not None), None)
    if said is not None:
        message = {"thinking": said, **message, "reasoning_content": said}
    if message.get("tool_calls"):
        message = {**calls_as_read(message, template), "content": message["content"] or _nothing(template)}
    return message


def calls_as_read(message: Mapping[str, Any], template: str) -> dict[str, Any]:
    """The message with the arguments of its calls as the template reads them: JSON, or the object that it means.

    To be done before control tokens are made text: JSON spells them in escapes, too.
    """
    if not message.get("tool_calls"):
        return dict(message)
    as_object = reads_objects(template)
    return {**message, "tool_calls": [_call(call, as_object) for call in message["tool_calls"]]}


@lru_cache(maxsize=8)
def _nothing(template: str) -> str | None:
    """The content of a message that only calls: None where the template leaves out the call of another, as V3's."""
    written = _probe(template)
    return None if written is not None and _NAME not in written else ""


def _call(call: Mapping[str, Any], as_object: bool) -> dict[str, Any]:
    function = dict(call.get("function", call))
    arguments = function.get("arguments")
    if as_object and isinstance(arguments, str):
        function["arguments"] = _object_of(arguments)
    elif not as_object and not isinstance(arguments, str):
        function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", **call, "function": function} if "function" in call else function


def _object_of(arguments: str) -> Any:
    """The object that the JSON of some arguments means; the text itself where it means none."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


@lru_cache(maxsize=8)
def reads_objects(template: str) -> bool:
    """Whether the template writes the arguments of a call as JSON itself: it then would write JSON given to it once
    more, in quotation marks."""
    written = _probe(template)
    return written is None or '\\"k\\"' in written


def _probe(template: str) -> str | None:
    """What a template makes of a call whose arguments are JSON; None where it wants an object."""
    call = {"type": "function", "id": "call00000", "function": {"name": _NAME, "arguments": '{"k": "v"}'}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        return _compile(template).render(messages=messages, tools=None, bos_token="", eos_token="")
    except Exception:  # it asks for the items of the object
        return None


class _Generation(Extension):
    """The tag `{% generation %}` … `{% endgeneration %}`, which encloses what the model is to write."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        begin, end = (nodes.Output([nodes.TemplateData(mark)], lineno=line) for mark in (_BEGIN, _END))
        return [begin, nodes.Scope(body, lineno=line), end]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    environment.filters["tojson"] = _to_json  # jinja2's own escapes HTML, transformers' does not
    return environment


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    return _environment().from_string(template)


@lru_cache(maxsize=8)
def _parsed(template: str) -> nodes.Template:
    try:
        return _environment().parse(template)
    except TemplateError as error:
        raise ValueError(f"the chat template is malformed: {error}") from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)
