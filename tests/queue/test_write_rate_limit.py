"""GitHub's limits for writes, kept by all workers together."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from osiris.core.errors import LeaseLost, Unavailable
from osiris.queue import tables
from osiris.queue.database import connect, migrate_schema
from osiris.queue.leases import Lease
from osiris.queue.tables import TurnRow
from osiris.queue.write_rate_limit import DatabaseWriteLimiter, WriteLimits, seconds_until_slot
from tests.servers import Postgres

pytestmark = pytest.mark.both_pairs

GITHUB = WriteLimits()


@given(st.lists(st.floats(0, 30), max_size=700))
def test_no_stream_of_writes_breaks_a_limit(gaps: list[float]):
    sent: list[float] = []
    at = 0.0
    for gap in gaps:
        at += gap
        sent.append(at + seconds_until_slot(sent[-GITHUB.hour :], at, GITHUB))
        at = max(at, sent[-1])
    for limit, seconds in ((1, 1.0), (80, 60.0), (500, 3600.0)):
        assert all(b - a >= seconds - 1e-6 for a, b in zip(sent, sent[limit:], strict=False))


def test_who_writes_seldom_waits_for_nothing():
    assert seconds_until_slot([], 100.0, GITHUB) == 0.0
    assert seconds_until_slot([98.0], 100.0, GITHUB) == 0.0


Worker = Callable[[str], contextlib.AbstractAsyncContextManager[tuple[Lease, DatabaseWriteLimiter]]]


@pytest.fixture
async def worker(place: Path, pair: dict[str, str]) -> AsyncIterator[Worker]:
    """worker(name) is a lease and a pace of its own on the same database."""
    url = pair.get("database_url") or f"sqlite:///{place}/osiris.db"
    await migrate_schema(engine := connect(url))

    @contextlib.asynccontextmanager
    async def working(name: str) -> AsyncIterator[tuple[Lease, DatabaseWriteLimiter]]:
        lease = Lease(engine, name)
        await lease.acquire()
        yield lease, DatabaseWriteLimiter(engine, lease, WriteLimits(pause=0.2, minute=5, hour=8))

    yield working
    await engine.dispose()


async def test_two_workers_write_one_after_the_other_and_never_at_once(worker: Worker):
    at_once = 0
    began = []

    async def write(pace: DatabaseWriteLimiter) -> None:
        nonlocal at_once
        async with pace.slot("acme"):
            at_once += 1
            began.append(asyncio.get_running_loop().time())
            assert at_once == 1
            await asyncio.sleep(0.05)
            at_once -= 1

    async with worker("a") as (_, a), worker("b") as (_, b):
        await asyncio.gather(*(write(pace) for pace in (a, b, a, b)))
    gaps = [later - earlier for earlier, later in itertools.pairwise(began)]
    # their slots are 0.2 s apart; who is late in the first comes nearer to the second
    assert min(gaps) >= 0.1


async def test_accounts_do_not_wait_for_each_other(worker: Worker):
    async with worker("a") as (_, pace), pace.slot("acme"), asyncio.timeout(2), pace.slot("other"):
        pass


async def test_a_spent_minute_puts_the_write_off_and_says_for_how_long(worker: Worker):
    async with worker("a") as (_, pace):
        for _ in range(5):
            async with pace.slot("acme"):
                pass
        with pytest.raises(Unavailable) as refused:
            async with pace.slot("acme"):
                pass
        assert 50 < (refused.value.retry_in or 0) <= 60


async def test_a_pause_that_github_asked_for_holds_for_every_worker(worker: Worker):
    async with worker("a") as (_, a), worker("b") as (_, b):
        await a.pause("acme", 60)
        with pytest.raises(Unavailable) as refused:
            async with b.slot("acme"):
                pass
        assert 55 < (refused.value.retry_in or 0) <= 60


async def test_what_a_clock_that_was_ahead_noted_holds_nobody_up(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    now = tables.clock()
    async with worker("a") as (_, pace):
        monkeypatch.setattr(tables, "clock", lambda: now + 86400)
        async with pace.slot("acme"):
            pass
        monkeypatch.setattr(tables, "clock", lambda: now)
        async with asyncio.timeout(2), pace.slot("acme"):
            pass


async def test_a_pause_that_a_clock_that_was_ahead_noted_holds_nobody_up(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    now = tables.clock()
    async with worker("a") as (_, pace):
        monkeypatch.setattr(tables, "clock", lambda: now + 86400)
        await pace.pause("acme", 60)
        for at in (now, now + 86400):  # nor does it when the clock gets there in the end
            monkeypatch.setattr(tables, "clock", lambda at=at: at)
            async with asyncio.timeout(2), pace.slot("acme"):
                pass


async def test_the_longest_pause_holds_also_where_the_clock_is_a_little_behind(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    now = tables.clock()
    async with worker("a") as (_, a), worker("b") as (_, b):
        await a.pause("acme", 3600)
        monkeypatch.setattr(tables, "clock", lambda: now - 5)
        with pytest.raises(Unavailable) as refused:
            async with b.slot("acme"):
                pytest.fail("it wrote")
        assert 3590 < (refused.value.retry_in or 0) <= 3600


async def test_a_worker_that_died_with_its_turn_holds_nobody_up(worker: Worker):
    async with worker("a") as (a, pace), worker("b") as (_, other):
        holding = pace.slot("acme")
        await holding.__aenter__()
        await a.release()
        async with asyncio.timeout(3), other.slot("acme"):
            pass


@pytest.mark.parametrize("limited", [True, False])
async def test_without_its_lease_a_worker_may_write_nothing(worker: Worker, limited: bool):
    async with worker("a") as (lease, pace):
        if not limited:
            pace = DatabaseWriteLimiter(lease._engine, lease, None)
        async with worker("a"):  # a new life in the same data folder
            with pytest.raises(LeaseLost):
                async with pace.slot("acme"):
                    pytest.fail("it wrote")


async def write(pace: DatabaseWriteLimiter) -> None:
    async with pace.slot("acme"):
        pass


async def begun(worker_: Lease) -> "asyncio.Task[None]":
    """A write that has its turn, and waits two seconds until it may be sent."""
    pace = DatabaseWriteLimiter(worker_._engine, worker_, WriteLimits(pause=2.0))
    await write(pace)
    waiting = asyncio.create_task(write(pace))
    async with asyncio.timeout(2), worker_._engine.connect() as connection:
        while await connection.scalar(select(TurnRow.lease)) is None:
            await connection.rollback()
            await asyncio.sleep(0.05)
    return waiting


async def test_who_is_cut_off_before_its_write_is_sent_gives_its_turn_back(worker: Worker):
    async with worker("a") as (a, _), worker("b") as (_, other):
        (waiting := await begun(a)).cancel()
        await asyncio.wait([waiting])
        await write(other)


on_servers = pytest.mark.parametrize("pair", ["servers"], indirect=True)


@on_servers
async def test_a_turn_that_could_not_be_given_back_is_given_back_with_the_next_beat(
    worker: Worker, postgres: Postgres
):
    async with worker("a") as (a, pace), worker("b") as (_, other):
        async with pace.slot("acme"):
            postgres.stop()
        postgres.start()
        await a.renew()
        await write(other)


@on_servers
async def test_so_is_the_turn_of_a_write_that_was_not_sent(worker: Worker, postgres: Postgres):
    async with worker("a") as (a, _), worker("b") as (_, other):
        waiting = await begun(a)
        postgres.stop()
        with pytest.raises(Unavailable, match="database"):
            await waiting
        postgres.start()
        await a.renew()
        await write(other)


@on_servers
async def test_a_beat_gives_back_no_turn_that_its_worker_has_again(
    worker: Worker, postgres: Postgres
):
    async with worker("a") as (a, pace), worker("b") as (_, other):
        async with pace.slot("acme"):
            postgres.stop()
        postgres.start()
        async with pace.slot("Acme"):
            await a.renew()
            waiting = asyncio.create_task(write(other))
            assert await asyncio.wait([waiting], timeout=0.5) == (set(), {waiting})
        await waiting


@on_servers
async def test_a_beat_waits_for_nobody_who_stands_still_with_a_turn(
    worker: Worker, postgres: Postgres
):
    async with worker("a") as (a, pace), worker("b") as (_, other):
        async with pace.slot("acme"):
            postgres.stop()
        postgres.start()
        async with a._engine.begin() as connection:  # as a transaction of another worker would
            await connection.execute(select(TurnRow.lease).with_for_update())
            async with asyncio.timeout(2):
                await a.renew()
        await a.renew()
        await write(other)
