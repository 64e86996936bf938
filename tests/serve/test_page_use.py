"""What people are used to from a chat page."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.serve.conftest import running
from tests.serve.pages import COMPLETIONS, answered, ask, chunk, hear, opened, texts
from tests.serve.scripted import ScriptedEngine
from ziphius.serve.key_file import new_key
from ziphius.serve.wire.keys import Keys
from ziphius.text import tokens

CONTEXT = 300


@pytest.fixture(scope="module")
def url(tokenizer):
    engine = ScriptedEngine(lambda _: tokenizer.encode(f"hm</think>\n\nwell{tokens.EOS}"), pace=4)
    with running(tokenizer, engine, context=CONTEXT, examples=["How deep?", "And then?"]) as server:
        yield server.url


def button(place, name):
    return place.get_by_role("button", name=name, exact=True)


def clipboard(page):
    return page.evaluate("navigator.clipboard.readText()")


def test_the_typesetter_is_loaded_before_the_first_answer(page):
    if not page.workers:
        page.wait_for_event("worker")
    assert page.workers[0].url.endswith("/page/worker/start.js")


def test_an_example_is_one_click_away(page):
    expect(page.locator(".example")).to_have_text(["How deep?", "And then?"])
    button(page, "How deep?").click()
    expect(page.get_by_label("Your question")).to_have_value("How deep?")
    expect(page.get_by_label("Your question")).to_be_focused()


def test_copies(page):
    hear(page, *texts("see\n\n```js\nlet x;\n```"))
    ask(page, "q")
    answered(page)
    button(page, "Copy the code").click()
    expect(button(page, "Copy the code")).to_have_text("Copied")
    assert clipboard(page).strip() == "let x;"
    button(page, "Copy the answer").click()
    expect(button(page, "Copy the answer")).to_have_text("Copied")
    assert clipboard(page) == "see\n\n```js\nlet x;\n```"


def test_branches_of_answers_and_questions(page):
    for said in ("one", "two"):
        asked = hear(page, *texts(said))
        if said == "one":
            ask(page, "first")
        else:
            button(page, "Regenerate").click()
        expect(page.locator(".answer")).to_have_text(said)
        answered(page)
    ask(page, "second")
    answered(page, 2)
    assert [m["content"] for m in asked[-1]["messages"]] == ["first", "two", "second"]
    page.get_by_role("group", name="Other answers").get_by_role("button", name="Earlier answer").click()
    expect(page.locator(".answer")).to_have_text("one")
    expect(page.get_by_role("button", name="Later answer")).to_be_focused()
    ask(page, "other second")
    answered(page, 2)
    assert [m["content"] for m in asked[-1]["messages"]] == ["first", "one", "other second"]
    button(page, "Edit").first.click()
    page.keyboard.type("!")
    page.keyboard.press("Enter")
    answered(page)
    assert [m["content"] for m in asked[-1]["messages"]] == ["first!"]
    page.reload()
    expect(page.locator("#conversations .name")).to_have_text("first!")
    page.get_by_role("button", name="Earlier wording").click()
    expect(page.locator(".answer")).to_have_text(["one", "two"])


def test_escape_leaves_an_edit_and_the_focus_returns(page):
    hear(page, *texts("a"))
    ask(page, "first")
    answered(page)
    button(page, "Edit").click()
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Escape")
    expect(page.locator(".message.user .text")).to_have_text("first")
    expect(button(page, "Edit")).to_be_focused()
    button(page, "Settings").click()
    page.keyboard.press("Escape")
    expect(button(page, "Settings")).to_be_focused()


def test_rename_search_delete_and_undo(page):
    hear(page, *texts("about squid"))
    for text in ("whales", "ships"):
        button(page, "New conversation").click()
        ask(page, text)
        answered(page)
    button(page, "Rename “ships”").click()
    page.keyboard.type("Boats")
    page.keyboard.press("Enter")
    expect(button(page, "Rename “Boats”")).to_be_focused()
    names = page.locator("#conversations .name")
    search = page.get_by_label("Search conversations")
    for words, found in (("whales", ["whales"]), ("SQUID about", ["Boats", "whales"]), ("krill", [])):
        search.fill(words)
        expect(names).to_have_text(found)
    expect(page.locator("#none-found")).to_be_visible()
    search.press("Escape")
    expect(names).to_have_count(2)
    button(page, "Delete “Boats”").click()
    expect(names).to_have_text(["whales"])
    button(page, "Undo").click()
    expect(names).to_have_text(["Boats", "whales"])
    button(page, "Settings").click()
    button(page, "Delete all").click()
    expect(names).to_have_count(0)
    button(page, "Undo").click()
    page.reload()
    expect(names).to_have_text(["Boats", "whales"])


def test_export_and_import(page, tmp_path):
    hear(page, *texts("deep"))
    ask(page, "how?")
    answered(page)
    button(page, "Settings").click()
    with page.expect_download() as download:
        button(page, "Export").click()
    saved = tmp_path / "saved.json"
    download.value.save_as(saved)
    page.evaluate("localStorage.clear()")
    page.reload()
    expect(page.locator("#conversations li")).to_have_count(0)
    whole = json.loads(saved.read_text())
    damaged = tmp_path / "damaged.json"
    damaged.write_text(json.dumps(whole | {"conversations": [*whole["conversations"], 7]}))
    other = tmp_path / "other.json"
    other.write_text('{"a": 1}')
    field = page.locator("#import-file")
    for path, says in ((damaged, "1 conversation imported; 1 damaged and left out"), (other, "holds no conversations"),
                       (saved, "1 conversation imported.")):  # fmt: skip
        field.set_input_files(path)
        expect(page.locator(".toast").last).to_contain_text(says)
    expect(page.locator("#conversations .name")).to_have_text(["how?"])
    expect(page.locator(".answer")).to_have_text("deep")


def test_continue_goes_on_with_what_is_there(page):
    used = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    hear(page, chunk(reasoning_content="I thi"), chunk("length"))
    ask(page, "q")
    answered(page)
    expect(page.get_by_role("alert")).to_contain_text("no answer within the limit")
    asked = hear(page, chunk(reasoning_content="nk"), chunk(content="It is"), chunk("length", used))
    button(page, "Continue").click()
    expect(page.locator(".answer")).to_have_text("It is")
    prefix = {"role": "assistant", "reasoning_content": "I thi", "prefix": True}
    assert asked[0]["messages"] == [{"role": "user", "content": "q"}, prefix]
    answered(page)
    asked = hear(page, chunk(content=" deep."), chunk("stop", None), {"choices": [], "usage": used})
    button(page, "Continue").click()
    expect(page.locator(".answer")).to_have_text("It is deep.")
    answered(page)
    assert asked[0]["messages"][-1] == prefix | {"reasoning_content": "I think", "content": "It is"}
    expect(page.locator(".bill")).to_contain_text("6 tokens")
    expect(page.locator("#gauge")).to_contain_text(f"13 of {CONTEXT} tokens")
    expect(button(page, "Continue")).to_have_count(0)
    expect(page.get_by_role("alert")).to_have_text([])


def test_the_server_takes_what_continue_sends(page):
    page.evaluate("localStorage.setItem('ziphius.settings', '{\"max_tokens\": \"2\"}')")
    page.reload()
    ask(page, "q")
    answered(page)
    page.evaluate("localStorage.setItem('ziphius.settings', '{}')")
    page.reload()
    button(page, "Continue").click()
    expect(page.locator(".answer")).to_contain_text("well")


def test_an_answer_whose_page_was_closed_is_kept_and_can_be_gone_on_with(browser, tokenizer):
    said = tokenizer.encode(f"</think>{'whale ' * 2000}{tokens.EOS}")
    engine = ScriptedEngine(lambda _: said, delay=0.02)
    with running(tokenizer, engine, context=20_000) as server, opened(browser, server.url) as page:
        ask(page, "q")
        expect(page.locator(".answer")).to_contain_text("whale")
        page.wait_for_function("() => JSON.stringify(localStorage).includes('whale')")
        page.reload()
        expect(page.locator(".answer")).to_contain_text("whale")
        expect(page.locator(".bill")).to_have_text("not finished")
        expect(button(page, "Continue")).to_be_visible()
        page.wait_for_timeout(300)
        assert not engine.has_work


def test_a_full_context_has_ways_on(page):
    for text in ("one", "two", "three"):
        ask(page, text)
        answered(page, {"one": 1, "two": 2, "three": 3}[text])
    ask(page, "long " * 60)
    expect(page.get_by_role("alert")).to_contain_text(f"reads and writes {CONTEXT} at most")
    asked = hear(page, *texts("short"))
    button(page, "Ask without the oldest turns").click()
    answered(page, 4)
    assert [m["content"] for m in asked[0]["messages"]] == ["three", "well", "long " * 59 + "long"]
    expect(page.locator(".tools .note")).to_have_text("Answered without the conversation's first 2 turns.")
    page.unroute(COMPLETIONS)
    ask(page, "long " * 90)
    button(page, "Start a new conversation with this question").click()
    expect(page.locator("#conversations li")).to_have_count(2)
    expect(page.get_by_role("alert")).to_contain_text("at most")  # it is too long for any
    asked = hear(page, *texts("fine"))
    ask(page, "short")
    expect(page.locator(".answer").last).to_have_text("fine")
    assert [m["content"] for m in asked[0]["messages"]] == ["short"]


def test_a_failed_or_stopped_answer_is_no_turn(page):
    page.route(COMPLETIONS, lambda route: route.abort())
    ask(page, "q")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    hear(page, chunk(reasoning_content="hm"), {"error": {"message": "it broke", "code": None}})
    ask(page, "q")
    expect(page.get_by_role("alert").last).to_contain_text("it broke")
    asked = hear(page, *texts("good"))
    ask(page, "q")
    expect(page.locator(".answer").last).to_have_text("good")
    answered(page, 3)
    ask(page, "more")
    answered(page, 4)
    assert [m["content"] for m in asked[0]["messages"]] == ["q"]
    assert [m["content"] for m in asked[1]["messages"]] == ["q", "good", "more"]


def test_sampling_settings(page):
    asked = hear(page, *texts("a"))
    button(page, "Settings").click()
    given = {"Top-k": "40", "Min-p": "0.05", "Repetition penalty": "1.1", "Top-p": "0.9"}
    for label, value in given.items():
        page.get_by_label(label, exact=True).fill(value)
    button(page, "Done").click()
    ask(page, "q")
    answered(page)
    body = asked[0]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["top_p"]) == (40, 0.05, 1.1, 0.9)
    assert "temperature" not in body


def test_tool_calls_are_shown(page):
    def call(index, name=None, arguments=""):
        return chunk(tool_calls=[{"index": index, "function": {"name": name, "arguments": arguments}}])

    hear(
        page, call(0, "depth"), call(0, None, '{"of": "wh'), call(1, "<b>"), call(0, None, 'ale"}'), chunk("tool_calls")
    )
    ask(page, "q")
    answered(page)
    expect(page.locator(".call")).to_have_count(2)
    expect(page.locator(".call").first).to_contain_text(re.compile(r'Calls depth\s*{\s*"of": "whale"\s*}'))
    expect(page.locator(".call strong").last).to_have_text("<b>")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_files_go_with_the_question(page, tmp_path):
    asked = hear(page, *texts("read"))
    (tmp_path / "a.py").write_text("x = '```'\n")
    (tmp_path / "b.bin").write_bytes(b"\x89PNG\0\xff")
    (tmp_path / "c.txt").write_text("y" * 300_000)
    page.locator("#files").set_input_files([tmp_path / name for name in ("a.py", "b.bin", "c.txt")])
    expect(page.locator("#attached li")).to_have_text([re.compile("a.py")])
    expect(page.locator(".toast")).to_have_text([re.compile("b.bin: no text"), re.compile("c.txt: larger than 256 kB")])
    ask(page, "what is it?")
    answered(page)
    assert asked[0]["messages"][0]["content"] == "what is it?\n\na.py\n````py\nx = '```'\n````"
    expect(page.locator("#attached")).not_to_be_visible()
    page.reload()
    page.locator(".file summary").click()
    expect(page.locator(".file .content")).to_have_text("x = '```'")
    page.evaluate(
        """() => { const data = new DataTransfer(); data.items.add(new File(["dropped"], "d.md"));
        dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true })); }"""
    )
    expect(page.locator("#attached li")).to_have_text([re.compile("d.md")])
    button(page, "Leave out d.md").click()
    expect(page.locator("#attached li")).to_have_count(0)


def test_a_key_is_asked_for_where_one_is_needed(browser, tokenizer, tmp_path):
    key = new_key(tmp_path / "keys", "ada")
    keys = Keys.load(tmp_path / "keys")
    engine = ScriptedEngine(lambda _: tokenizer.encode(f"hm</think>\n\nwell{tokens.EOS}"))
    with running(tokenizer, engine, keys=keys) as server, opened(browser, server.url) as page:
        expect(page.locator("#model")).to_have_text("This service asks for a key: enter it in Settings.")
        ask(page, "q")
        expect(page.get_by_role("alert")).to_contain_text("asks for a key")
        page.locator("#enter-key").click()
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type("zk-wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("This service does not take that key: enter another.")
        page.set_viewport_size({"width": 375, "height": 667})  # a phone shows the sentence whole
        assert page.locator("#model").evaluate("shown => shown.scrollWidth <= shown.clientWidth")
        page.locator("#enter-key").click()
        page.get_by_label("API key").fill("")
        page.keyboard.type(key)
        page.keyboard.press("Enter")
        expect(page.locator("#model")).to_have_text("tiny")
        expect(page.locator("#enter-key")).not_to_be_visible()
        button(page, "Regenerate").click()
        expect(page.locator(".answer")).to_have_text("well")


def test_answers_go_on_while_another_conversation_is_open(browser, tokenizer):
    said = tokenizer.encode(f"</think>{'whale ' * 250}end{tokens.EOS}")
    with (
        running(tokenizer, ScriptedEngine(lambda _: said, delay=0.01), context=4096) as server,
        opened(browser, server.url) as page,
    ):
        expect(page.locator("#model")).to_have_text("tiny")
        for text in ("one", "two"):
            button(page, "New conversation").click()
            ask(page, text)
            expect(page.locator(".answer")).to_contain_text("whale")
        expect(page.locator("#conversations .writing")).to_have_count(2)
        page.locator("#conversations .name", has_text="one").click()
        expect(button(page, "Stop")).to_be_visible()
        expect(page.locator(".answer")).to_contain_text("whale end")
        expect(page.locator(".toast").first).to_contain_text("“two”: The answer is there.")
        expect(page.locator("#conversations .writing")).to_have_count(0)
        page.locator("#conversations .name", has_text="two").click()
        expect(page.locator(".answer")).to_contain_text("whale end")


def test_a_conversation_open_in_two_tabs_keeps_what_both_add(page):
    hear(page, *texts("a"))
    ask(page, "first")
    answered(page)
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".answer")).to_have_text("a")
    hear(other, *texts("b"))
    ask(other, "from the other tab")
    answered(other, 2)
    expect(page.locator(".answer")).to_have_text(["a", "b"])
    button(page, "Regenerate").first.click()
    expect(page.locator(".bill")).to_have_count(1)
    for tab in (page, other):
        tab.reload()
        expect(tab.locator(".branches")).to_have_text([re.compile("2/2")])
    for tab in (page, other):
        button(tab, "Earlier answer").click()
        expect(tab.locator(".answer")).to_have_text(["a", "b"])
