"""The chat page in a browser: how tests open it, ask, and have it hear answers that no model would give."""

import contextlib
import json
import shutil

from playwright.sync_api import expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "no Chromium on this machine (Debian's package: chromium)"
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
COMPLETIONS = "**/v1/chat/completions"


@contextlib.contextmanager
def opened(browser, url, **options):
    """The page at `url`; fails at its end on an error of the page, its crash, or anything it asks of others."""
    context = browser.new_context(**options)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
    page = context.new_page()
    page.set_default_timeout(15_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("crash", lambda _: errors.append("the page crashed"))
    page.on("request", lambda r: r.url.startswith((url, "blob:")) or errors.append(f"asked for {r.url}"))
    try:
        page.goto(url)
        yield page
    finally:
        context.close()
    assert errors == []


def ask(page, text):
    page.get_by_label("Your question").fill(text)
    page.keyboard.press("Enter")


def answered(page, count=1):
    """Wait until so many answers have ended."""
    expect(page.locator(".bill")).to_have_count(count)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()


def chunk(finish=None, usage=None, **delta):
    """One event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"choices": [choice]} | ({"usage": usage} if usage else {})


def texts(text, pieces=20):
    """A text as that many chunks."""
    size = max(1, -(-len(text) // pieces))
    return [chunk(content=text[i : i + size]) for i in range(0, len(text), size)] + [chunk("stop")]


def hear(page, *chunks):
    """Every answer from now on is these chunks; what was asked is put into the list that comes back."""
    asked = []
    body = "".join(f"data: {json.dumps(said)}\n\n" for said in chunks) + "data: [DONE]\n\n"

    def fulfil(route):
        asked.append(route.request.post_data_json)
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.unroute(COMPLETIONS)
    page.route(COMPLETIONS, fulfil)
    return asked
