"""The log: whatever is sent, each line is short JSON in ASCII, and nobody waits for whoever should read it."""

import json
import logging
import os
import sys
import threading
import time
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serve.scripted import ScriptedEngine
from tests.serve.test_limits import until
from ziphius.serve.contracts.errors import ApiError
from ziphius.serve.wire.log import MOST, JsonLines, PipeHandler, Seldom, as_line, bounded, json_log, short

HOSTILE = "\x1b[31m\u009b31m\u2028\u2029\r\n\x00\ud800'\"\\ whale"


@pytest.fixture
def pipe():
    """Both ends of a pipe."""
    reading, writing = os.pipe()
    yield reading, writing
    for end in (reading, writing):
        os.close(end)


def lines_of(reading):
    """The lines that are there."""
    os.set_blocking(reading, False)
    said = b""
    try:
        while piece := os.read(reading, 65536):
            said += piece
    except BlockingIOError:
        pass
    assert said.isascii()
    return [json.loads(line) for line in said.decode().split("\n") if line]


@given(st.text(), st.text(), st.recursive(st.text() | st.integers() | st.none(), st.lists), st.integers(1, 9))
@settings(max_examples=60)
def test_any_event_is_one_short_line(key, value, nested, times):
    line = as_line({"path": HOSTILE, key: value * times, "x": nested, "y": object, "z": {key: [value * 1000]}})
    assert line.isascii()
    assert line.isprintable()
    json.loads(line)
    assert len(short(value * 1000)) <= MOST
    assert len(bounded({key: [value * 1000] * 1000})[short(key)]) <= 128


@given(st.text(), st.integers(0, 3000))
@settings(max_examples=60)
def test_an_error_is_short_and_speaks_to_no_terminal(text, times):
    error = ApiError(400, f"there is no {text * times!s}{HOSTILE} here", param=HOSTILE + text * times)
    assert all(said.isprintable() for said in (error.message, error.param))
    assert len(error.message) < 10_000
    assert error.message.startswith("there is no ")
    assert error.message.endswith(" here")
    json.dumps(error.body, ensure_ascii=False).encode()


def test_what_a_client_sends_comes_back_short_everywhere(serve, tokenizer, caplog):
    caplog.set_level(logging.INFO, "ziphius.serve")
    server = serve(ScriptedEngine(lambda _: [tokenizer.eos_id]), max_body_bytes=2**20)
    long = "\u009b\u2028é" * 100_000
    ignored = server.ask(**{long: 1})
    assert (ignored.status_code, server.ask(user=long).status_code) == (200, 200)
    assert 0 < len(ignored.headers["X-Ignored-Fields"]) < 1000
    for fields in (
        {"model": long},
        {"response_format": {"type": long}},
        {"tools": [{long: 1}]},
    ):
        response = server.ask(**fields)
        assert 400 <= response.status_code < 500
        assert len(response.content) < 10_000
        assert response.json()["error"]["message"].isprintable()
    server.http.get("/" + "x" * 20_000 + "%C2%9B%E2%80%A8")
    server.http.post("/v1/models", headers={"Content-Encoding": "x" * 9000})
    assert len(caplog.records) == 7
    for line in caplog.messages:
        assert len(line) < 2000
        assert line.isprintable()
        assert json.loads(line)["client"] == "127.0.0.1"


def test_whatever_the_process_says_is_a_line_of_json(pipe):
    reading, writing = pipe
    handler = PipeHandler(writing)
    before = sys.stderr
    with json_log(handler):
        logging.getLogger("asyncio").error("of asyncio's")
        logging.getLogger("uvicorn.error").warning("%s\nof %s", "x" * 50_000, "uvicorn's")
        logging.getLogger("uvicorn.error").info("nobody wants to know")
        logging.getLogger("ziphius.serve").warning("broken %d", "no number")
        warnings.warn("a warning", stacklevel=1)
        print("printed\nin lines", HOSTILE, file=sys.stderr)
        try:
            raise ValueError("x" * 50_000)
        except ValueError:
            logging.getLogger("ziphius.serve").exception("with its traceback")
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()
    assert sys.stderr is before
    said = lines_of(reading)
    text = json.dumps(said)
    for part in ("of asyncio's", "of uvicorn's", "a warning", "printed", "in lines", "could not be made"):
        assert part in text
    assert "nobody wants" not in text
    traces = [line["traceback"] for line in said if "traceback" in line]
    assert len(traces) == 2
    assert "ZeroDivisionError" in traces[1]
    assert all(len(json.dumps(line)) < 20_000 for line in said)
    assert said[0].keys() == {"time", "level", "logger", "message"}


def test_a_log_that_nobody_reads_stops_nothing(pipe, serve, tokenizer):
    reading, writing = pipe
    handler = PipeHandler(writing)
    server = serve(ScriptedEngine(lambda _: [tokenizer.eos_id]))
    server.service.metrics.watch_log(lambda: handler.dropped)
    with json_log(handler):
        for _ in range(4000):
            logging.getLogger("ziphius.serve").warning("a flood")
        assert handler.dropped > 0
        for _ in range(5):
            assert server.http.get("/nowhere").status_code == 404
        assert server.ask().status_code == 200
        assert f"ziphius_log_lines_dropped {float(handler.dropped)}" in server.http.get("/metrics").text
        said = lines_of(reading)
        until(lambda: said.extend(lines_of(reading)) or len(said) == 4006 - handler.dropped)
        logging.getLogger("ziphius.serve").warning("after the flood")
        until(lambda: said.extend(lines_of(reading)) or said[-1].get("message") == "after the flood")
        assert sum(line.get("dropped", 0) for line in said) == handler.dropped
        for _ in range(3000):
            logging.getLogger("ziphius.serve").warning("x" * 500)
        began = time.monotonic()
    assert time.monotonic() - began < 5  # the end waits for no reader


def test_what_happens_often_is_said_seldom(caplog):
    log = logging.getLogger("ziphius.serve")
    seldom = Seldom(log, 60)
    for _ in range(1000):
        seldom.say("a", {"x": HOSTILE * 100})
        seldom.say("b", {})
    assert [json.loads(line)["times"] for line in caplog.messages] == [1, 1]
    quick = Seldom(log, 0)
    quick.say("a", {})
    quick.say("a", {})
    assert len(caplog.messages) == 4


def test_an_event_keeps_its_own_fields():
    record = logging.LogRecord("ziphius.serve", logging.INFO, "", 0, "{}", None, None)
    record.event = {"status": 200, "user": "x" * 1000, "answer": "y" * 1000}
    line = json.loads(JsonLines().format(record))
    assert (line["status"], line["level"], len(line["user"]), len(line["answer"])) == (200, "info", MOST, 1000)
