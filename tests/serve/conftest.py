import asyncio
import contextlib
import socket
import threading

import httpx2
import pytest
from hypothesis import settings

from tests.serve.saying import SayingEngine, client_of
from ziphius.serve.dialogue.ask import Limits
from ziphius.serve.server import Server
from ziphius.serve.wire.runner import Runner
from ziphius.serve.wire.service import Service
from ziphius.serve.wire.settings import ServeSettings
from ziphius.text.learn import train_tokenizer
from ziphius.text.tokenizer import Tokenizer

settings.register_profile("ziphius", deadline=None)  # a busy machine must not fail a test
settings.load_profile("ziphius")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a whale dives deep", "1 + 2 = 3", "many whales dive", "鲸鱼"] * 3, 330)


@pytest.fixture(scope="module")  # no longer: while it runs, no test of its thread can run an event loop
def browser():
    """Headless Chromium; without one on this machine, the test is skipped."""
    from playwright.sync_api import sync_playwright

    from tests.serve.pages import CHROMIUM, NO_CHROMIUM, QUIET

    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield started
        started.close()


@pytest.fixture
def page(browser, url):
    """The chat page of the service at `url`, which a module's own fixture says; fails on an error of the page."""
    from playwright.sync_api import expect

    from tests.serve.pages import opened

    with opened(browser, url) as page:
        expect(page.locator("#model")).to_have_text("tiny")
        yield page


class Running:
    """A server in a thread: its address, its service, and a plain HTTP client for it."""

    def __init__(self, service, server, thread):
        self.service, self.server, self.thread = service, server, thread
        port = server.door.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.http = httpx2.Client(base_url=self.url, timeout=20)

    def ask(self, **fields):
        """A chat completion that asks "hi"."""
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]} | fields
        return self.http.post("/v1/chat/completions", json=body)

    def end(self):
        """Tell it to stop."""
        self.http.close()
        self.server.should_exit = True


@pytest.fixture(scope="session")
def leaving():
    """Threads of servers that were told to stop, named after their tests: each takes a fifth of a second, most of it
    asleep in uvicorn, for which the next test does not wait."""
    threads = []
    yield threads
    for thread in threads:
        thread.join(20)
    assert [thread.name for thread in threads if thread.is_alive()] == []


@pytest.fixture
def serve(tokenizer, leaving, request):
    """`serve(engine, **settings)` -> a running server, told to stop at the end of the test."""
    servers = []

    def start(engine, **options):
        servers.append(begin(tokenizer, engine, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.end()
        server.thread.name = request.node.nodeid
        leaving.append(server.thread)


@pytest.fixture
def talk(serve, tokenizer):
    """`talk(*texts)` -> a server whose model says the texts one request after the other, its engine, a client of
    Anthropic's API."""

    def start(*texts, **options):
        engine = SayingEngine(tokenizer, *texts)
        server = serve(engine, **{"context": 2048} | options)
        return server, engine, client_of(server)

    return start


@pytest.fixture(scope="module")
def talking(tokenizer):
    """One server for many requests: its engine, whose `texts` and `pace` may be changed, and a client."""
    engine = SayingEngine(tokenizer, "four")
    with running(tokenizer, engine, context=2048) as server:
        yield engine, client_of(server)


def begin(
    tokenizer, engine, context=512, defaults=None, rate=None, keys=None, allowances=None, examples=None, **options
):
    chosen = ServeSettings(**{"name": "tiny", "port": 0, "drain_seconds": 5} | options)
    limits = Limits(context, tokenizer.vocab_size, chosen.max_tokens, defaults or {"temperature": 0.6, "top_p": 0.95})
    given = {"rate": rate, "keys": keys, "allowances": allowances, "examples": examples}
    more = {key: value for key, value in given.items() if value is not None}
    service = Service(chosen, tokenizer, Runner(engine), limits, **more)
    server = Server(service, socket.create_server(("127.0.0.1", 0), backlog=512))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.002)
    return Running(service, server, thread)


@contextlib.contextmanager
def running(tokenizer, engine, **options):
    """A running server that has stopped when this ends."""
    server = begin(tokenizer, engine, **options)
    try:
        yield server
    finally:
        server.end()
        server.thread.join(20)
        assert not server.thread.is_alive()
