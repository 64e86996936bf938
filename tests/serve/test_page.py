"""The chat page in headless Chromium: what a person sees and does."""

import re

import pytest
from playwright.sync_api import expect

from tests.serve.conftest import running
from tests.serve.pages import answered, ask
from tests.serve.scripted import ScriptedEngine
from ziphius.serve.contracts.price import Rate
from ziphius.text import tokens

ANSWER = """\
**Deep**: $d^2$ metres costs $5 and $6.

```python
depth = 2992
```
<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>
[link](javascript:window.hacked=1)

\\[ E = mc^2 \\]
"""


@pytest.fixture
def engine(tokenizer):
    return ScriptedEngine(lambda _: tokenizer.encode(f"I <b>dive</b>.\n</think>\n\n{ANSWER}{tokens.EOS}"), pace=4)


@pytest.fixture
def url(tokenizer, engine):
    with running(tokenizer, engine, context=4096, rate=Rate(0.09)) as server:
        yield server.url


def test_thinking_folds_and_the_answer_is_rendered(page):
    ask(page, "how deep?")
    expect(page.locator(".message.user .text")).to_have_text("how deep?")
    thinking = page.locator(".thinking")
    expect(thinking.locator("summary")).to_have_text(re.compile(r"Thought for \d+\.\d s, \d+ tokens"))
    assert thinking.get_attribute("open") is None
    thinking.locator("summary").click()
    expect(thinking.locator(".thoughts")).to_have_text("I <b>dive</b>.")
    answer = page.locator(".answer")
    expect(answer.locator("strong")).to_have_text("Deep")
    expect(answer.locator("pre code.hljs")).to_have_text("depth = 2992")
    expect(answer.locator(".math .katex")).to_have_count(2)
    expect(answer).to_contain_text("costs $5 and $6")
    expect(page.locator(".bill")).to_have_text(re.compile(r"\d+ tokens · [\d]+ tokens/s · .*\$0\.0000"))


def test_a_model_can_inject_no_script(page):
    ask(page, "hack")
    expect(page.locator(".bill")).to_contain_text("tokens/s")
    assert page.evaluate("window.hacked") is None
    assert page.locator(".answer script, .answer img, .answer [onerror], .answer a[href^=javascript]").count() == 0
    for path in ("", "page/worker/start.js"):  # a worker's own script says what the worker may do
        policy = page.request.get(page.url + path).headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe-inline" not in policy.split("script-src")[1].split(";")[0]


def test_thinking_is_open_while_it_thinks_and_stop_ends_it(page, engine, tokenizer):
    word = tokenizer.encode(" whale")[0]
    engine.script, engine.delay = (lambda _: iter(lambda: word, None)), 0.01
    ask(page, "forever")
    expect(page.locator(".thinking")).to_have_attribute("open", "")
    expect(page.locator(".thinking summary")).to_have_text(re.compile("Thinking… "))
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".bill")).to_have_text("stopped")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.wait_for_timeout(300)
    assert not engine.has_work


def test_regenerate_edit_and_several_conversations(page, engine):
    ask(page, "first")
    page.get_by_role("button", name="Regenerate").click()
    answered(page)
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your question").fill("first, again")
    page.get_by_role("button", name="Send again").click()
    answered(page)
    assert len(engine.requests) == 3
    page.get_by_role("button", name="New conversation").click()
    ask(page, "second")
    answered(page)
    expect(page.locator("#conversations .name")).to_have_text(["second", "first, again"])
    page.reload()
    page.locator("#conversations .name", has_text="first").click()
    expect(page.locator(".message.user .text")).to_have_text("first, again")
    answered(page)


def test_two_tabs_do_not_undo_each_other(page):
    other = page.context.new_page()
    other.goto(page.url)
    for tab, text in ((other, "in the other tab"), (page, "in this tab")):
        ask(tab, text)
        answered(tab)
    names = ["in this tab", "in the other tab"]
    expect(page.locator("#conversations .name")).to_have_text(names)
    other.reload()
    expect(other.locator("#conversations .name")).to_have_text(names)


def test_an_answer_that_did_not_come_is_explained(page, engine, tokenizer):
    engine.script = lambda _: tokenizer.encode(f"hm</think>\n\n{tokens.EOS}")
    ask(page, "how deep?")
    expect(page.get_by_role("alert")).to_contain_text("ended its turn without an answer")


def test_settings_reach_the_server(page, engine):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest answer, tokens").fill("9")
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Colours").select_option("dark")
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Think").click()
    ask(page, "how deep?")
    expect(page.locator(".bill")).to_contain_text("cut off at the longest answer")
    settings = engine.requests[0].settings
    assert (settings.temperature, settings.max_new_tokens, engine.requests[0].thinking) == (0, 9, False)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_refusal_is_shown_and_announced(page):
    page.evaluate("localStorage.setItem('ziphius.settings', '{\"temperature\": \"9\"}')")
    page.reload()
    ask(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("less than or equal to 2")
    expect(page.locator("#status")).to_contain_text("less than or equal to 2")


def test_phone_width(page):
    page.set_viewport_size({"width": 360, "height": 640})
    ask(page, "how deep?")
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#question").bounding_box()["width"] > 100
    assert page.locator("#ask").bounding_box()["height"] < 80
    expect(page.locator("#side")).not_to_be_visible()
    page.get_by_role("button", name="Show conversations").click()
    expect(page.locator("#side")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#side")).not_to_be_visible()


def test_everything_has_a_name_for_screen_readers(page):
    ask(page, "how deep?")
    answered(page)
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, select')].filter((field) =>
           !(field.textContent.trim() || field.ariaLabel || field.labels?.length)).map((field) => field.outerHTML)"""
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.lang") == "en"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "BODY"
