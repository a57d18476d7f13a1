"""A lease lives as long as it beats; whose beat stands still is struck out by the clocks of the others."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from osiris.core.errors import Fenced, Unavailable
from osiris.queue.database import connect, migrate
from osiris.queue.leases import Lease
from osiris.queue.locks import Turns
from tests.servers import Postgres

pytestmark = pytest.mark.both_pairs


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def new(place: Path, pair: dict[str, str], clock: Clock) -> AsyncIterator[Callable[[str], Lease]]:
    await migrate(engine := connect(pair.get("database_url") or f"sqlite:///{place}/osiris.db"))
    yield lambda name: Lease(engine, name, patience=12, clock=clock)
    await engine.dispose()


async def test_numbers_are_never_used_again(new):
    numbers = []
    for _ in range(3):
        await (lease := new("here")).take()
        numbers.append(lease.number)
        await lease.give_back()
    assert numbers == sorted(set(numbers))


async def test_a_silent_worker_is_struck_out_after_its_time_and_not_before(new, clock: Clock):
    await (silent := new("a")).take()
    await (watcher := new("b")).take()
    for clock.at in (0, 3, 6, 9, 12):
        assert not await watcher.beat()
    clock.at = 15
    assert await watcher.beat()
    with pytest.raises(Fenced):
        await silent.beat()


async def test_one_that_beats_is_never_struck_out(new, clock: Clock):
    await (a := new("a")).take()
    await (b := new("b")).take()
    for clock.at in range(0, 120, 3):
        assert not await a.beat()
        assert not await b.beat()


async def test_who_did_not_look_itself_strikes_nobody_out(new, clock: Clock):
    await (a := new("a")).take()
    await (b := new("b")).take()
    await a.beat()
    clock.at = 3600  # both were away: the machine slept, or the database was down
    assert not await b.beat()
    assert not await a.beat()


async def test_a_new_life_in_the_same_folder_takes_over_at_once(new):
    await (old := new("here")).take()
    await (new_life := new("here")).take()
    assert not await new_life.beat()
    with pytest.raises(Fenced):
        await old.beat()


async def test_a_turn_is_one_workers_until_its_lease_is_over(new):
    await (a := new("a")).take()
    await (b := new("b")).take()
    first, second = Turns(a._engine, a), Turns(b._engine, b)
    assert await first.take("inbox")
    assert await first.take("inbox")
    assert not await second.take("inbox")
    await a.give_back()
    assert await second.take("inbox")
    assert not await first.take("inbox")


@pytest.mark.parametrize("pair", ["servers"], indirect=True)
async def test_while_the_database_is_away_nobody_is_taken_for_dead(new, clock: Clock, postgres: Postgres):
    await (a := new("a")).take()
    await (b := new("b")).take()
    await b.beat()
    postgres.stop()
    for clock.at in (3, 6, 9, 12, 15, 18):
        with pytest.raises(Unavailable):
            await b.beat()
    postgres.start()
    for clock.at in (21, 24):
        assert not await b.beat()
    assert not await a.beat()
