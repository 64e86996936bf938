"""Fields of responses that are left out without harm, or refused, and why; and chat's words in this API's.

`docs/SERVING.md` has a table of them. Source: `openai.types.responses.ResponseCreateParams`. Imports no torch.
"""

from __future__ import annotations

import re

from ziphius.serve.contracts.fields import ANSWER_IGNORED, IGNORED, PART_IGNORED, REFUSED
from ziphius.serve.contracts.lenient import Refused

LOGPROBS = "message.output_text.logprobs"
CHAT_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


def in_these_words(message: str) -> str:
    """A refusal of chat's with the names that the fields have here; what is quoted is the client's."""
    return re.sub(r"(?<!['\"])\b(" + "|".join(CHAT_NAMES) + r")\b", lambda found: CHAT_NAMES[found[0]], message)


_STATELESS = "nothing is stored here; send the whole conversation as input"
RESPONSE_IGNORED: dict[str, str] = {name: why for name, why in IGNORED.items() if name != "prompt_cache_key"} | {
    "truncation": "an input that is too long is refused, as `disabled` has it",
    "max_tool_calls": "it counts calls of tools that the server runs, of which there are none",
    "background_options": "nothing runs in the background",
    "image": "there are no images",
    "access_programs": "there are none",
}
ITEM_IGNORED: dict[str, str] = ANSWER_IGNORED | PART_IGNORED | {
    "id": "nothing is looked up by it",
    "status": "an item is taken as it is",
    "phase": "the model knows no such switch",
    "summary": "thinking of earlier turns is not shown to the model again",
    "content": "thinking of earlier turns is not shown to the model again",
    "encrypted_content": "thinking of earlier turns is not shown to the model again",
    "parsed_arguments": "it repeats the arguments",
    "async": "a call is answered when its output is sent",
    "caller": "the model is the only one who calls",
    "namespace": "there are none",
    "name": "the call is known by its call_id",
}  # fmt: skip
TOOL_IGNORED: dict[str, str] = {
    "allowed_callers": "the model is the only one who calls",
    "defer_loading": "all tools are shown to the model at once",
    "output_schema": "the output is read as text",
    "async": "a call is answered when its output is sent",
}
RESPONSE_REFUSED: dict[str, Refused] = {
    name: Refused(in_these_words(refused.why), refused.harmless)
    for name, refused in REFUSED.items()
    if name != "max_output_tokens"
} | {
    "previous_response_id": Refused(_STATELESS, ()),
    "conversation": Refused(_STATELESS, ()),
    "prompt": Refused("no prompts are stored here; write it into input", ()),
    "background": Refused("answers are given while the client waits; use stream", (False,)),
    "context_management": Refused("nothing is compacted; send less", ([],)),
    "moderation": Refused("nothing moderates questions or answers here", ()),
    "messages": Refused("it is called input here", ()),
    "reasoning_effort": Refused("it is called reasoning.effort here", ()),
    "thinking": Refused("it is switched by reasoning.effort here", ()),
    "max_completion_tokens": Refused("it is called max_output_tokens here", ()),
    "logprobs": Refused(f"ask for them by include: {LOGPROBS}", (False,)),
}
