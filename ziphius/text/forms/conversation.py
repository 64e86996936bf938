"""A conversation as every form gives it: messages as the OpenAI API has them, thinking apart from what is said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ziphius.text.tokens import END_THINK, THINK

Message = dict[str, Any]

_ROLES = {
    **{name: "system" for name in ("system", "developer")},
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "chatgpt", "model", "bot", "function_call")},
    **{name: "tool" for name in ("tool", "function", "observation")},
}


@dataclass(frozen=True)
class Conversation:
    """`messages`, oldest first, and the `tools` that the model was told of.

    A message has `role` (system, user, assistant or tool) and `content`, a string; an assistant's may have
    `reasoning_content`, and `tool_calls` whose arguments are a JSON text; a tool's may have `name` and `tool_call_id`.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """All that is said in it, for comparing it with other texts."""
        parts = [part for m in self.messages for part in (m.get("reasoning_content"), m["content"], *_said(m)) if part]
        return "\n".join(parts)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked in it, or nothing is answered."""
        asked = any(m["role"] != "assistant" and m["content"].strip() for m in self.messages)
        return not (asked and any(_answers(m) for m in self.messages))

    def without_thinking(self) -> Conversation:
        """The same, of answers alone."""
        kept = [{key: value for key, value in m.items() if key != "reasoning_content"} for m in self.messages]
        return Conversation(kept, self.tools)


def message(role: Any, content: Any, turn: Mapping[str, Any] | None = None) -> Message:
    """One message.

    Args:
        role: also under the names of ShareGPT (human, gpt, observation, function_call …).
        content: a string, a list of text parts, or None beside tool calls.
        turn: what else stands beside them in the row.

    Raises:
        ValueError: another role, or content that is no text.
    """
    if role not in _ROLES:
        raise ValueError(f"a message's role is {role!r}; it must be one of {', '.join(_ROLES)}")
    turn = turn or {}
    said: Message = {"role": _ROLES[role]}
    calls = _calls(turn.get("tool_calls")) if role != "function_call" else _calls(parsed("function_call", content))
    said["content"] = "" if role == "function_call" or (content is None and calls) else _text(content, role)
    if said["role"] == "assistant":
        thought = turn.get("reasoning_content") or turn.get("reasoning")
        if thought is None and END_THINK in said["content"]:
            thought, _, said["content"] = said["content"].partition(END_THINK)
            thought = thought.lstrip().removeprefix(THINK)
        if thought:
            said["reasoning_content"] = text(thought, "reasoning_content").strip("\n")
            said["content"] = said["content"].lstrip("\n")
        if calls:
            said["tool_calls"] = calls
    if said["role"] == "tool":
        said |= {key: turn[key] for key in ("name", "tool_call_id") if turn.get(key)}
    return said


def tools_of(row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The functions under a row's `tools`, a list or its JSON; None where there are none."""
    tools = parsed("tools", row.get("tools") or None)
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("'tools' is no list of functions")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None


def text(value: Any, key: str) -> str:
    """`value` where it is whole text; ValueError naming `key` where it is none or a JSON escape left half of one."""
    if not isinstance(value, str):
        raise ValueError(f"{key!r} is {'missing' if value is None else 'not text'}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character, \\u{ord(value[error.start]):04x}; mend the escape") from None
    return value


def turns_of(row: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The list of turns under `key`, or in the JSON there."""
    turns = parsed(key, row.get(key))
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{key!r} is {'missing' if turns is None else 'no list of messages'}")
    return turns


def parsed(key: str, value: Any) -> Any:
    """`value`, read as JSON where it is a string (columns of tables often are)."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{key!r} is not JSON: {error}") from None


def _text(content: Any, role: str) -> str:
    if isinstance(content, list):
        others = sorted({str(part.get("type")) if isinstance(part, dict) else "?" for part in content} - {"text"})
        if others:
            raise ValueError(f"a {role} message has a part of type {others[0]}; only text can be trained on")
        return "".join(text(part.get("text"), "text") for part in content)
    return text(content, f"content of {role}")


def _calls(calls: Any) -> list[dict[str, Any]]:
    found = []
    for call in [calls] if isinstance(calls, dict) else calls or []:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError("a tool call has no function with a name")
        arguments = function.get("arguments") or {}
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        kept = {"id": call["id"]} if call.get("id") else {}
        found.append(kept | {"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return found


def _said(m: Message) -> list[str]:
    return [f"{call['function']['name']} {call['function']['arguments']}" for call in m.get("tool_calls", ())]


def _answers(m: Message) -> bool:
    return m["role"] == "assistant" and bool(m["content"].strip() or m.get("tool_calls"))
