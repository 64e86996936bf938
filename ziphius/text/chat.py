"""The chat template in DeepSeek's form, its rendering, and the split of a completion into thinking and answer."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NoReturn

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ziphius.text.tokens import ASSISTANT, END_THINK, THINK, USER

# Variables: `messages`, `bos_token`, `eos_token` and `add_generation_prompt`, which transformers passes; `thinking`,
# which is true unless given. The generation prompt is R1's when thinking and V3.1's when not.
CHAT_TEMPLATE = f"""\
{{%- if thinking is not defined %}}{{% set thinking = true %}}{{% endif -%}}
{{{{ bos_token }}}}
{{%- for message in messages if message['role'] == 'system' -%}}
    {{{{ message['content'] if loop.first else '\\n\\n' + message['content'] }}}}
{{%- endfor -%}}
{{%- for message in messages -%}}
    {{%- if message['role'] == 'user' -%}}
        {{{{ '{USER}' + message['content'] }}}}
    {{%- elif message['role'] == 'assistant' -%}}
        {{{{ '{ASSISTANT}' + message['content'].split('{END_THINK}')[-1] + eos_token }}}}
    {{%- elif message['role'] != 'system' -%}}
        {{{{ raise_exception("role must be 'system', 'user' or 'assistant', not '" ~ message['role'] ~ "'") }}}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
    {{{{ '{ASSISTANT}{THINK}\\n' if thinking else '{ASSISTANT}{END_THINK}' }}}}
{{%- endif -%}}
"""


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    bos_token: str,
    eos_token: str,
    thinking: bool = True,
    add_generation_prompt: bool = True,
) -> str:
    """The text of a conversation, as `transformers.apply_chat_template` would write it.

    The template is code from a checkpoint folder, so it runs in jinja2's immutable sandbox, with the whitespace
    settings transformers uses.

    Args:
        template: jinja2 source, for instance `CHAT_TEMPLATE`.
        messages: mappings with the strings `role` and `content`, oldest first.
        thinking: end the generation prompt with an open thinking block (else with a closed one).
        add_generation_prompt: end with the opening of the assistant's next turn.

    Raises:
        ValueError: a message without a string `role` or `content`, or one the template refuses.
    """
    for index, message in enumerate(messages):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise ValueError(f"message {index} needs a string {key!r}, not {message.get(key)!r}")
    try:
        return _compile(template).render(
            messages=messages,
            bos_token=bos_token,
            eos_token=eos_token,
            thinking=thinking,
            add_generation_prompt=add_generation_prompt,
        )
    except TemplateError as error:
        raise ValueError(f"the chat template refused the conversation: {error}") from error


def split_thinking(text: str) -> tuple[str | None, str]:
    """A completion → (thinking, answer), both stripped of surrounding whitespace.

    `text` is what the model wrote after the generation prompt's `<think>\\n`; should it open the block again, that tag
    is dropped. The first `</think>` ends the thinking. Where there is none the thinking never closed: it is None, and
    the whole text comes back in the answer's place; who pays rewards must look at the None first.
    """
    thinking, closed, answer = text.partition(END_THINK)
    if not closed:
        return None, text.strip()
    return thinking.strip().removeprefix(THINK).strip(), answer.strip()


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    return environment.from_string(template)


def _refuse(reason: str) -> NoReturn:
    raise TemplateError(reason)
