"""Every field of the Responses API that the official client knows is honoured, ignored or refused on purpose."""

from typing import get_type_hints

import pytest
from openai.types import responses, shared_params
from openai.types.responses import response_create_params, response_input_item_param

from tests.serve.test_fields import GUIDE, own, rows
from ziphius.serve.contracts.fields import IGNORED, REFUSED
from ziphius.serve.contracts.formats import AnyFormat
from ziphius.serve.contracts.responses.fields import RESPONSE_IGNORED, RESPONSE_REFUSED
from ziphius.serve.contracts.responses.items import (
    FunctionCallInput,
    FunctionCallOutput,
    InputMessage,
    ReasoningInput,
)
from ziphius.serve.contracts.responses.request import (
    AllowedTools,
    FlatJsonSchema,
    FunctionTool,
    NamedFunctionTool,
    ReasoningSettings,
    ResponsesRequest,
    TextSettings,
)
from ziphius.serve.contracts.sampling import StreamOptions

PAIRS = [
    (response_create_params.ResponseCreateParamsNonStreaming, ResponsesRequest),
    (response_create_params.ResponseCreateParamsStreaming, ResponsesRequest),
    (response_create_params.StreamOptions, StreamOptions),
    (responses.EasyInputMessageParam, InputMessage),
    (response_input_item_param.Message, InputMessage),
    (responses.ResponseOutputMessageParam, InputMessage),
    (responses.ResponseReasoningItemParam, ReasoningInput),
    (responses.ResponseFunctionToolCallParam, FunctionCallInput),
    (response_input_item_param.FunctionCallOutput, FunctionCallOutput),
    (responses.FunctionToolParam, FunctionTool),
    (responses.ToolChoiceFunctionParam, NamedFunctionTool),
    (responses.ToolChoiceAllowedParam, AllowedTools),
    (responses.ResponseTextConfigParam, TextSettings),
    (responses.ResponseFormatTextJSONSchemaConfigParam, FlatJsonSchema),
    (shared_params.ResponseFormatText, AnyFormat),
    (shared_params.Reasoning, ReasoningSettings),
]
ITEMS = [
    (responses.ResponseOutputMessage, InputMessage),
    (responses.ParsedResponseOutputMessage, InputMessage),
    (responses.ResponseReasoningItem, ReasoningInput),
    (responses.ResponseFunctionToolCall, FunctionCallInput),
    (responses.ParsedResponseFunctionToolCall, FunctionCallInput),
]


def placed(model):
    return own(model) | set(model.ignored) | set(model.refused)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_every_field_of_the_client_has_its_place(theirs, ours):
    assert not set(get_type_hints(theirs)) - placed(ours)


@pytest.mark.parametrize(("theirs", "ours"), ITEMS)
def test_every_field_of_an_item_has_its_place(theirs, ours):
    assert not {field.alias or name for name, field in theirs.model_fields.items()} - placed(ours)


@pytest.mark.parametrize("model", [ours for _, ours in (*PAIRS, *ITEMS)])
def test_no_field_has_two_places(model):
    places = [own(model), set(model.ignored), set(model.refused)]
    assert len(set.union(*places)) == sum(map(len, places))


def test_the_guide_names_them_all():
    """In the section of this API: what it ignores and refuses beyond chat, and what it honours."""
    guide = GUIDE.read_text(encoding="utf-8").partition("## Responses")[2].partition("\n## ")[0]
    ignored = rows({name: why for name, why in RESPONSE_IGNORED.items() if name not in IGNORED})
    refused = rows({name: field.why for name, field in RESPONSE_REFUSED.items() if name not in REFUSED})
    assert ignored in guide, f"docs/SERVING.md, what is ignored:\n{ignored}"
    assert refused in guide, f"docs/SERVING.md, what is refused:\n{refused}"
    assert not [name for name in sorted(own(ResponsesRequest) - {"model"}) if f"`{name}" not in guide]
