"""Every field that the official client knows is honoured, ignored or refused on purpose; the guide says which."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from openai.types import chat, completion_create_params, shared_params
from openai.types.chat import completion_create_params as chat_params

from ziphius.serve.contracts.chat import ChatRequest
from ziphius.serve.contracts.completions import CompletionRequest
from ziphius.serve.contracts.fields import CHAT_IGNORED, CHAT_REFUSED, COMPLETION_IGNORED, COMPLETION_REFUSED
from ziphius.serve.contracts.formats import JsonSchema
from ziphius.serve.contracts.messages import (
    AssistantMessage,
    FunctionMessage,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from ziphius.serve.contracts.sampling import StreamOptions
from ziphius.serve.contracts.tools import Function, Tool

GUIDE = Path(__file__).parents[2] / "docs" / "SERVING.md"
PAIRS = [
    (chat_params.CompletionCreateParamsNonStreaming, ChatRequest),
    (chat_params.CompletionCreateParamsStreaming, ChatRequest),
    (completion_create_params.CompletionCreateParamsNonStreaming, CompletionRequest),
    (completion_create_params.CompletionCreateParamsStreaming, CompletionRequest),
    (chat.ChatCompletionSystemMessageParam, SystemMessage),
    (chat.ChatCompletionDeveloperMessageParam, SystemMessage),
    (chat.ChatCompletionUserMessageParam, UserMessage),
    (chat.ChatCompletionAssistantMessageParam, AssistantMessage),
    (chat.ChatCompletionToolMessageParam, ToolMessage),
    (chat.ChatCompletionFunctionMessageParam, FunctionMessage),
    (chat.ChatCompletionMessageFunctionToolCallParam, ToolCall),
    (chat.ChatCompletionMessageCustomToolCallParam, ToolCall),
    (chat.ChatCompletionContentPartTextParam, TextPart),
    (chat.ChatCompletionFunctionToolParam, Tool),
    (chat.ChatCompletionCustomToolParam, Tool),
    (chat.ChatCompletionStreamOptionsParam, StreamOptions),
    (shared_params.FunctionDefinition, Function),
    (shared_params.response_format_json_schema.JSONSchema, JsonSchema),
]


def own(model):
    return {field.alias or name for name, field in model.model_fields.items()}


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_every_field_of_the_client_has_its_place(theirs, ours):
    assert not set(get_type_hints(theirs)) - own(ours) - set(ours.ignored) - set(ours.refused)


def test_every_kind_of_message_has_its_place():
    assert {kind.__name__ for kind in get_args(chat.ChatCompletionMessageParam)} <= {kind.__name__ for kind, _ in PAIRS}


def test_every_field_of_an_answer_has_its_place():
    for answer in (chat.ChatCompletionMessage, chat.ParsedChatCompletionMessage):
        model = AssistantMessage
        assert not set(answer.model_fields) - own(model) - set(model.ignored) - set(model.refused)


@pytest.mark.parametrize(
    "model", [ChatRequest, CompletionRequest, AssistantMessage, ToolCall, Tool, Function, JsonSchema]
)
def test_no_field_has_two_places(model):
    places = [own(model), set(model.ignored), set(model.refused)]
    assert len(set.union(*places)) == sum(map(len, places))


def rows(reasons):
    """Table rows, fields with one reason together."""
    together = {}
    for name, why in reasons.items():
        together.setdefault(why, []).append(f"`{name}`")
    return "\n".join(f"| {', '.join(names)} | {why} |" for why, names in together.items())


def test_the_guide_names_them_all():
    guide = GUIDE.read_text(encoding="utf-8")
    ignored = rows(COMPLETION_IGNORED | CHAT_IGNORED)
    both = COMPLETION_REFUSED | CHAT_REFUSED
    refused = rows({name: both[name].why for name in both})
    assert ignored in guide, f"docs/SERVING.md, what is ignored:\n{ignored}"
    assert refused in guide, f"docs/SERVING.md, what is refused:\n{refused}"
    honoured = guide.partition("## Chat and completions")[2].partition("**Left out**")[0]
    fields = own(ChatRequest) | own(CompletionRequest) - {"model", "messages"}
    assert not [name for name in sorted(fields - {"model", "messages"}) if f"`{name}" not in honoured]
