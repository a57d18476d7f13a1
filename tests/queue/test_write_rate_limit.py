"""The write limit: all workers together keep GitHub's limits for writes."""

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

LIMITS = WriteLimits()


@given(st.lists(st.floats(0, 30), max_size=700))
def test_no_stream_of_writes_breaks_a_limit(gaps: list[float]):
    write_times: list[float] = []
    at = 0.0
    for gap in gaps:
        at += gap
        write_times.append(at + seconds_until_slot(write_times[-LIMITS.hour :], at, LIMITS))
        at = max(at, write_times[-1])
    for limit, seconds in ((1, 1.0), (80, 60.0), (500, 3600.0)):
        assert all(
            b - a >= seconds - 1e-6 for a, b in zip(write_times, write_times[limit:], strict=False)
        )


def test_who_writes_seldom_waits_for_nothing():
    assert seconds_until_slot([], 100.0, LIMITS) == 0.0
    assert seconds_until_slot([98.0], 100.0, LIMITS) == 0.0


StartWorker = Callable[
    [str], contextlib.AbstractAsyncContextManager[tuple[Lease, DatabaseWriteLimiter]]
]


@pytest.fixture
async def start_worker(folder: Path, pair: dict[str, str]) -> AsyncIterator[StartWorker]:
    """Provide a function that starts a worker: a lease and a separate write limiter on the same
    database."""
    url = pair.get("database_url") or f"sqlite:///{folder}/osiris.db"
    await migrate_schema(engine := connect(url))

    @contextlib.asynccontextmanager
    async def start(name: str) -> AsyncIterator[tuple[Lease, DatabaseWriteLimiter]]:
        lease = Lease(engine, name)
        await lease.acquire()
        yield lease, DatabaseWriteLimiter(engine, lease, WriteLimits(pause=0.2, minute=5, hour=8))

    yield start
    await engine.dispose()


async def test_two_workers_write_one_after_the_other_and_never_at_once(start_worker: StartWorker):
    at_once = 0
    start_times = []

    async def write_and_measure(limiter: DatabaseWriteLimiter) -> None:
        nonlocal at_once
        async with limiter.slot("acme"):
            at_once += 1
            start_times.append(asyncio.get_running_loop().time())
            assert at_once == 1
            await asyncio.sleep(0.05)
            at_once -= 1

    async with start_worker("a") as (_, a), start_worker("b") as (_, b):
        await asyncio.gather(*(write_and_measure(limiter) for limiter in (a, b, a, b)))
    gaps = [later - earlier for earlier, later in itertools.pairwise(start_times)]
    # slots are 0.2 s apart; a worker that is late in the first slot comes nearer to the second
    assert min(gaps) >= 0.1


async def test_accounts_do_not_wait_for_each_other(start_worker: StartWorker):
    async with (
        start_worker("a") as (_, limiter),
        limiter.slot("acme"),
        asyncio.timeout(20),
        limiter.slot("other"),
    ):
        pass


async def test_a_spent_minute_puts_the_write_off_and_says_for_how_long(start_worker: StartWorker):
    async with start_worker("a") as (_, limiter):
        for _ in range(5):
            async with limiter.slot("acme"):
                pass
        with pytest.raises(Unavailable) as refused:
            async with limiter.slot("acme"):
                pass
        assert 50 < (refused.value.retry_in or 0) <= 60


async def test_a_pause_that_github_asked_for_holds_for_every_worker(start_worker: StartWorker):
    async with start_worker("a") as (_, a), start_worker("b") as (_, b):
        await a.pause("acme", 60)
        with pytest.raises(Unavailable) as refused:
            async with b.slot("acme"):
                pass
        assert 55 < (refused.value.retry_in or 0) <= 60


async def test_what_a_clock_that_was_ahead_noted_holds_nobody_up(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
):
    now = tables.clock()
    async with start_worker("a") as (_, limiter):
        monkeypatch.setattr(tables, "clock", lambda: now + 86400)
        async with limiter.slot("acme"):
            pass
        monkeypatch.setattr(tables, "clock", lambda: now)
        async with asyncio.timeout(20), limiter.slot("acme"):
            pass


async def test_a_pause_that_a_clock_that_was_ahead_noted_holds_nobody_up(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
):
    now = tables.clock()
    async with start_worker("a") as (_, limiter):
        monkeypatch.setattr(tables, "clock", lambda: now + 86400)
        await limiter.pause("acme", 60)
        for at in (now, now + 86400):  # nor when the clock reaches that time
            monkeypatch.setattr(tables, "clock", lambda at=at: at)
            async with asyncio.timeout(20), limiter.slot("acme"):
                pass


async def test_the_longest_pause_holds_also_where_the_clock_is_a_little_behind(
    start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
):
    now = tables.clock()
    async with start_worker("a") as (_, a), start_worker("b") as (_, b):
        await a.pause("acme", 3600)
        monkeypatch.setattr(tables, "clock", lambda: now - 5)
        with pytest.raises(Unavailable) as refused:
            async with b.slot("acme"):
                pytest.fail("it wrote")
        assert 3590 < (refused.value.retry_in or 0) <= 3600


async def test_a_worker_that_died_with_its_turn_holds_nobody_up(start_worker: StartWorker):
    async with start_worker("a") as (a, limiter), start_worker("b") as (_, other):
        slot = limiter.slot("acme")
        await slot.__aenter__()
        await a.release()
        async with asyncio.timeout(20), other.slot("acme"):
            pass


@pytest.mark.parametrize("limited", [True, False])
async def test_without_its_lease_a_worker_may_write_nothing(
    start_worker: StartWorker, limited: bool
):
    async with start_worker("a") as (lease, limiter):
        if not limited:
            limiter = DatabaseWriteLimiter(lease._engine, lease, None)
        async with start_worker("a"):  # another process in the same data folder
            with pytest.raises(LeaseLost):
                async with limiter.slot("acme"):
                    pytest.fail("it wrote")


async def write_once(limiter: DatabaseWriteLimiter) -> None:
    async with limiter.slot("acme"):
        pass


async def start_waiting_write(lease: Lease) -> "asyncio.Task[None]":
    """Start a write that has its slot and waits two seconds until it may be sent."""
    limiter = DatabaseWriteLimiter(lease._engine, lease, WriteLimits(pause=2.0))
    await write_once(limiter)
    waiting = asyncio.create_task(write_once(limiter))
    async with asyncio.timeout(2), lease._engine.connect() as connection:
        while await connection.scalar(select(TurnRow.lease)) is None:
            await connection.rollback()
            await asyncio.sleep(0.05)
    return waiting


async def test_who_is_cut_off_before_its_write_is_sent_gives_its_turn_back(
    start_worker: StartWorker,
):
    async with start_worker("a") as (a, _), start_worker("b") as (_, other):
        (waiting := await start_waiting_write(a)).cancel()
        await asyncio.wait([waiting])
        await write_once(other)


only_servers = pytest.mark.parametrize("pair", ["servers"], indirect=True)


@only_servers
async def test_a_turn_that_could_not_be_given_back_is_given_back_with_the_next_beat(
    start_worker: StartWorker, postgres: Postgres
):
    async with start_worker("a") as (a, limiter), start_worker("b") as (_, other):
        async with limiter.slot("acme"):
            postgres.stop()
        postgres.start()
        await a.renew()
        await write_once(other)


@only_servers
async def test_so_is_the_turn_of_a_write_that_was_not_sent(
    start_worker: StartWorker, postgres: Postgres
):
    async with start_worker("a") as (a, _), start_worker("b") as (_, other):
        waiting = await start_waiting_write(a)
        postgres.stop()
        with pytest.raises(Unavailable, match="database"):
            await waiting
        postgres.start()
        await a.renew()
        await write_once(other)


@only_servers
async def test_a_beat_gives_back_no_turn_that_its_worker_has_again(
    start_worker: StartWorker, postgres: Postgres
):
    async with start_worker("a") as (a, limiter), start_worker("b") as (_, other):
        async with limiter.slot("acme"):
            postgres.stop()
        postgres.start()
        async with limiter.slot("Acme"):
            await a.renew()
            waiting = asyncio.create_task(write_once(other))
            assert await asyncio.wait([waiting], timeout=0.5) == (set(), {waiting})
        await waiting


@only_servers
async def test_a_beat_waits_for_nobody_who_stands_still_with_a_turn(
    start_worker: StartWorker, postgres: Postgres
):
    async with start_worker("a") as (a, limiter), start_worker("b") as (_, other):
        async with limiter.slot("acme"):
            postgres.stop()
        postgres.start()
        async with a._engine.begin() as connection:  # as a transaction of another worker does
            await connection.execute(select(TurnRow.lease).with_for_update())
            async with asyncio.timeout(20):
                await a.renew()
        await a.renew()
        await write_once(other)
