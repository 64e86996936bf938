"""Constraints in processes of their own: hostile ones fail alone, quickly, and leave nothing behind."""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ziphius.engine.engine import Engine
from ziphius.engine.grammar.frames import Reply, pack_reply, split, unpack_reply
from ziphius.engine.grammar.lanes import Abandoned, Lane
from ziphius.engine.grammar.library import View
from ziphius.engine.grammar.store import Grammars
from ziphius.engine.settings import Constraint, EngineSettings

from .conftest import ask, small

DIGITS = Constraint(kind="regex", text="[0-9]{1,30}")
MIB = 1 << 20


def regex(text):
    return Constraint(kind="regex", text=text)


def lark(text):
    return Constraint(kind="grammar", text=text)


def schema(value):
    return Constraint(kind="json_schema", text=value if isinstance(value, str) else json.dumps(value))


def doubling(levels):
    """A grammar of 2^levels letters."""
    return "start: a0\n" + "".join(f"a{n}: a{n + 1} a{n + 1}\n" for n in range(levels)) + f'a{levels}: "x"\n'


HOSTILE = {
    "repeated repetition": regex("x1(a{1000}){1000}"),
    "long repetition": regex("a{1000000}"),
    "deep regex": regex("(" * 100_000 + "a" + ")" * 100_000),
    "many words": regex("|".join(f"w{n}" for n in range(100_000))),
    "many alternatives": lark("start: " + " | ".join(f'"w{n}"' for n in range(100_000))),
    "doubling": lark(doubling(40)),
    "deep grammar": lark("start: " + "(" * 100_000 + '"a"' + ")" * 100_000),
    "repeated rule": lark('start: ("a" "b"){1000000}'),
    "a schema that is itself, within": lark('start: "a" args\nargs: %json {"$ref": "#"}\n'),
    "a schema that is itself": schema({"$ref": "#"}),
    "deep schema": schema('{"items":' * 50_000 + "{}" + "}" * 50_000),
    "many properties": schema({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(10_000)}}),
    "many values": schema({"enum": [f"w{n}" for n in range(100_000)]}),
    "references to all": schema(
        {
            "$defs": {
                f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{(n * 7 + k) % 300}"} for k in range(50)] + [{"type": "null"}]}
                for n in range(300)
            },
            "$ref": "#/$defs/d0",
        }
    ),
    "pattern": schema({"type": "string", "pattern": "^x1(a{1000}){1000}$"}),
    "no multiple": schema({"type": "integer", "multipleOf": 999983, "minimum": 1, "maximum": 1e300}),
}


@pytest.fixture
def grammars(tokenizer):
    return Grammars(tokenizer, tokenizer.vocab_size, EngineSettings(grammar_seconds=0.5, grammar_mib=64))


def copies(grammars):
    """Ids of the processes that hold its constraints now."""
    first = grammars._nursery.pid
    if first is None:
        return []
    return [int(pid) for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split()]


def vanish(pids, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("constraint", HOSTILE.values(), ids=HOSTILE)
def test_hostile_constraints_are_refused_with_a_reason(grammars, constraint, monkeypatch):
    with pytest.raises(ValueError, match="cannot be used: ") as refusal, grammars.held(constraint):
        pass
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    assert grammars.bytes == 0
    monkeypatch.setattr(grammars, "_read", None)  # it is remembered, not read again
    with pytest.raises(ValueError, match="cannot be used: "), grammars.held(constraint):
        pass


def test_others_go_on_while_hostile_constraints_are_read(model, tokenizer):
    """The steps of an answer beside them, and a small constraint that comes last."""
    engine = Engine(model, tokenizer, small(grammar_seconds=0.5, grammar_mib=64))
    gate, refused = threading.Event(), []

    def attack(constraint):
        gate.wait()
        try:
            with engine.prepared(ask([5], constraint=constraint), threading.Event()):
                pass
        except ValueError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=attack, args=(constraint,)) for constraint in HOSTILE.values()]
    for thread in threads:
        thread.start()
    gate.set()
    victim = ask([7], max_new_tokens=20, constraint=DIGITS, temperature=1.0)
    with engine.prepared(victim, threading.Event()):
        under_way = any(thread.is_alive() for thread in threads)
        engine.add(victim)
    slowest = 0.0
    while engine.has_work:
        began = time.monotonic()
        engine.step()
        slowest = max(slowest, time.monotonic() - began)
    assert under_way
    assert slowest < 1
    for thread in threads:
        thread.join()
    assert len(refused) == len(HOSTILE)


class TestSlowProcess:
    """A process that says nothing for a while, or ends, under way."""

    @staticmethod
    def run(engine, requests, meddle):
        """Each request's tokens, finish and error; `meddle(form)` after two steps with the form of the first."""
        ids = [engine.add(request) for request in requests]
        found = {id: ([], None, None) for id in ids}
        (form, *_) = {s.course.matcher.form: None for s in engine.scheduler.waiting if s.course is not None}
        steps = []
        while engine.has_work:
            if len(steps) == 2:
                meddle(form)
            steps.append(engine.step())
            for update in steps[-1]:
                tokens, _, _ = found[update.id]
                found[update.id] = tokens + update.token_ids, update.finish_reason, update.error
        return [found[id] for id in ids]

    def test_who_waits_for_it_sits_out_and_gets_the_same_tokens(self, model, tokenizer):
        requests = [ask([5], constraint=DIGITS, temperature=1.0), ask([7], max_new_tokens=30)]
        plain = self.run(Engine(model, tokenizer, small()), requests, lambda form: None)

        def stall(form):
            os.kill(form._copy.pid, signal.SIGSTOP)
            threading.Timer(0.3, os.kill, (form._copy.pid, signal.SIGCONT)).start()

        assert self.run(Engine(model, tokenizer, small()), requests, stall) == plain

    def test_who_needs_it_fails_alone_when_it_is_killed(self, model, tokenizer):
        requests = [ask([5], constraint=DIGITS), ask([7], max_new_tokens=30), ask([9], constraint=regex("[ab]{20}"))]
        plain = self.run(Engine(model, tokenizer, small()), requests, lambda form: None)
        engine = Engine(model, tokenizer, small())
        found = self.run(engine, requests, lambda form: os.kill(form._copy.pid, signal.SIGKILL))
        assert found[1:] == plain[1:]
        assert found[0][1] == "error"
        assert found[0][2].startswith("the constraint failed: ")
        assert self.run(engine, requests, lambda form: None) == plain  # prepared anew


def test_one_that_grows_slow_under_way_fails_alone(model, tokenizer):
    """Within its limits at first; the tokens that ask for more come later."""
    engine = Engine(model, tokenizer, small(grammar_mib=32))
    late = ask([5], constraint=regex("[wh]{25}(c{1000}){1000}"), max_new_tokens=40)
    other = engine.add(ask([7], max_new_tokens=40))
    bad = engine.add(late)
    ends = {}
    while engine.has_work:
        for update in engine.step():
            ends[update.id] = update
    assert ends[other].finish_reason == "length"
    assert (ends[bad].finish_reason, ends[bad].refused) == ("error", True)


def test_what_nobody_waits_for_stops_at_once(tokenizer):
    grammars = Grammars(tokenizer, tokenizer.vocab_size, EngineSettings(grammar_seconds=60))
    left, failure = threading.Event(), []

    def leave():
        try:
            with grammars.held(HOSTILE["many alternatives"], "", left):
                pass
        except Abandoned as error:
            failure.append(error)

    leaving = threading.Thread(target=leave)
    leaving.start()
    end = time.monotonic() + 30
    while not (found := copies(grammars)) and time.monotonic() < end:
        time.sleep(0.02)
    assert found
    left.set()
    leaving.join(10)
    assert failure
    assert vanish(found)


def test_memory_is_bounded_by_bytes(tokenizer):
    """What is unused goes when the cache is full; what is in use, when all together is, the largest first."""
    settings = EngineSettings(grammar_cache_mib=20, grammars_mib=64)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, settings)
    for n in range(12):
        with grammars.held(regex(f"[a-z]{{{n},30}}")):
            pass
        assert grammars.bytes <= 20 * MIB
    assert grammars.bytes > 0
    small_one = grammars.matchers(DIGITS, 1)
    words = "|".join(f"w{n * 7919 % 100003}" for n in range(40_000))
    large = grammars.matchers(regex(words), 1)
    assert large[0].form.peak > small_one[0].form.peak
    more = [grammars.matchers(regex(f"[A-Z]{{{n},9}}"), 1)[0] for n in range(4)]
    assert grammars.bytes <= 64 * MIB
    assert large[0].form.broken is not None
    assert small_one[0].form.broken is None
    for matcher in [*small_one, *large, *more]:
        matcher.close()
    assert grammars.bytes <= 20 * MIB


def test_what_nobody_uses_is_kept_for_a_while_only(grammars, monkeypatch):
    monkeypatch.setattr("ziphius.engine.grammar.store._KEPT_S", 0.3)
    with grammars.held(DIGITS) as first:
        pass
    with grammars.held(DIGITS) as second:
        assert second is first
        time.sleep(0.7)
        assert grammars.bytes
    found = copies(grammars)
    assert vanish(found)
    assert grammars.bytes == 0


def test_no_process_outlives_an_engine_or_its_own_process(tokenizer):
    code = (
        "import os, pickle, sys; from ziphius.engine.grammar.store import *;"
        "g = Grammars(pickle.load(sys.stdin.buffer), int(sys.argv[1]), EngineSettings());"
        "m = g.matchers(Constraint(kind='json'), 1)[0];"
        "print(g._nursery.pid, m.form._copy.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tokenizer.vocab_size)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdin.write(pickle.dumps(tokenizer))
    child.stdin.flush()
    pids = [int(pid) for pid in child.stdout.readline().split()]
    assert len(pids) == 2
    child.kill()
    child.wait()
    assert vanish(pids)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, EngineSettings())
    with grammars.held(DIGITS):
        pids = [grammars._nursery.pid, *copies(grammars)]
    assert len(pids) == 2
    del grammars
    assert vanish(pids)


def test_the_first_process_is_started_anew_where_it_was_killed(grammars):
    with grammars.held(DIGITS):
        os.kill(grammars._nursery.pid, signal.SIGKILL)
        with grammars.held(regex("[ab]{3}")) as form:
            assert form.broken is None


def test_owners_take_turns_in_a_lane():
    lane, order, never = Lane(1), [], threading.Event()

    def work(owner):
        with lane.turn(owner, never):
            order.append(owner)

    with lane.turn("first", never):
        threads = []
        for owner in ["many", "many", "many", "one"]:
            threads.append(threading.Thread(target=work, args=(owner,)))
            threads[-1].start()
            while len(lane._waiting) < len(threads):
                time.sleep(0.001)
        gone = threading.Event()
        gone.set()
        with pytest.raises(Abandoned), lane.turn("gone", gone):
            pass
    for thread in threads:
        thread.join()
    assert order == ["many", "one", "many", "many"]


def test_replies_survive_the_wire():
    replies = [Reply(1, 2, 3, None, [View(True, b"\1\2"), View(False, b"\3\4")]), Reply(4, 5, 6, "why", [])]
    buffer = bytearray(b"".join(map(pack_reply, replies)))
    rest = pack_reply(replies[0])[:-1]
    buffer += rest
    assert [unpack_reply(body) for body in split(buffer)] == replies
    assert buffer == rest
    for broken in (b"", b"\0" * 18, pack_reply(replies[0])[4:-1]):
        with pytest.raises(ValueError, match=r"no reply|not"):
            unpack_reply(broken)
