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


def test_a_request_accepted_by_a_broken_engine_fails_at_once(engine):
    async def work(runner):
        asked = asyncio.ensure_future(runner.submit([request(5)]))
        await asyncio.sleep(0)
        runner._fail("it broke", broken=True)  # the loop hears of the failure first
        return await whole(await asked)

    last = run(engine, work)[-1]
    assert (last.finish_reason, last.error) == ("error", "it broke")
