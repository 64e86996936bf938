import json

import pytest

from ziphius.text.learn import train_tokenizer

CHATS = [
    {
        "messages": [
            {"role": "user", "content": "Who [b]dives[/b]?"},
            {"role": "assistant", "content": "A whale.\x1b[2J", "reasoning_content": "hm"},
            {"role": "user", "content": "How deep?"},
            {"role": "assistant", "content": "2992 m."},
        ]
    },
    {"messages": [{"role": "user", "content": "Who?"}]},
    {"messages": [{"role": "user", "content": "not shown"}]},
]


@pytest.fixture
def chats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.json").write_text(json.dumps(CHATS, indent=1))
    train_tokenizer(["Who dives? A whale dives deep."] * 20, 320).save(tmp_path / "model")


def test_what_is_trained_on_is_marked(chats, ziphius):
    code, out, err = ziphius("inspect", "chats*", "--n", 2)
    assert (code, err) == (0, "")
    assert "chats.json: messages; what is trained on stands between ⟦ and ⟧" in out
    assert "chats.json:2: " in out
    assert "<｜User｜>Who [b]dives[/b]?<｜Assistant｜>" in out
    assert "A whale.␛[2J<｜end▁of▁sentence｜>⟧" in out
    assert "⟦2992 m.<｜end▁of▁sentence｜>⟧" in out
    assert "left out, for nothing is asked in it or nothing answered" in out
    assert "not shown" not in out


def test_a_models_own_tokens_are_counted(chats, ziphius):
    _, bytewise, _ = ziphius("inspect", "chats.json", "--n", 1)
    _, out, _ = ziphius("inspect", "chats.json", "--model", "model", "--n", 1)
    assert "(bytes: --model FOLDER" in bytewise
    assert "(bytes" not in out
    assert int(out.split(" of ")[1].split()[0]) < int(bytewise.split(" of ")[1].split()[0])


def test_thinking_may_be_left_out(chats, ziphius):
    assert "hm" in ziphius("inspect", "chats.json", "--n", 1)[1]
    assert "hm" not in ziphius("inspect", "chats.json", "--n", 1, "--no-thinking")[1]
    code, _, err = ziphius("inspect", "none.json")
    assert code == 1
    assert "there is no file none.json" in err
