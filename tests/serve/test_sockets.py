"""Connections: what a client may do before its request is whole, how many may be there, and what the others notice."""

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.serve.scripted import ScriptedEngine
from tests.serve.test_limits import body, until

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def quick(tokenizer):
    return ScriptedEngine(lambda _: [*tokenizer.encode("a whale"), tokenizer.eos_id])


@pytest.fixture
def dial():
    """`dial(server, *pieces)` -> a connection that has sent them, closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def dialled(server, *pieces):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            for piece in pieces:
                connection.sendall(piece)
            return connection

        yield dialled


def heard(connection):
    """All that the server says until it closes."""
    said = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said


def refusal(said, status):
    head, _, text = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), said
    assert b"connection: close" in head
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# Time and size


def test_a_silent_connection_is_closed_and_a_dripping_one_is_told_why(serve, quick, dial):
    server = serve(quick, header_seconds=0.3)
    silent, dripping = dial(server), dial(server, b"GET /health HTTP/1.1\r\n")
    ending = threading.Event()

    def drip():
        with contextlib.suppress(OSError):
            while not ending.wait(0.05):
                dripping.sendall(b"X-Slow: 1\r\n")

    dripper = threading.Thread(target=drip)
    dripper.start()
    try:
        assert heard(silent) == b""
        assert refusal(heard(dripping), 408)["code"] == "slow_headers"
    finally:
        ending.set()
        dripper.join()
    until(lambda: not server.server.door.open)
    assert server.server.door.turned_away == {"silent": 1, "slow_headers": 1}


def test_between_two_requests_a_connection_may_be_silent_longer(serve, quick, dial):
    server = serve(quick, header_seconds=0.2, idle_seconds=1.5)
    connection = dial(server)
    for pause in (0.9, 0):
        connection.sendall(GET)
        said = b""
        while b'{"status":"ok"}' not in said:
            said += connection.recv(4096)
        time.sleep(pause)
    began = time.monotonic()
    assert heard(connection) == b""
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "head",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000,  # and no end
        b"GET / HTTP/1.1\r\n" + b"x" * 70_000,
    ],
)
def test_headers_have_a_size(serve, quick, dial, head):
    server = serve(quick)
    assert refusal(heard(dial(server, head)), 431)["code"] == "headers_too_large"
    assert server.ask().status_code == 200


def test_endless_trailers_of_a_body_end_the_connection(serve, quick, dial):
    server = serve(quick)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: "
    connection = dial(server, head)
    with contextlib.suppress(OSError):
        for _ in range(64):
            connection.sendall(b"x" * 65536)
    assert b"200" not in heard(connection)
    until(lambda: not server.server.door.open)


def test_a_reader_that_takes_nothing_is_let_go(serve, quick, dial):
    server = serve(quick, write_seconds=0.5)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    with connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 200)
        until(lambda: server.server.door.turned_away["slow_reader"] == 1)
        until(lambda: not server.server.door.open)


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n  x\r\n\r\n", os.urandom(300)],
)
def test_what_is_not_http_is_told_so(serve, quick, dial, noise):
    server = serve(quick, header_seconds=0.5)
    said = heard(dial(server, noise, b"\r\n\r\n"))
    assert refusal(said, 408 if b"408" in said[:20] else 400)
    assert server.ask().status_code == 200


# What HTTP allows


def test_what_http_allows_works(serve, quick, dial):
    server = serve(quick)
    old = heard(dial(server, b"GET /health HTTP/1.0\r\n\r\n"))
    assert b"200 OK" in old
    absolute = dial(server, b"GET http://localhost/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert b'{"status":"ok"}' in heard(absolute)
    last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert heard(dial(server, GET * 20 + last)).count(b'{"status":"ok"}') == 21
    text = json.dumps(body(2, stream=False)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    waiting = dial(server, head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(text))
    assert waiting.recv(4096).startswith(b"HTTP/1.1 100 ")
    waiting.sendall(text)
    assert waiting.recv(65536).startswith(b"HTTP/1.1 200 ")
    pieces = b"".join(b"%x\r\n%b\r\n" % (1, text[i : i + 1]) for i in range(len(text)))
    chunked = dial(server, head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n")
    assert b"200 OK" in heard(chunked)
    assert b"\r\ncontent-length: 15\r\n" in heard(dial(server, last.replace(b"GET", b"HEAD")))


def test_an_offer_of_http_2_is_declined_and_a_websocket_refused(serve, quick, dial):
    server = serve(quick)
    text = json.dumps(body(2, stream=False)).encode()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    said = heard(dial(server, head + offer + b"Content-Length: %d\r\n\r\n%b" % (len(text), text)))
    assert said.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in said
    socket_offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    for request in (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + socket_offer, b"CONNECT a:1 HTTP/1.1\r\n\r\n"):
        assert refusal(heard(dial(server, request)), 400)["code"] == "no_upgrade"


def test_head_is_get_without_the_body(serve, quick):
    server = serve(quick)
    for path in ("/", "/health", "/v1/models"):
        head, got = server.http.head(path), server.http.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(got.content))


# How many


def test_the_longest_idle_gives_way_and_answers_go_on(serve, tokenizer, dial):
    word = tokenizer.encode(" whale")[0]
    engine = ScriptedEngine(lambda _: iter(lambda: word, None), delay=0.01)
    server = serve(engine, max_connections=6, max_connections_per_address=6)
    with server.http.stream("POST", "/v1/chat/completions", json=body(100)) as answer:
        assert answer.status_code == 200
        first, *others = [dial(server) for _ in range(5)]
        until(lambda: len(server.server.door.open) == 6)
        newcomer = dial(server, GET)
        assert b"200 OK" in newcomer.recv(4096)
        assert heard(first) == b""
        for connection in others:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        flood = [dial(server) for _ in range(60)]
        assert b"200 OK" in dial(server, GET).recv(4096)
        assert len(server.server.door.open) <= 6
        assert [line for line in answer.iter_lines() if line][-1] == "data: [DONE]"
    assert len(flood) == 60
    assert server.server.door.turned_away["gave_way"] >= 60
    assert 'ziphius_connections_turned_away_total{reason="gave_way"}' in server.http.get("/metrics").text


def test_where_all_are_being_answered_the_next_is_told(serve, tokenizer, dial):
    word = tokenizer.encode(" whale")[0]
    server = serve(ScriptedEngine(lambda _: iter(lambda: word, None), delay=0.01), max_connections=1)
    with server.http.stream("POST", "/v1/chat/completions", json=body(400)) as answer:
        assert answer.status_code == 200
        assert refusal(heard(dial(server)), 503)["code"] == "full"
    until(lambda: server.service.active == 0)
    until(lambda: not server.server.door.open)
    assert b"200 OK" in dial(server, GET).recv(4096)


def test_one_address_gets_its_part(serve, quick):
    server = serve(quick, max_connections=8, max_connections_per_address=2)
    with contextlib.ExitStack() as stack:
        greedy = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(6)]
        until(lambda: server.server.door.turned_away["gave_way"] == 4)
        assert server.server.door.by_address["127.0.0.1"] == 2
        other = stack.enter_context(
            socket.create_connection(("127.0.0.1", server.port), source_address=("127.0.0.2", 0), timeout=5)
        )
        other.sendall(GET)
        assert b"200 OK" in other.recv(4096)
        assert heard(greedy[0]) == b""


def test_a_moment_without_files_costs_places_for_a_while_only(serve, quick, dial, monkeypatch):
    monkeypatch.setattr("ziphius.serve.wire.door._LOOK", 0.001)
    server = serve(quick, max_connections=20)
    door, accept = server.server.door, socket.socket.accept
    fewest = []

    def refuse_once(listener):
        if not fewest and listener is door.listener:
            fewest.append(door.most)
            raise OSError(24, "Too many open files")
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", refuse_once)
    dial(server, GET)
    until(lambda: door.turned_away["no_file_left"] == 1)
    until(lambda: door.most == 20)
    assert server.http.get("/health").status_code == 200


FEW_FILES = """
import contextlib, resource, socket, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from tests.serve.conftest import running
from tests.serve.scripted import ScriptedEngine
from ziphius.serve.wire.log import PipeHandler, json_log
from ziphius.text.learn import train_tokenizer
tokenizer = train_tokenizer(["a whale dives deep"] * 3, 300)
engine = ScriptedEngine(lambda _: [tokenizer.eos_id])
with json_log(PipeHandler(2)), running(tokenizer, engine, **eval(sys.argv[2])) as server:
    print(server.port, server.server.door.most, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_NOFILE"), reason="the system limits no files")
@pytest.mark.parametrize("options", ["{}", "{'max_connections': 500}"])
def test_few_files_shut_nobody_out(options):
    """80 silent connections where the process may open 64 files: with the derived limit, and with one set too high."""
    files = 64 if options == "{}" else 128
    process = subprocess.Popen(
        [sys.executable, "-c", FEW_FILES, str(files), options],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port, most = map(int, process.stdout.readline().split())
        assert most < 64 or options != "{}"
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            began = time.monotonic()
            asking = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            asking.sendall(GET)
            assert b"200 OK" in asking.recv(4096)
            assert time.monotonic() - began < 5
        _, said = process.communicate(timeout=20)
        lines = [json.loads(line) for line in said.splitlines()]
        reasons = [line["reason"] for line in lines if line.get("event") == "connection"]
        assert ("gave_way" if options == "{}" else "no_file_left") in reasons
        assert len(lines) < 10
        assert re.fullmatch(r"127\.0\.0\.1|", lines[0]["client"])
    finally:
        process.kill()
        process.wait()
