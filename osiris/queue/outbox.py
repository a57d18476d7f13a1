"""The outbox: claiming orders and recording their outcome.

Each write locks the lease of the worker that makes it.
"""

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import aliased

from osiris.core.effects import Effect, OpenIssue, SendMessage
from osiris.core.errors import LeaseLost
from osiris.core.events import Event
from osiris.core.ports.live import AuditEntryAdded, LiveEvents
from osiris.core.task import Task
from osiris.queue import audit_log, serialization
from osiris.queue.database import as_read_only, build_insert, translate_errors
from osiris.queue.inbox_rows import create_fact_row
from osiris.queue.leases import Lease
from osiris.queue.outbox_queries import DUE_LANES, RUNS, lane_of, select_claimable, select_due
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
    """An order that this worker holds.

    `owner` is the account whose installation it writes through.
    """

    id: int
    lane: int
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedOrder:
    """An order, its present task if it has one, and the number of attempts so far."""

    order: Effect
    task: Task | None
    attempts: int
    trace: str


def _make_claimed(id: int, lane: int, repo: str | None) -> ClaimedOrder:
    return ClaimedOrder(id=id, lane=lane, owner=(repo or "").partition("/")[0])


class Outbox:
    """The outbox as one worker sees it.

    Raises LeaseLost for orders that it does not hold, and Unavailable without a database.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        lease: Lease,
        live_events: LiveEvents,
        *,
        runs_per_repository: int = 0,
    ) -> None:
        """Create the outbox of a worker.

        `runs_per_repository` limits the concurrent runs in one repository on all workers together;
        0 is no limit.
        """
        self._lease = lease
        self._live_events = live_events
        self._max_runs = runs_per_repository
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._reader = as_read_only(engine)
        self._read = async_sessionmaker(self._reader, expire_on_commit=False)
        self._turn = build_insert(engine, TurnRow).on_conflict_do_nothing()

    async def list_due_lanes(self, without: Collection[int]) -> set[int]:
        """Return the lanes that have a due order beside those in `without`; a worker that looks for
        work asks for no other."""
        async with self._connect_reader() as connection:
            rows = await connection.scalars(DUE_LANES, {"now": now(), "without": without})
            return set(rows)

    async def claim_orders(
        self, limit: int, lanes: tuple[int, ...], without: Collection[int]
    ) -> list[ClaimedOrder]:
        """Claim up to `limit` due orders of the given lanes, except those in `without`."""
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
                orders = [_make_claimed(*row) for row in rows]
                ids = [order.id for order in orders]
                await session.execute(
                    update(OutboxRow).where(OutboxRow.id.in_(ids)).values(lease=self._lease.number)
                )
        return orders

    async def _lock_runs(self, session: AsyncSession) -> None:
        """Keep other workers from claiming runs until the end of the transaction; what is read
        about them is valid only that long."""
        connection = await session.connection()
        await connection.execute(self._turn, {"name": "runs", "lease": None, "data": {}})
        await session.execute(select(TurnRow.name).where(TurnRow.name == "runs").with_for_update())

    async def get(self, id: int) -> LoadedOrder | None:
        """Return an order and its task as it is now; None when it is done."""
        with translate_errors():
            async with self._read() as session:
                row = await session.get(OutboxRow, id)
                if row is None or row.not_before is None:
                    return None
                task = await session.get(TaskRow, row.task_id) if row.task_id else None
                return LoadedOrder(
                    order=serialization.load(row.body),
                    task=serialization.load_task(task.data) if task else None,
                    attempts=row.attempts,
                    trace=row.trace,
                )

    async def is_superseded(self, id: int) -> bool:
        """Return whether the same task has a later order of the same kind that is not done: one
        report replaces another."""
        async with self._connect_reader() as connection:
            return await connection.scalar(_SUPERSEDED, {"order": id}) is not None

    async def last_done_at(self, id: int) -> float:
        """Return when the previous order of the same kind was done for this task (seconds since
        1970; 0: never)."""
        async with self._connect_reader() as connection:
            return await connection.scalar(_LAST_DONE, {"order": id}) or 0.0

    @contextlib.asynccontextmanager
    async def _connect_reader(self) -> AsyncIterator[AsyncConnection]:
        with translate_errors():
            async with self._reader.connect() as connection:
                yield connection

    async def skip_order(self, id: int) -> None:
        """Mark an order that a later one makes unnecessary as done at time 0, because it was never
        performed."""
        async with self._open_order(id) as (_, row):
            if row is not None:
                row.done = 0.0
                row.not_before = None
                row.error = None

    async def finish_order(
        self, id: int, facts: Sequence[Event] = (), error: str | None = None
    ) -> None:
        """Mark the order as done, or as refused for good with `error`.

        Its facts enter the inbox in the same transaction.
        """
        entry = None
        async with self._open_order(id) as (session, row):
            if row is not None:
                row.done = now()
                row.not_before = None
                row.error = error and serialization.replace_nul(error)
                entry = await _record_outcome(
                    session, row, facts, {"refused": error} if error else {}
                )
        self._publish_entry(entry)

    async def park_order(self, id: int, error: str, facts: Sequence[Event] = ()) -> None:
        """Park the order: it waits for a person, and a retry of its task requeues it."""
        entry = None
        async with self._open_order(id) as (session, row):
            if row is not None:
                row.not_before = None
                row.error = serialization.replace_nul(error)
                row.lease = None
                entry = await _record_outcome(session, row, facts, {"parked": error})
        self._publish_entry(entry)

    async def postpone_order(self, id: int, error: str, seconds: float, *, tries: int) -> None:
        """Retry the order in `seconds`, on any worker."""
        async with self._open_order(id) as (_, row):
            if row is not None:
                row.not_before = now() + seconds
                row.error = serialization.replace_nul(error)
                row.attempts = tries
                row.lease = None

    def _publish_entry(self, entry: AuditEntryAdded | None) -> None:
        if entry:
            self._live_events.publish(entry)

    @contextlib.asynccontextmanager
    async def _open_order(self, id: int) -> AsyncIterator[tuple[AsyncSession, OutboxRow | None]]:
        """Open a transaction on an order that this worker holds.

        It yields None as the row when the order is already over.
        """
        with translate_errors():
            async with self._write.begin() as session:
                task = await session.scalar(select(OutboxRow.task_id).where(OutboxRow.id == id))
                if task is not None:  # before the order, as in processing the inbox
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
    """Add the facts of an order to the inbox, and an entry to the audit log."""
    for n, fact in enumerate(facts):
        again = f"/{now()}" if "parked" in detail else ""  # it may be parked more than once
        arrived = create_fact_row(f"{row.key}/{n}{again}", fact)._asdict()
        session.add(InboxRow(**arrived, received=now(), not_before=now()))
    if row.task_id is None:
        return None
    return await audit_log.append_entries(
        session, row.task_id, ("done", row.kind, {"key": row.key, **detail})
    )


def create_row(cause: InboxRow, n: int, order: Effect, task: TaskRow | None) -> OutboxRow:
    """Return the outbox row for order number `n` of the decision about the inbox row `cause`."""
    return OutboxRow(
        key=f"{cause.id}.{n}",
        task_id=task.id if task else None,
        kind=type(order).__name__,
        about=_name_subject(order),
        trace=cause.trace,
        lane=lane_of(order),
        body=serialization.dump(order),
        not_before=now(),
    )


def _name_subject(order: Effect) -> str:
    """Return what an order is about; orders about the same thing wait for each other."""
    match order:
        case OpenIssue(repo=repo):
            return repo
        case SendMessage(address=address):
            return str(address)
        case _:
            return str(order.issue)
