"""The chat template in DeepSeek's form."""

from ziphius.text.tokens import (
    ASSISTANT,
    CALL_BEGIN,
    CALL_END,
    CALLS_BEGIN,
    CALLS_END,
    END_THINK,
    OUTPUT_BEGIN,
    OUTPUT_END,
    OUTPUTS_BEGIN,
    OUTPUTS_END,
    THINK,
    TOOL_SEP,
    USER,
)

# What a model is told of the tools it may call; the form of a call is V3.1's, the wording is this package's own.
TOOLS_SECTION = f"""\
{{%- if tools %}}{{{{ '\\n\\n' if lead else '' }}}}\
## Tools
You can call the functions below. To call, end your message with one block that holds every call:

{CALLS_BEGIN}{CALL_BEGIN}name{TOOL_SEP}arguments as JSON{CALL_END}{CALLS_END}

{{%- for tool in tools %}}


### {{{{ tool['function']['name'] }}}}
{{{{ tool['function']['description'] + '\\n' if tool['function']['description'] else '' -}}}}
Parameters: {{{{ (tool['function']['parameters'] or {{}}) | tojson }}}}
{{%- endfor %}}
{{%- endif %}}"""

# Variables: `messages`, `tools`, `bos_token`, `eos_token` and `add_generation_prompt`, which transformers passes;
# `thinking`, which is true unless given. The generation prompt is R1's when thinking and V3.1's when not; earlier
# answers stand behind a closed thinking block, as in V3.1, so that what the model wrote without thinking is read again
# as it was written.
CHAT_TEMPLATE = f"""\
{{%- if thinking is not defined %}}{{% set thinking = true %}}{{% endif -%}}
{{{{ bos_token }}}}
{{%- set state = namespace(lead=false, outputs=false) -%}}
{{%- for message in messages if message['role'] == 'system' -%}}
    {{{{ message['content'] if loop.first else '\\n\\n' + message['content'] }}}}
    {{%- set state.lead = true -%}}
{{%- endfor -%}}
{{%- set lead = state.lead -%}}
{TOOLS_SECTION}
{{%- for message in messages -%}}
    {{%- if state.outputs and message['role'] != 'tool' -%}}
        {{{{ '{OUTPUTS_END}' }}}}{{%- set state.outputs = false -%}}
    {{%- endif -%}}
    {{%- if message['role'] == 'user' -%}}
        {{{{ '{USER}' + message['content'] }}}}
    {{%- elif message['role'] == 'assistant' -%}}
        {{{{ '{ASSISTANT}{END_THINK}' + (message['content'] or '').split('{END_THINK}')[-1] }}}}
        {{%- if message['tool_calls'] -%}}
            {{{{ '{CALLS_BEGIN}' }}}}
            {{%- for call in message['tool_calls'] -%}}
                {{%- set function = call['function'] -%}}
                {{{{ '{CALL_BEGIN}' + function['name'] + '{TOOL_SEP}' + function['arguments'] + '{CALL_END}' }}}}
            {{%- endfor -%}}
            {{{{ '{CALLS_END}' }}}}
        {{%- endif -%}}
        {{{{ eos_token }}}}
    {{%- elif message['role'] == 'tool' -%}}
        {{{{ '' if state.outputs else '{OUTPUTS_BEGIN}' }}}}{{%- set state.outputs = true -%}}
        {{{{ '{OUTPUT_BEGIN}' + message['content'] + '{OUTPUT_END}' }}}}
    {{%- elif message['role'] != 'system' -%}}
        {{{{ raise_exception("role must be 'system', 'user', 'assistant' or 'tool', not '" ~ message['role'] ~ "'") }}}}
    {{%- endif -%}}
{{%- endfor -%}}
{{{{ '{OUTPUTS_END}' if state.outputs else '' }}}}
{{%- if add_generation_prompt -%}}
    {{{{ '{ASSISTANT}{THINK}\\n' if thinking else '{ASSISTANT}{END_THINK}' }}}}
{{%- endif -%}}
"""

# Behind a template that says nothing of thinking, for a model that learns to think: the prompt opens the block.
OPENS_THINKING = (
    f"{{%- if add_generation_prompt and (thinking is not defined or thinking) %}}{{{{ '{THINK}\n' }}}}{{%- endif %}}"
)
