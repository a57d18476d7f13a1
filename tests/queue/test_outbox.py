"""A task's agent works alone, whatever was ordered twice and however many workers look for work at
once."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import select

from osiris.core.events import (
    AccessLost,
    AccessRegained,
    Actor,
    Event,
    IssueRef,
    Role,
    TaskRequested,
)
from osiris.core.policy import Policy
from osiris.queue import tables
from osiris.queue.database import connect, migrate_schema
from osiris.queue.in_process import LocalLiveEvents, LocalWake
from osiris.queue.inbox import DatabaseInbox
from osiris.queue.leases import INBOX, Lease
from osiris.queue.locks import NamedLocks
from osiris.queue.outbox import ClaimedOrder, Outbox
from osiris.queue.outbox_queries import RUNS
from osiris.queue.tables import OutboxRow
from osiris.queue.task_store import Store

pytestmark = pytest.mark.both_pairs

LONG = 600.0  # seconds


class Office:
    """The durable part of Osiris, with workers that look for orders when they are told to."""

    def __init__(self, url: str) -> None:
        self._engine = connect(url)
        self._decider = Lease(self._engine, "decider")
        self._store = Store(self._engine, self._decider, LocalLiveEvents())

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        await migrate_schema(self._engine)
        await self._decider.acquire()
        await NamedLocks(self._engine, self._decider).acquire(INBOX)
        yield
        await self._store.close()

    async def worker(self, name: str) -> Outbox:
        lease = Lease(self._engine, name)
        await lease.acquire()
        return Outbox(self._engine, lease, LocalLiveEvents())

    async def order_twice(self, number: int) -> None:
        """A run was ordered, its repository could not be written for a while, and it is ordered
        anew."""
        issue = IssueRef("acme/shop", number)
        asked = TaskRequested(
            issue=issue, actor=Actor("alice", Role.ADMIN), title="Look", body="Only look."
        )
        events: Sequence[Event] = (
            asked,
            AccessLost(issue=issue, reason="archived"),
            AccessRegained(issue=issue),
        )
        for n, event in enumerate(events):
            await DatabaseInbox(self._store, LocalWake()).accept_fact(f"{number}/{n}", event)
            for row in await self._store.list_due(16):
                await self._store.decide(row.id, event, Policy())

    async def held(self) -> list[int]:
        """The tasks of the runs that workers have now, in order."""
        held = select(OutboxRow.task_id).where(
            OutboxRow.lane == RUNS, OutboxRow.not_before.is_not(None)
        )
        async with self._engine.connect() as connection:
            return sorted(await connection.scalars(held.where(OutboxRow.lease.is_not(None))))


@pytest.fixture
async def office(place: Path, pair: dict[str, str]) -> AsyncIterator[Office]:
    office = Office(pair.get("database_url") or f"sqlite:///{place}/osiris.db")
    async with office.open():
        yield office


async def take(orders: Outbox, *has: ClaimedOrder) -> list[ClaimedOrder]:
    """The runs that a worker begins, beside those that it has."""
    return await orders.claim_orders(8, (RUNS,), [due.id for due in has])


async def test_of_two_orders_for_one_run_a_worker_takes_one_at_a_time(office: Office):
    orders = await office.worker("a")
    for number in (1, 2):
        await office.order_twice(number)
    first = await take(orders)
    assert await office.held() == [1, 2]
    assert await take(orders, *first) == []
    for due in first:
        await orders.finish_order(due.id)
    again = await take(orders)
    assert {due.id for due in again}.isdisjoint(due.id for due in first)
    assert await office.held() == [1, 2]


async def test_a_run_that_was_put_off_holds_up_no_other_try_and_never_begins_beside_it(
    office: Office, monkeypatch: pytest.MonkeyPatch
):
    now = tables.clock()
    a = await office.worker("a")
    b = await office.worker("b")
    await office.order_twice(1)
    [first] = await take(a)
    await a.postpone_order(first.id, "GitHub is away", LONG, tries=1)
    [second] = await take(a)
    assert second.id > first.id
    monkeypatch.setattr(tables, "clock", lambda: now + 2 * LONG)
    assert (await take(a, second), await take(b)) == ([], [])
    await a.finish_order(second.id)
    assert await take(b) == [first]


@pytest.mark.parametrize("pair", ["servers"], indirect=True)
async def test_two_workers_that_look_at_once_never_both_work_on_a_task(
    office: Office, monkeypatch: pytest.MonkeyPatch
):
    """For one of them the first order of each task is still put off, for the other its time has
    come."""
    now = tables.clock()
    tasks = list(range(1, 9))
    a = await office.worker("a")
    b = await office.worker("b")
    for number in tasks:
        await office.order_twice(number)
    first = await take(a)
    for due in first:
        await a.postpone_order(due.id, "GitHub is away", LONG, tries=1)
    for _ in range(10):
        clocks = itertools.chain([now], itertools.repeat(now + 2 * LONG))
        monkeypatch.setattr(tables, "clock", lambda clocks=clocks: next(clocks))
        taken = await asyncio.gather(take(a), take(b))
        assert await office.held() == tasks
        monkeypatch.setattr(tables, "clock", lambda: now)
        for orders, due in [(a, due) for due in taken[0]] + [(b, due) for due in taken[1]]:
            late = due in first
            await orders.postpone_order(due.id, "once more", LONG if late else 0.0, tries=int(late))
