import json

import pytest

from ziphius.text.forms.conversation import Conversation
from ziphius.text.forms.registry import FORMS, form_of

USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))
TOOL = {"type": "function", "function": {"name": "depth", "description": "How deep", "parameters": {}}}
CALL = {"id": "1", "type": "function", "function": {"name": "depth", "arguments": '{"of": "ziphius"}'}}
FLAT = {"id": "1", "name": "depth", "arguments": {"of": "ziphius"}}  # as some write it
CALLED = [
    USER,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2992 m", "name": "depth", "tool_call_id": "1"},
    ASSISTANT,
]
THOUGHT = {"role": "assistant", "content": "a", "reasoning_content": "hm"}


def openai(role, content, **more):
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("form", "row", "messages"),
    [
        ("messages", {"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]}, [SYSTEM, *[USER, ASSISTANT] * 2]),
        ("messages", {"messages": json.dumps([USER, ASSISTANT]), "id": 3}, [USER, ASSISTANT]),
        (
            "messages",
            {"messages": [openai("developer", "s"), USER, ASSISTANT | {"name": None, "tool_calls": None}]},
            [SYSTEM, USER, ASSISTANT],
        ),
        ("messages", {"messages": [openai("user", [{"type": "text", "text": "u"}]), ASSISTANT]}, [USER, ASSISTANT]),
        ("messages", {"messages": [USER, THOUGHT]}, [USER, THOUGHT]),
        ("messages", {"messages": [USER, openai("assistant", "a", reasoning="hm\n")]}, [USER, THOUGHT]),
        ("messages", {"messages": [USER, openai("assistant", "<think>\nhm\n</think>\n\na")]}, [USER, THOUGHT]),
        ("messages", {"messages": [USER, openai("assistant", "hm</think>a")]}, [USER, THOUGHT]),
        ("messages", {"messages": [openai("user", "<think>")]}, [openai("user", "<think>")]),
        ("messages", {"messages": [USER, openai("assistant", None, tool_calls=[CALL]), *CALLED[2:]]}, CALLED),
        (
            "messages",
            {"messages": [USER, openai("assistant", None, tool_calls=[FLAT]), *CALLED[2:]]},
            CALLED,
        ),
        (
            "ShareGPT",
            {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
            [USER, ASSISTANT],
        ),
        (
            "ShareGPT",
            {"system": "s", "conversations": [{"from": "user", "value": "u"}, {"from": "assistant", "value": "a"}]},
            [SYSTEM, USER, ASSISTANT],
        ),
        (
            "ShareGPT",
            {
                "conversations": [
                    {"from": "human", "value": "u"},
                    {"from": "function_call", "value": '{"name": "depth", "arguments": {"of": "ziphius"}}'},
                    {"from": "observation", "value": "2992 m"},
                    {"from": "gpt", "value": "a"},
                ]
            },
            [
                USER,
                {"role": "assistant", "content": "", "tool_calls": [{key: CALL[key] for key in ("type", "function")}]},
                {"role": "tool", "content": "2992 m"},
                ASSISTANT,
            ],
        ),
        ("prompt and completion", {"prompt": "u", "completion": "a"}, [USER, ASSISTANT]),
        ("prompt and completion", {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]}, [SYSTEM, USER, ASSISTANT]),
        ("prompt and response", {"prompt": "u", "response": "<think>hm</think>a"}, [USER, THOUGHT]),
        ("Alpaca", {"instruction": "u", "input": "", "output": "a"}, [USER, ASSISTANT]),
        ("Alpaca", {"instruction": "x", "input": "y", "output": "a"}, [openai("user", "x\n\ny"), ASSISTANT]),
        (
            "Alpaca",
            {"instruction": "u", "output": "a", "system": "s", "history": [["u", "a"]]},
            [SYSTEM, USER, ASSISTANT, USER, ASSISTANT],
        ),
    ],
)
def test_each_form_is_known_and_read(form, row, messages):
    assert form_of(row).name == form
    assert form_of(row).read(row) == Conversation(messages)


def test_every_form_says_what_it_is_known_by():
    assert len({form.name for form in FORMS}) == len(FORMS)
    with pytest.raises(ValueError, match=r"the keys \['q'\] are those of no known form; .* one of messages, conv.*"):
        form_of({"q": "x"})


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
@pytest.mark.parametrize("row", [{"messages": [USER, ASSISTANT]}, {"prompt": "u", "completion": "a"}])
def test_tools_stand_beside(row, tools):
    assert form_of(row).read(row | {"tools": tools}).tools == [TOOL]
    assert form_of(row).read(row | {"tools": None}).tools is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "[{"}, "'messages' is not JSON"),
        ({"messages": {"role": "user"}}, "'messages' is no list of messages"),
        ({"messages": [{"role": "whale", "content": "x"}]}, "a message's role is 'whale'; it must be one of system"),
        ({"messages": [openai("user", 3)]}, "'content of user' is not text"),
        ({"messages": [openai("assistant", None)]}, "'content of assistant' is missing"),
        ({"messages": [openai("user", [{"type": "image_url"}])]}, "a user message has a part of type image_url; only"),
        ({"messages": [openai("assistant", "", tool_calls=[{"id": 1}])]}, "a tool call has no function with a name"),
        ({"messages": [USER], "tools": "depth"}, "'tools' is not JSON"),
        ({"messages": [USER], "tools": ["depth"]}, "'tools' is no list of functions"),
        ({"conversations": [{"from": "human"}]}, "'content of human' is missing"),
        ({"conversations": [{"from": "function_call", "value": "f()"}]}, "'function_call' is not JSON"),
        ({"prompt": 3, "completion": "x"}, "'prompt' is not text"),
        ({"prompt": "x", "response": "\ud83d"}, r"half a character, \\ud83d; mend the escape"),
        ({"instruction": "x", "output": None}, "'output' is missing"),
        ({"instruction": "x", "output": "a", "history": ["u"]}, "'history' is no list of pairs"),
    ],
)
def test_what_is_wrong_is_said(row, message):
    with pytest.raises(ValueError, match=message) as error:
        form_of(row).read(row)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("messages", "empty"),
    [
        ([USER, ASSISTANT], False),
        (CALLED[:2], False),  # a call is an answer
        ([USER], True),
        ([ASSISTANT], True),
        ([openai("user", " "), ASSISTANT], True),
        ([USER, openai("assistant", "\n")], True),
        ([USER, openai("assistant", "", reasoning_content="hm")], True),
    ],
)
def test_what_teaches_nothing_is_empty(messages, empty):
    assert Conversation(messages).is_empty is empty


def test_all_that_is_said_can_be_compared():
    said = Conversation([SYSTEM, *CALLED[:-1], THOUGHT]).text
    assert said == 's\nu\ndepth {"of": "ziphius"}\n2992 m\nhm\na'
    assert Conversation([USER, THOUGHT]).without_thinking() == Conversation([USER, ASSISTANT])
