"""The outbox: only one run of a task is active at a time, even if a run was ordered twice and
several workers claim orders at the same moment."""

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

LONG_PAUSE = 600.0  # seconds


class QueueEnvironment:
    """The durable part of Osiris. Its workers claim orders only when a test tells them to."""

    def __init__(self, url: str) -> None:
        self._engine = connect(url)
        self._decider = Lease(self._engine, "decider")
        self._store = Store(self._engine, self._decider, LocalLiveEvents())

    @contextlib.asynccontextmanager
    async def start(self) -> AsyncIterator[None]:
        await migrate_schema(self._engine)
        await self._decider.acquire()
        await NamedLocks(self._engine, self._decider).acquire(INBOX)
        yield
        await self._store.close()

    async def create_outbox(self, name: str) -> Outbox:
        lease = Lease(self._engine, name)
        await lease.acquire()
        return Outbox(self._engine, lease, LocalLiveEvents())

    async def order_run_twice(self, number: int) -> None:
        """Order a run, let its repository be read-only for a while, and order the run again."""
        issue = IssueRef("acme/shop", number)
        request = TaskRequested(
            issue=issue, actor=Actor("alice", Role.ADMIN), title="Look", body="Only look."
        )
        events: Sequence[Event] = (
            request,
            AccessLost(issue=issue, reason="archived"),
            AccessRegained(issue=issue),
        )
        for n, event in enumerate(events):
            await DatabaseInbox(self._store, LocalWake()).accept_fact(f"{number}/{n}", event)
            for row in await self._store.list_due(16):
                await self._store.decide(row.id, event, Policy())

    async def list_claimed_tasks(self) -> list[int]:
        """Return the tasks of the runs that workers have claimed, in order."""
        claimed = select(OutboxRow.task_id).where(
            OutboxRow.lane == RUNS, OutboxRow.not_before.is_not(None)
        )
        async with self._engine.connect() as connection:
            return sorted(await connection.scalars(claimed.where(OutboxRow.lease.is_not(None))))


@pytest.fixture
async def env(folder: Path, pair: dict[str, str]) -> AsyncIterator[QueueEnvironment]:
    env = QueueEnvironment(pair.get("database_url") or f"sqlite:///{folder}/osiris.db")
    async with env.start():
        yield env


async def claim_runs(outbox: Outbox, *claimed: ClaimedOrder) -> list[ClaimedOrder]:
    """Claim runs for a worker that already has the runs `claimed`."""
    return await outbox.claim_orders(8, (RUNS,), [order.id for order in claimed])


async def test_of_two_orders_for_one_run_a_worker_takes_one_at_a_time(env: QueueEnvironment):
    outbox = await env.create_outbox("a")
    for number in (1, 2):
        await env.order_run_twice(number)
    first = await claim_runs(outbox)
    assert await env.list_claimed_tasks() == [1, 2]
    assert await claim_runs(outbox, *first) == []
    for order in first:
        await outbox.finish_order(order.id)
    second = await claim_runs(outbox)
    assert {order.id for order in second}.isdisjoint(order.id for order in first)
    assert await env.list_claimed_tasks() == [1, 2]


async def test_a_run_that_was_put_off_holds_up_no_other_try_and_never_begins_beside_it(
    env: QueueEnvironment, monkeypatch: pytest.MonkeyPatch
):
    now = tables.clock()
    a = await env.create_outbox("a")
    b = await env.create_outbox("b")
    await env.order_run_twice(1)
    [first] = await claim_runs(a)
    await a.postpone_order(first.id, "GitHub is away", LONG_PAUSE, tries=1)
    [second] = await claim_runs(a)
    assert second.id > first.id
    monkeypatch.setattr(tables, "clock", lambda: now + 2 * LONG_PAUSE)
    assert (await claim_runs(a, second), await claim_runs(b)) == ([], [])
    await a.finish_order(second.id)
    assert await claim_runs(b) == [first]


@pytest.mark.parametrize("pair", ["servers"], indirect=True)
async def test_two_workers_that_look_at_once_never_both_work_on_a_task(
    env: QueueEnvironment, monkeypatch: pytest.MonkeyPatch
):
    """For one worker the first order of each task is still deferred, for the other it is due."""
    now = tables.clock()
    tasks = list(range(1, 9))
    a = await env.create_outbox("a")
    b = await env.create_outbox("b")
    for number in tasks:
        await env.order_run_twice(number)
    first = await claim_runs(a)
    for order in first:
        await a.postpone_order(order.id, "GitHub is away", LONG_PAUSE, tries=1)
    for _ in range(10):
        clocks = itertools.chain([now], itertools.repeat(now + 2 * LONG_PAUSE))
        monkeypatch.setattr(tables, "clock", lambda clocks=clocks: next(clocks))
        claimed = await asyncio.gather(claim_runs(a), claim_runs(b))
        assert await env.list_claimed_tasks() == tasks
        monkeypatch.setattr(tables, "clock", lambda: now)
        for outbox, order in [(a, order) for order in claimed[0]] + [
            (b, order) for order in claimed[1]
        ]:
            was_first = order in first
            await outbox.postpone_order(
                order.id, "once more", LONG_PAUSE if was_first else 0.0, tries=int(was_first)
            )
