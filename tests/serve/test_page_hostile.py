"""Nothing that a model writes, and nothing that is stored, keeps the page from working."""

import json
import time
from random import Random

import pytest
from playwright.sync_api import expect

from tests.serve.conftest import running
from tests.serve.hostile import damaged, hostile_text
from tests.serve.pages import answered, ask, chunk, hear, texts
from tests.serve.scripted import ScriptedEngine

KNOWN = {
    "fractions": "$$" + r"\frac{1}{" * 150 + "}" * 150 + "$$",
    "roots": "$" + r"\sqrt{" * 150 + "}" * 150 + "$",
    "quotes": "> " * 2500,
    "headings": "# a\n" * 20_000,
    "rules": r"$$\rule{99999em}{99999em}\kern-99999em\raisebox{9999em}{x}$$" * 50,
    "table": "|" + "a|" * 3000 + "\n|" + "-|" * 3000 + "\n|" + "b|" * 3000,
    "reopened": "".join(f"<b a{i}>" for i in range(6000)) + "<p>" * 16_000,
    "zalgo": ("a" + "\u0301" * 2000) * 40,
    "one line": "a" * 2_000_000,
}
GENERATED = 20


@pytest.fixture(scope="module")
def url(tokenizer):
    with running(tokenizer, ScriptedEngine(lambda _: [1]), context=4096) as server:
        yield server.url


def reacts(page):
    """Seconds until the page has taken what is typed and laid itself out."""
    began = time.monotonic()
    page.get_by_label("Your question").fill("typing")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    expect(page.get_by_label("Your question")).to_have_value("typing")
    return time.monotonic() - began


def starts_again(page):
    began = time.monotonic()
    page.reload()
    expect(page.locator("#model")).to_have_text("tiny")
    assert reacts(page) < 5
    return time.monotonic() - began


def drawn(page):
    """Wait until the last answer stands there typeset, or as plain text for good."""
    page.wait_for_function(
        "() => { const all = document.querySelectorAll('.answer'); const last = all[all.length - 1];"
        " return !last.textContent.trim() || last.querySelector('.block, .note'); }"
    )


@pytest.mark.parametrize("name", KNOWN)
def test_an_answer_that_killed_a_page(page, name):
    hear(page, *texts(KNOWN[name]))
    ask(page, "q")
    answered(page)
    drawn(page)
    assert reacts(page) < 5
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Settings").click(timeout=2000)  # nothing lies over it
    page.keyboard.press("Escape")
    assert starts_again(page) < 8
    expect(page.locator(".message.assistant")).to_have_count(1)
    expect(page.locator("#plain")).not_to_be_visible()


def test_generated_answers(page):
    """Each is drawn within the time the worker has, the page reacts after it, and starts with all of them stored."""
    for seed in range(GENERATED):
        text = hostile_text(Random(seed))
        hear(page, *texts(text))
        page.get_by_role("button", name="New conversation").click()
        ask(page, f"{seed}")
        answered(page)
        drawn(page)
        assert reacts(page) < 5, seed
        assert page.evaluate("window.hacked") is None
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), seed
    assert starts_again(page) < 8
    expect(page.locator("#conversations li")).to_have_count(GENERATED)


def test_a_long_conversation_of_them_starts(page):
    messages = []
    for seed in range(100, 140):
        messages += [{"role": "user", "content": hostile_text(Random(-seed), 2000)}]
        said = hostile_text(Random(seed), 50_000)
        messages += [{"role": "assistant", "content": said, "reasoning": said, "finish": "stop", "calls": []}]
    keep(page, {"id": "a", "title": hostile_text(Random(7)), "messages": messages})
    assert starts_again(page) < 8
    expect(page.locator(".message")).to_have_count(40)
    page.get_by_role("button", name="Show 40 earlier messages").click()
    expect(page.locator(".message")).to_have_count(80)
    for summary in page.locator(".thinking summary").all()[-5:]:
        summary.click()
    assert reacts(page) < 5
    assert page.evaluate("window.hacked") is None


def keep(page, conversation):
    page.evaluate("(c) => localStorage.setItem(`ziphius.conversation.${c.id}`, JSON.stringify(c))", conversation)


GOOD = {
    "id": "good",
    "title": "good",
    "updated": 5,
    "head": "b",
    "messages": [
        {"id": "a", "parent": None, "role": "user", "content": "q", "files": [{"name": "n", "text": "t"}]},
        {"id": "b", "parent": "a", "role": "assistant", "content": "a", "reasoning": "r", "finish": "stop",
         "calls": [{"name": "f", "arguments": "{}"}], "seconds": 1, "thinkingSeconds": 1, "omit": 0,
         "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "completion_tokens_details":
                   {"reasoning_tokens": 1}, "ziphius": {"dollars": 1, "list_price": {"model": "m", "dollars": 1}}}},
    ],
}  # fmt: skip


def test_whatever_is_stored_the_page_starts(page):
    """With parts of conversations and settings replaced by something else, all that is whole is still there."""
    for seed in range(8):
        random = Random(seed)
        broken = [json.dumps(damaged(random, GOOD)) for _ in range(20)] + ["", "null", "[", "[]", '"x"', "{}", "\ud7ff"]
        page.evaluate(
            """([good, broken, settings]) => {
              localStorage.clear();
              broken.forEach((text, n) => localStorage.setItem(`ziphius.conversation.broken-${n}`, text));
              localStorage.setItem("ziphius.conversation.good", JSON.stringify(good));
              localStorage.setItem("ziphius.settings", settings);
            }""",
            [GOOD, broken, random.choice(["", "[]", "null", '{"system": 3, "theme": {}, "temperature": [1]}', "x"])],
        )
        page.reload()
        expect(page.locator("#model")).to_have_text("tiny")
        page.locator("#conversations .name", has_text="good").first.click()
        expect(page.locator(".message.user .text")).to_have_text("q")
    expect(page.locator(".toast")).to_contain_text("damaged")


def test_conversations_of_the_one_list_that_was_kept_once_are_moved(page):
    old = [
        {"id": f"{n}-x", "title": f"t{n}", "messages": [
            {"role": "user", "content": f"q{n}"},
            {"role": "assistant", "content": f"a{n}", "reasoning": "", "finish": "stop", "seconds": 1}]}
        for n in range(3)
    ]  # fmt: skip
    page.evaluate("(old) => localStorage.setItem('ziphius.conversations', JSON.stringify(old))", [*old, None, 3])
    for _ in range(2):
        page.reload()
        expect(page.locator("#conversations .name")).to_have_text(["t0", "t1", "t2"])
        expect(page.locator(".message.assistant .answer")).to_have_text("a0")
    assert page.evaluate("localStorage.getItem('ziphius.conversations')") is None


def test_after_a_start_that_did_not_finish_texts_are_shown_as_they_are(page):
    keep(page, GOOD | {"messages": [GOOD["messages"][0], GOOD["messages"][1] | {"content": "**bold**"}]})
    page.add_init_script("sessionStorage.once ?? localStorage.setItem('ziphius.drawing', '1'); sessionStorage.once = 1")
    page.reload()
    expect(page.locator(".answer")).to_have_text("**bold**")
    page.get_by_role("button", name="Format them again").click()
    expect(page.locator(".answer strong")).to_have_text("bold")
    page.reload()
    expect(page.locator(".answer strong")).to_have_text("bold")


def test_a_full_browser_says_so_and_loses_nothing_on_the_page(page):
    page.evaluate("for (let n = 1; n < 2**23; n *= 2) try { localStorage.filler += 'x'.repeat(2**23 / n) } catch {}")
    hear(page, *texts("here it is"))
    ask(page, "is there room?")
    answered(page)
    expect(page.locator(".toast")).to_contain_text("room for conversations is full")
    expect(page.locator(".answer")).to_have_text("here it is")
    page.evaluate("localStorage.removeItem('filler')")
    page.get_by_role("button", name="Regenerate").click()
    answered(page)
    page.reload()
    expect(page.locator(".branches")).to_contain_text("2/2")


def test_thinking_without_end_costs_no_more_as_it_grows(page):
    hear(page, *[chunk(reasoning_content="deeper " * 700) for _ in range(400)], chunk("length"))
    ask(page, "think")
    answered(page)
    page.locator(".thinking summary").click()
    expect(page.locator(".thoughts")).to_contain_text("Show more")
    assert page.locator(".thoughts").evaluate("(place) => place.textContent.length") < 31_000
    assert reacts(page) < 5


def test_hostile_calls_are_shown_within_bounds(page):
    call = lambda **said: chunk(tool_calls=[{"index": 0, "function": said}])
    given = [call(arguments="[" * 10_000) for _ in range(30)]
    hear(page, call(name="a" + "\u0301" * 5000), *given, chunk("tool_calls"))
    ask(page, "q")
    answered(page)
    assert page.locator(".call pre").text_content() == "[" * 20_000
    assert len(page.locator(".call strong").text_content()) < 10
    assert reacts(page) < 5
    starts_again(page)
