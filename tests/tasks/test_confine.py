"""A checker that has been taken over cannot get out of its worker. What is refused depends on what the machine gives:
each test asserts what the layers that are there must hold."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ziphius.disk.write import is_alive
from ziphius.tasks import process
from ziphius.tasks.sandbox.confine import sentence

# Runs the answer, as a checker does that has been taken over; 1 where it got through.
TAKEN_OVER = """
import builtins, ctypes, io, mmap, os, resource, shutil, signal, socket, subprocess, sys, threading, time
from pathlib import Path

def judge(answer, gold):
    exec(answer, globals())
    return 1
"""


@pytest.fixture
def attempt(pool, checker):
    check = checker(TAKEN_OVER)

    def run(*attempts):
        return pool.judge([check(text) for text in attempts])

    return run


@pytest.fixture
def layers(attempt, pool):
    attempt("pass")
    return pool._owners[0].worker.layers


def refused(verdicts):
    return all(verdict.score is None for verdict in verdicts)


def test_nothing_outside_the_scratch_folder_is_written(attempt, layers, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    mode = kept.stat().st_mode
    fresh = tmp_path / "fresh"
    verdicts = attempt(
        f"open({str(fresh)!r}, 'w').write('x')",
        f"open({str(kept)!r}, 'a').write('x')",
        f"open({str(kept)!r}, 'r+').write('x')",
        f"os.close(os.open({str(fresh)!r}, os.O_CREAT | os.O_WRONLY))",
        f"os.truncate({str(kept)!r}, 0)",
        f"os.unlink({str(kept)!r})",
        f"os.rename({str(kept)!r}, {str(fresh)!r})",
        f"os.symlink('/', {str(fresh)!r})",
        f"os.link({str(kept)!r}, {str(fresh)!r})",
        f"os.mkdir({str(fresh)!r})",
        f"os.mkfifo({str(fresh)!r})",
        f"os.chmod({str(kept)!r}, 0)",
        f"os.utime({str(kept)!r}, (0, 0))",
        f"os.setxattr({str(kept)!r}, 'user.x', b'1')",
        f"open({str(Path(tempfile.gettempdir()) / fresh.name)!r}, 'w').write('x')",
        "open(gold or os.path.abspath(__file__), 'a').write('x')",
    )
    assert not kept.exists() or kept.read_text() in ("as it was", "")
    if layers["landlock"] or layers["seccomp"]:
        assert refused(verdicts)
    if layers["seccomp"]:  # alone or with Landlock
        assert kept.read_text() == "as it was"
        assert kept.stat().st_mode == mode
        assert not fresh.exists()


def test_the_scratch_folder_is_bounded_and_goes_with_its_worker(attempt, layers, pool):
    worker = pool._owners[0].worker
    (small,) = attempt("Path('note').write_text('hello'); assert Path('note').read_text() == 'hello'")
    assert (small.score == 1.0) is layers["scratch"]
    (large,) = attempt("open('large', 'wb').write(bytes(64 << 20))")
    (many,) = attempt("[open(f'part{i}', 'wb').write(bytes(8 << 20)) for i in range(20)]")
    assert large.score is None
    if layers["namespaces"]:
        assert many.score is None
        assert os.listdir(worker._scratch) == []  # what it wrote never was on our disk
    worker._process.kill()
    assert attempt("pass")[0].score == 1.0
    assert not Path(worker._scratch).exists()


def test_the_network_is_out_of_reach(attempt, layers):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        verdicts = attempt(
            f"socket.create_connection(('127.0.0.1', {port}), timeout=5)",
            f"socket.socket(socket.AF_INET6).connect(('::1', {port}))",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53))",
            "socket.create_server(('127.0.0.1', 0))",
            "socket.socketpair()",
            "socket.socket(socket.AF_UNIX)",
            "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)",
        )
        if layers["seccomp"]:
            assert refused(verdicts)
        if layers["seccomp"] or layers["namespaces"] or layers["landlock"] >= 4:
            assert verdicts[0].score is None
            with pytest.raises(TimeoutError):
                server.accept()


def test_no_program_and_no_process_is_started(attempt, layers):
    verdicts = attempt(
        "os.execv('/bin/sh', ['sh', '-c', 'true'])",
        "subprocess.run(['/bin/sh', '-c', 'true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.system('true') and 1 / 0",
        "os.fork()",
        "[os.fork() for _ in range(1000)]",
        "ctypes.CDLL(None).fork() == -1 and 1 / 0",
    )
    if layers["seccomp"]:
        assert refused(verdicts)
    if layers["landlock"]:
        assert refused(verdicts[:4])
    assert attempt("threading.Thread(target=print).start()")[0].score == 1.0 or not layers["seccomp"]


def test_others_are_left_alone(attempt, layers):
    verdicts = attempt(
        "os.kill(os.getppid(), 0)",
        "os.kill(os.getppid(), signal.SIGTERM)",
        "os.kill(1, 0)",
        "os.killpg(os.getpgid(os.getppid()), 0)",
        "ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) and 1 / 0",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)",
        "open(f'/proc/{os.getppid()}/environ').read()",
        "open(f'/proc/{os.getppid()}/mem', 'rb').read(1)",
    )
    if layers["seccomp"]:
        assert refused(verdicts[:6])
    if layers["landlock"]:
        assert refused(verdicts[6:])


def test_limits_and_layers_cannot_be_taken_off(attempt, layers):
    libc = "ctypes.CDLL(None)"
    verdicts = attempt(
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))",
        f"{libc}.unshare(0x10000000) and 1 / 0",
        f"{libc}.mount(b'none', b'/', b'tmpfs', 0, None) and 1 / 0",
        f"{libc}.prctl(1, 0, 0, 0, 0) and 1 / 0",
        f"{libc}.syscall(425, 8, 0) == -1 and 1 / 0",
        f"{libc}.memfd_create(b'x', 0) == -1 and 1 / 0",
    )
    assert refused(verdicts[:2])
    if layers["seccomp"]:
        assert refused(verdicts[2:])


def test_secrets_stay_here(attempt, layers, monkeypatch, tmp_path):
    monkeypatch.setenv("ZIPHIUS_TEST_TOKEN", "hunter2")
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    environment, file, own = attempt(
        "assert 'hunter2' not in str(os.environ)",
        f"open({str(secret)!r}).read()",
        "open(Path(__file__).parent / 'checks.py').read()",
    )
    assert environment.score == own.score == 1.0
    if layers["landlock"]:
        assert file.score is None


def test_memory_is_bounded(attempt):
    verdicts = attempt("bytearray(64 << 30)", "pass", "x = []\nwhile True: x.append(bytearray(256 << 20))", "pass")
    assert [verdict.score for verdict in verdicts] == [None, 1.0, None, 1.0]
    assert "memory" in verdicts[0].reason


def test_time_is_bounded(pool, checker, monkeypatch):
    check = checker(TAKEN_OVER, limit_s=0.3)
    monkeypatch.setattr(process, "WALL_EXTRA_S", 0.0)
    monkeypatch.setattr(process, "WALL_FACTOR", 4.0)
    busy, in_c, asleep, disarmed, fine = pool.judge(
        [
            check("while True: pass"),
            check("9**9**9"),
            check("time.sleep(600)"),
            check("signal.setitimer(signal.ITIMER_PROF, 0)\nwhile True: pass"),
            check("pass"),
        ]
    )
    assert busy.reason == in_c.reason == "the check took longer than 0.3 s of processor time"
    assert asleep.reason == disarmed.reason == "the check was not done after 1.2 s"
    assert [verdict.score for verdict in (busy, in_c, asleep, disarmed, fine)] == [None] * 4 + [1.0]


def test_what_it_prints_goes_nowhere(attempt, capfd):
    (verdict,) = attempt("for _ in range(500): print('x' * 10**6); sys.stderr.write('y' * 10**6); os.write(1, b'z')")
    assert verdict.score == 1.0
    said = capfd.readouterr()
    assert not set("xyz") & set(said.out)
    assert "yyy" not in said.err


def test_a_worker_dies_with_its_parent(tmp_path):
    """Killed as the machine's memory killer does it, while a check runs for ever."""
    checks = tmp_path / "checks.py"
    checks.write_text("import time\ndef judge(answer, gold):\n    while True: time.sleep(0.05)\n")
    code = f"""
import threading, time
from pathlib import Path
from ziphius.tasks import Problem
from ziphius.tasks.own import FileVerifier
from ziphius.tasks.pool import Pool
from ziphius.tasks.verifier import Check
pool = Pool(1)
check = Check(FileVerifier.of(Path({str(checks)!r}), "judge", 600), Problem("own", "", ""), "x")
threading.Thread(target=pool.judge, args=([check],), daemon=True).start()
while not (pool._owners and pool._owners[0].worker): time.sleep(0.01)
time.sleep(0.5)
print(pool._owners[0].worker._process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while is_alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(worker) or sys.platform != "linux"


def test_the_machine_says_what_it_gives():
    every = {"namespaces": True, "landlock": 7, "seccomp": True, "scratch": True}
    assert sentence(every).startswith("answers are judged in processes confined by namespaces (no network), Landlock 7")
    assert "offers no" not in sentence(every)
    none = {"namespaces": False, "landlock": 0, "seccomp": False, "scratch": False}
    assert sentence(none) == (
        "answers are judged in processes confined by limits of time and memory; "
        "this machine offers no namespaces and no landlock and no seccomp"
    )


@pytest.mark.parametrize("missing", ["namespaces", "landlock", "seccomp"])
def test_each_layer_alone_may_be_missing(checker, monkeypatch, tmp_path, missing):
    """As on older kernels and in containers: the others hold."""
    broken = {
        "namespaces": "namespaces.enter = refuse",
        "landlock": "landlock.version = lambda: 0",
        "seccomp": "seccomp.restrict = refuse",
    }[missing]
    monkeypatch.setattr(
        process,
        "CODE",
        "from ziphius.tasks.sandbox import landlock, namespaces, seccomp\n"
        "def refuse(*_): raise OSError('not here')\n"
        f"{broken}\n{process.CODE}",
    )
    from ziphius.tasks.pool import Pool

    pool, check, file = Pool(1), checker(TAKEN_OVER), tmp_path / "written"
    try:
        fine, written, network = pool.judge(
            [check("pass"), check(f"open({str(file)!r}, 'w').write('x')"), check("socket.create_server(('', 9))")]
        )
        assert not pool._owners[0].worker.layers[missing]
        assert fine.score == 1.0
        assert written.score is None
        assert not file.exists() or not file.read_text()
        assert network.score is None or not any(pool._owners[0].worker.layers.values())
    finally:
        pool.close()
