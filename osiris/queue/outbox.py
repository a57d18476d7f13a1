"""The outbox: who does which order, and what becomes of it. Each write holds the lease of the
worker that does it."""

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import aliased

from osiris.core.effects import Effect, OpenIssue
from osiris.core.errors import LeaseLost
from osiris.core.events import Event
from osiris.core.ports.live import AuditEntryAdded, LiveEvents
from osiris.core.task import Task
from osiris.queue import audit_log, serialization
from osiris.queue.database import as_read_only, build_insert, translate_errors
from osiris.queue.inbox_rows import create_fact_row
from osiris.queue.leases import Lease
from osiris.queue.outbox_queries import RUNS, lane_of, select_claimable, select_due
from osiris.queue.tables import InboxRow, OutboxRow, TaskRow, TurnRow, now

_waiting_runs = (
    OutboxRow.task_id == bindparam("task"),
    OutboxRow.lane == RUNS,
    OutboxRow.not_before.is_not(None),
)
WAKE_RUN = (
    update(OutboxRow.__table__)  # type: ignore[arg-type]
    .where(*_waiting_runs)
    .values(not_before=bindparam("now"), attempts=0)
)
_run = aliased(OutboxRow)
_last_run = (
    select(func.coalesce(func.max(_run.id), 0)).where(
        _run.task_id == bindparam("task"), _run.lane == RUNS
    )
).scalar_subquery()
TAKE_UP = (
    update(OutboxRow.__table__)  # type: ignore[arg-type]
    .where(OutboxRow.task_id == bindparam("task"), OutboxRow.id > _last_run)
    .where(OutboxRow.not_before.is_(None), OutboxRow.done.is_(None))
    .values(not_before=bindparam("now"), attempts=0, error=None)
)

_same = aliased(OutboxRow)
_of_the_same = (
    _same.id == bindparam("order"),
    _same.task_id == OutboxRow.task_id,
    _same.kind == OutboxRow.kind,
)
_SUPERSEDED = (
    select(OutboxRow.id)
    .where(*_of_the_same, OutboxRow.id > _same.id, OutboxRow.not_before.is_not(None))
    .limit(1)
)
_LAST_DONE = select(func.max(OutboxRow.done)).where(*_of_the_same)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedOrder:
    """An order that this worker holds; `owner` is the account whose installation it writes
    through."""

    id: int
    lane: int
    owner: str


def _make_claimed(id: int, lane: int, repo: str | None) -> ClaimedOrder:
    return ClaimedOrder(id=id, lane=lane, owner=(repo or "").partition("/")[0])


class Outbox:
    """The outbox as one worker sees it. Raises LeaseLost for what it does not hold, Unavailable
    without a database."""

    def __init__(
        self,
        engine: AsyncEngine,
        lease: Lease,
        live_events: LiveEvents,
        *,
        runs_per_repository: int = 0,
    ) -> None:
        """`runs_per_repository`: so many runs at once in one repository, on all workers together;
        0: any."""
        self._lease = lease
        self._live_events = live_events
        self._max_runs = runs_per_repository
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._reader = as_read_only(engine)
        self._read = async_sessionmaker(self._reader, expire_on_commit=False)
        self._turn = build_insert(engine, TurnRow).on_conflict_do_nothing()

    async def claim_orders(
        self, limit: int, lanes: tuple[int, ...], without: Collection[int]
    ) -> list[ClaimedOrder]:
        """Take up to `limit` orders of some lanes whose time has come, but for those that are
        `without`."""
        counted = bool(self._max_runs) and RUNS in lanes
        params = {"now": now(), "lease": self._lease.number, "without": without, "limit": limit}
        params |= {"limit": 1, "most": self._max_runs} if counted else {}
        async with self._connect_reader() as connection:
            if not (await connection.execute(select_due(lanes, counted=counted), params)).first():
                return []
        with translate_errors():
            async with self._write.begin() as session:
                await self._lease.assert_held(session)
                if RUNS in lanes:
                    await self._lock_runs(session)
                rows = (
                    await session.execute(select_claimable(lanes, counted=counted), params)
                ).all()
                dues = [_make_claimed(*row) for row in rows]
                ids = [due.id for due in dues]
                await session.execute(
                    update(OutboxRow).where(OutboxRow.id.in_(ids)).values(lease=self._lease.number)
                )
        return dues

    async def _lock_runs(self, session: AsyncSession) -> None:
        """Nobody else takes a run until the end of the transaction: what is seen of the others
        holds only as long."""
        connection = await session.connection()
        await connection.execute(self._turn, {"name": "runs", "lease": None, "data": {}})
        await session.execute(select(TurnRow.name).where(TurnRow.name == "runs").with_for_update())

    async def get(self, id: int) -> tuple[Effect, Task | None, int] | None:
        """The order, its task as it is now, and the attempts so far; None when it is done."""
        with translate_errors():
            async with self._read() as session:
                row = await session.get(OutboxRow, id)
                if row is None or row.not_before is None:
                    return None
                task = await session.get(TaskRow, row.task_id) if row.task_id else None
                return (
                    serialization.load(row.body),
                    serialization.load_task(task.data) if task else None,
                    row.attempts,
                )

    async def is_superseded(self, id: int) -> bool:
        """Whether the same task has a later order of the same kind to be done: two reports are
        one."""
        async with self._connect_reader() as connection:
            return await connection.scalar(_SUPERSEDED, {"order": id}) is not None

    async def last_done_at(self, id: int) -> float:
        """When the order of the same kind before this one was done for its task (seconds since
        1970; 0: never)."""
        async with self._connect_reader() as connection:
            return await connection.scalar(_LAST_DONE, {"order": id}) or 0.0

    @contextlib.asynccontextmanager
    async def _connect_reader(self) -> AsyncIterator[AsyncConnection]:
        with translate_errors():
            async with self._reader.connect() as connection:
                yield connection

    async def skip_order(self, id: int) -> None:
        """A later order makes it needless: it counts as done, but never was."""
        async with self._open_order(id) as (_, row):
            if row is not None:
                row.done = 0.0
                row.not_before = None
                row.error = None

    async def finish_order(
        self, id: int, facts: Sequence[Event] = (), error: str | None = None
    ) -> None:
        """The order is done (or refused for good, with `error`); the facts it brought enter the
        inbox with that."""
        noted = None
        async with self._open_order(id) as (session, row):
            if row is not None:
                row.done = now()
                row.not_before = None
                row.error = error and serialization.replace_nul(error)
                noted = await _record_outcome(
                    session, row, facts, {"refused": error} if error else {}
                )
        self._publish_entry(noted)

    async def park_order(self, id: int, error: str, facts: Sequence[Event] = ()) -> None:
        """It waits for a person: a retry of its task takes it up again."""
        noted = None
        async with self._open_order(id) as (session, row):
            if row is not None:
                row.not_before = None
                row.error = serialization.replace_nul(error)
                row.lease = None
                noted = await _record_outcome(session, row, facts, {"parked": error})
        self._publish_entry(noted)

    async def postpone_order(self, id: int, error: str, seconds: float, *, tries: int) -> None:
        """Again in `parse_time`, by whoever is first."""
        async with self._open_order(id) as (_, row):
            if row is not None:
                row.not_before = now() + seconds
                row.error = serialization.replace_nul(error)
                row.attempts = tries
                row.lease = None

    def _publish_entry(self, noted: AuditEntryAdded | None) -> None:
        if noted:
            self._live_events.publish(noted)

    @contextlib.asynccontextmanager
    async def _open_order(self, id: int) -> AsyncIterator[tuple[AsyncSession, OutboxRow | None]]:
        """A transaction on an order that this worker holds; None when it is over already."""
        with translate_errors():
            async with self._write.begin() as session:
                task = await session.scalar(select(OutboxRow.task_id).where(OutboxRow.id == id))
                if task is not None:  # before the order: whoever decides locks in this order too
                    await session.execute(
                        select(TaskRow.id).where(TaskRow.id == task).with_for_update()
                    )
                row = await session.get_one(OutboxRow, id, with_for_update=True)
                if row.lease != self._lease.number:
                    raise LeaseLost("another worker has this order by now")
                yield session, row if row.not_before is not None else None


async def _record_outcome(
    session: AsyncSession, row: OutboxRow, facts: Sequence[Event], detail: dict[str, str]
) -> AuditEntryAdded | None:
    """What doing an order brought, and a line in the journal."""
    for n, fact in enumerate(facts):
        again = f"/{now()}" if "parked" in detail else ""  # it may be parked more than once
        arrived = create_fact_row(f"{row.key}/{n}{again}", fact)._asdict()
        session.add(InboxRow(**arrived, received=now(), not_before=now()))
    if row.task_id is None:
        return None
    return await audit_log.append_entries(
        session, row.task_id, ("done", row.kind, {"key": row.key, **detail})
    )


def create_row(inbox_id: int, n: int, order: Effect, task: TaskRow | None) -> OutboxRow:
    """Order number `n` of a decision, as it enters the outbox."""
    return OutboxRow(
        key=f"{inbox_id}.{n}",
        task_id=task.id if task else None,
        kind=type(order).__name__,
        about=order.repo if isinstance(order, OpenIssue) else str(order.issue),
        lane=lane_of(order),
        body=serialization.dump(order),
        not_before=now(),
    )
