"""The bridge between the engine's thread and the event loop."""

import asyncio
import itertools
import time

import pytest

from ziphius.engine.request import Request
from ziphius.engine.settings import SamplingSettings
from ziphius.serve.wire.runner import Runner

from .scripted import ScriptedEngine


def request(new):
    return Request([5, 6, 7], SamplingSettings(max_new_tokens=new, ignore_eos=True))


async def whole(ticket):
    updates = []
    while not updates or updates[-1].finish_reason is None:
        updates += [update for _, update in await ticket.take()]
    return updates


@pytest.fixture
def engine():
    return ScriptedEngine(lambda _: itertools.count(10), delay=0.001)


def run(engine, work):
    async def main():
        runner = Runner(engine)
        runner.start(asyncio.get_running_loop())
        try:
            return await asyncio.wait_for(work(runner), 20)
        finally:
            runner.stop()

    return asyncio.run(main())


def test_no_token_is_lost_while_the_loop_is_busy(engine):
    """The engine answers a request that the loop has not yet heard to be accepted."""

    async def block():
        time.sleep(0.05)

    async def work(runner):
        before = await runner.submit([request(500)])
        _, ticket, _ = await asyncio.gather(block(), runner.submit([request(20)]), block())
        found = await whole(ticket)
        runner.cancel(before)
        return found

    assert [token for update in run(engine, work) for token in update.token_ids] == list(range(10, 30))


def test_a_step_that_fails_once_is_made_up_for(engine):
    """Whatever an engine throws, the thread goes on."""

    async def work(runner):
        ticket = await runner.submit([request(30)])
        engine.failing = MemoryError()
        return await whole(ticket)

    assert [token for update in run(engine, work) for token in update.token_ids] == list(range(10, 40))


def test_an_order_that_fails_is_followed_again(engine, monkeypatch):
    cancel, failures = engine.cancel, [OSError(), OSError()]

    def fail(id):
        if failures:
            raise failures.pop()
        cancel(id)

    monkeypatch.setattr(engine, "cancel", fail)

    async def work(runner):
        ticket = await runner.submit([request(10**6)])
        runner.cancel(ticket)
        while engine.has_work:
            await asyncio.sleep(0.01)
        return await whole(await runner.submit([request(5)]))

    assert len(run(engine, work)) == 5
    assert engine.cancelled == [1]


def test_many_requests_at_once_are_cancelled_in_a_moment(engine):
    async def work(runner):
        ticket = await runner.submit([request(10**6) for _ in range(2000)])
        began = time.monotonic()
        runner.cancel(ticket)
        while engine.has_work:
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    engine.delay = 0.0
    assert run(engine, work) < 5
