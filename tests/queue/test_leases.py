"""Leases: a lease is valid as long as it is renewed. Other workers expire a silent one, each by its
own clock."""

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
    """A clock that stands still until a test sets `at`."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def create_lease(
    folder: Path, pair: dict[str, str], clock: ManualClock
) -> AsyncIterator[Callable[[str], Lease]]:
    await migrate_schema(
        engine := connect(pair.get("database_url") or f"sqlite:///{folder}/osiris.db")
    )
    yield lambda name: Lease(engine, name, patience=12, clock=clock)
    await engine.dispose()


async def test_numbers_are_never_used_again(create_lease):
    numbers = []
    for _ in range(3):
        await (lease := create_lease("here")).acquire()
        numbers.append(lease.number)
        await lease.release()
    assert numbers == sorted(set(numbers))


async def test_a_silent_worker_is_struck_out_after_its_time_and_not_before(
    create_lease, clock: ManualClock
):
    await (silent := create_lease("a")).acquire()
    await (watcher := create_lease("b")).acquire()
    for clock.at in (0, 3, 6, 9, 12):
        assert not await watcher.renew()
    clock.at = 15
    assert await watcher.renew()
    with pytest.raises(LeaseLost):
        await silent.renew()


async def test_one_that_beats_is_never_struck_out(create_lease, clock: ManualClock):
    await (a := create_lease("a")).acquire()
    await (b := create_lease("b")).acquire()
    for clock.at in range(0, 120, 3):
        assert not await a.renew()
        assert not await b.renew()


async def test_who_did_not_look_itself_strikes_nobody_out(create_lease, clock: ManualClock):
    await (a := create_lease("a")).acquire()
    await (b := create_lease("b")).acquire()
    await a.renew()
    clock.at = 3600  # both were silent: the machine slept, or the database was down
    assert not await b.renew()
    assert not await a.renew()


async def test_a_new_life_in_the_same_folder_takes_over_at_once(create_lease):
    await (predecessor := create_lease("here")).acquire()
    await (successor := create_lease("here")).acquire()
    assert not await successor.renew()
    with pytest.raises(LeaseLost):
        await predecessor.renew()


async def test_a_turn_is_one_workers_until_its_lease_is_over(create_lease):
    await (a := create_lease("a")).acquire()
    await (b := create_lease("b")).acquire()
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
    create_lease, clock: ManualClock, postgres: Postgres
):
    await (a := create_lease("a")).acquire()
    await (b := create_lease("b")).acquire()
    await b.renew()
    postgres.stop()
    for clock.at in (3, 6, 9, 12, 15, 18):
        with pytest.raises(Unavailable):
            await b.renew()
    postgres.start()
    for clock.at in (21, 24):
        assert not await b.renew()
    assert not await a.renew()
