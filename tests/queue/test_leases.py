"""A lease lives as long as it beats; whose beat stands still is struck out by the clocks of the
others."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from osiris.core.errors import LeaseLost, Unavailable
from osiris.queue.database import connect, migrate_schema
from osiris.queue.leases import Lease
from osiris.queue.locks import NamedLocks
from tests.servers import Postgres

pytestmark = pytest.mark.both_pairs


class ManualClock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def new(
    place: Path, pair: dict[str, str], clock: ManualClock
) -> AsyncIterator[Callable[[str], Lease]]:
    await migrate_schema(
        engine := connect(pair.get("database_url") or f"sqlite:///{place}/osiris.db")
    )
    yield lambda name: Lease(engine, name, patience=12, clock=clock)
    await engine.dispose()


async def test_numbers_are_never_used_again(new):
    numbers = []
    for _ in range(3):
        await (lease := new("here")).acquire()
        numbers.append(lease.number)
        await lease.release()
    assert numbers == sorted(set(numbers))


async def test_a_silent_worker_is_struck_out_after_its_time_and_not_before(new, clock: ManualClock):
    await (silent := new("a")).acquire()
    await (watcher := new("b")).acquire()
    for clock.at in (0, 3, 6, 9, 12):
        assert not await watcher.renew()
    clock.at = 15
    assert await watcher.renew()
    with pytest.raises(LeaseLost):
        await silent.renew()


async def test_one_that_beats_is_never_struck_out(new, clock: ManualClock):
    await (a := new("a")).acquire()
    await (b := new("b")).acquire()
    for clock.at in range(0, 120, 3):
        assert not await a.renew()
        assert not await b.renew()


async def test_who_did_not_look_itself_strikes_nobody_out(new, clock: ManualClock):
    await (a := new("a")).acquire()
    await (b := new("b")).acquire()
    await a.renew()
    clock.at = 3600  # both were away: the machine slept, or the database was down
    assert not await b.renew()
    assert not await a.renew()


async def test_a_new_life_in_the_same_folder_takes_over_at_once(new):
    await (old := new("here")).acquire()
    await (new_life := new("here")).acquire()
    assert not await new_life.renew()
    with pytest.raises(LeaseLost):
        await old.renew()


async def test_a_turn_is_one_workers_until_its_lease_is_over(new):
    await (a := new("a")).acquire()
    await (b := new("b")).acquire()
    first = NamedLocks(a._engine, a)
    second = NamedLocks(b._engine, b)
    assert await first.acquire("inbox")
    assert await first.acquire("inbox")
    assert not await second.acquire("inbox")
    await a.release()
    assert await second.acquire("inbox")
    assert not await first.acquire("inbox")


@pytest.mark.parametrize("pair", ["servers"], indirect=True)
async def test_while_the_database_is_away_nobody_is_taken_for_dead(
    new, clock: ManualClock, postgres: Postgres
):
    await (a := new("a")).acquire()
    await (b := new("b")).acquire()
    await b.renew()
    postgres.stop()
    for clock.at in (3, 6, 9, 12, 15, 18):
        with pytest.raises(Unavailable):
            await b.renew()
    postgres.start()
    for clock.at in (21, 24):
        assert not await b.renew()
    assert not await a.renew()
