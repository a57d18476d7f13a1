"""The outbox: who does which order, and what becomes of it. Each write holds the lease of the worker that does it."""

import contextlib
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import aliased

from osiris.core.effects import Effect, OpenIssue
from osiris.core.errors import Fenced
from osiris.core.events import Event
from osiris.core.ports.live import Journal, Noted
from osiris.core.task import Task
from osiris.queue import audit_log, serialization
from osiris.queue.database import answering, insert, reading
from osiris.queue.inbox_rows import own_row
from osiris.queue.leases import Lease
from osiris.queue.outbox_queries import RUNS, due, free, lane_of
from osiris.queue.tables import InboxRow, OutboxRow, TaskRow, TurnRow, now

_waiting_runs = (OutboxRow.task_id == bindparam("task"), OutboxRow.lane == RUNS, OutboxRow.not_before.is_not(None))
WAKE_RUN = (
    update(OutboxRow.__table__)  # type: ignore[arg-type]
    .where(*_waiting_runs)
    .values(not_before=bindparam("now"), attempts=0)
)
_run = aliased(OutboxRow)
_last_run = (
    select(func.coalesce(func.max(_run.id), 0)).where(_run.task_id == bindparam("task"), _run.lane == RUNS)
).scalar_subquery()
TAKE_UP = (
    update(OutboxRow.__table__)  # type: ignore[arg-type]
    .where(OutboxRow.task_id == bindparam("task"), OutboxRow.id > _last_run)
    .where(OutboxRow.not_before.is_(None), OutboxRow.done.is_(None))
    .values(not_before=bindparam("now"), attempts=0, error=None)
)

_same = aliased(OutboxRow)
_of_the_same = (_same.id == bindparam("order"), _same.task_id == OutboxRow.task_id, _same.kind == OutboxRow.kind)
_SUPERSEDED = (
    select(OutboxRow.id).where(*_of_the_same, OutboxRow.id > _same.id, OutboxRow.not_before.is_not(None)).limit(1)
)
_LAST_DONE = select(func.max(OutboxRow.done)).where(*_of_the_same)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """An order that this worker holds; `owner` is the account whose installation it writes through."""

    id: int
    lane: int
    owner: str


def _due(id: int, lane: int, repo: str | None) -> Due:
    return Due(id=id, lane=lane, owner=(repo or "").partition("/")[0])


class Orders:
    """The outbox as one worker sees it. Raises Fenced for what it does not hold, Unavailable without a database."""

    def __init__(self, engine: AsyncEngine, lease: Lease, news: Journal, *, runs_per_repository: int = 0) -> None:
        """`runs_per_repository`: so many runs at once in one repository, on all workers together; 0: any."""
        self._lease, self._news, self._most = lease, news, runs_per_repository
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._reader = reading(engine)
        self._read = async_sessionmaker(self._reader, expire_on_commit=False)
        self._turn = insert(engine, TurnRow).on_conflict_do_nothing()

    async def claim(self, limit: int, lanes: tuple[int, ...], without: Collection[int]) -> list[Due]:
        """Take up to `limit` orders of some lanes whose time has come, but for those that are `without`."""
        counted = bool(self._most) and RUNS in lanes
        params = {"now": now(), "lease": self._lease.number, "without": without, "limit": limit}
        params |= {"limit": 1, "most": self._most} if counted else {}
        async with self._answers() as connection:
            if not (await connection.execute(due(lanes, counted=counted), params)).first():
                return []
        with answering():
            async with self._write.begin() as session:
                await self._lease.insist(session)
                if RUNS in lanes:
                    await self._alone(session)
                rows = (await session.execute(free(lanes, counted=counted), params)).all()
                dues = [_due(*row) for row in rows]
                ids = [due.id for due in dues]
                await session.execute(update(OutboxRow).where(OutboxRow.id.in_(ids)).values(lease=self._lease.number))
        return dues

    async def _alone(self, session: AsyncSession) -> None:
        """Nobody else takes a run until the end of the transaction: what is seen of the others holds only as long."""
        connection = await session.connection()
        await connection.execute(self._turn, {"name": "runs", "lease": None, "data": {}})
        await session.execute(select(TurnRow.name).where(TurnRow.name == "runs").with_for_update())

    async def get(self, id: int) -> tuple[Effect, Task | None, int] | None:
        """The order, its task as it is now, and the attempts so far; None when it is done."""
        with answering():
            async with self._read() as session:
                row = await session.get(OutboxRow, id)
                if row is None or row.not_before is None:
                    return None
                task = await session.get(TaskRow, row.task_id) if row.task_id else None
                return serialization.load(row.body), serialization.load_task(task.data) if task else None, row.attempts

    async def is_superseded(self, id: int) -> bool:
        """Whether the same task has a later order of the same kind to be done: two reports are one."""
        async with self._answers() as connection:
            return await connection.scalar(_SUPERSEDED, {"order": id}) is not None

    async def last_done(self, id: int) -> float:
        """When the order of the same kind before this one was done for its task (seconds since 1970; 0: never)."""
        async with self._answers() as connection:
            return await connection.scalar(_LAST_DONE, {"order": id}) or 0.0

    @contextlib.asynccontextmanager
    async def _answers(self) -> AsyncIterator[AsyncConnection]:
        with answering():
            async with self._reader.connect() as connection:
                yield connection

    async def skip(self, id: int) -> None:
        """A later order makes it needless: it counts as done, but never was."""
        async with self._ending(id) as (_, row):
            if row is not None:
                row.done, row.not_before, row.error = 0.0, None, None

    async def finish(self, id: int, facts: Sequence[Event] = (), error: str | None = None) -> None:
        """The order is done (or refused for good, with `error`); the facts it brought enter the inbox with that."""
        noted = None
        async with self._ending(id) as (session, row):
            if row is not None:
                row.done, row.not_before, row.error = now(), None, error and serialization.plain(error)
                noted = await _record(session, row, facts, {"refused": error} if error else {})
        self._tell(noted)

    async def park(self, id: int, error: str, facts: Sequence[Event] = ()) -> None:
        """It waits for a person: a retry of its task takes it up again."""
        noted = None
        async with self._ending(id) as (session, row):
            if row is not None:
                row.not_before, row.error, row.lease = None, serialization.plain(error), None
                noted = await _record(session, row, facts, {"parked": error})
        self._tell(noted)

    async def postpone(self, id: int, error: str, seconds: float, *, tries: int) -> None:
        """Again in `seconds`, by whoever is first."""
        async with self._ending(id) as (_, row):
            if row is not None:
                row.not_before, row.error, row.attempts, row.lease = (
                    now() + seconds,
                    serialization.plain(error),
                    tries,
                    None,
                )

    def _tell(self, noted: Noted | None) -> None:
        if noted:
            self._news.hear(noted)

    @contextlib.asynccontextmanager
    async def _ending(self, id: int) -> AsyncIterator[tuple[AsyncSession, OutboxRow | None]]:
        """A transaction on an order that this worker holds; None when it is over already."""
        with answering():
            async with self._write.begin() as session:
                task = await session.scalar(select(OutboxRow.task_id).where(OutboxRow.id == id))
                if task is not None:  # before the order: whoever decides locks in this order too
                    await session.execute(select(TaskRow.id).where(TaskRow.id == task).with_for_update())
                row = await session.get_one(OutboxRow, id, with_for_update=True)
                if row.lease != self._lease.number:
                    raise Fenced("another worker has this order by now")
                yield session, row if row.not_before is not None else None


async def _record(
    session: AsyncSession, row: OutboxRow, facts: Sequence[Event], detail: dict[str, str]
) -> Noted | None:
    """What doing an order brought, and a line in the journal."""
    for n, fact in enumerate(facts):
        again = f"/{now()}" if "parked" in detail else ""  # it may be parked more than once
        arrived = own_row(f"{row.key}/{n}{again}", fact)._asdict()
        session.add(InboxRow(**arrived, received=now(), not_before=now()))
    if row.task_id is None:
        return None
    return await audit_log.write(session, row.task_id, ("done", row.kind, {"key": row.key, **detail}))


def row(inbox_id: int, n: int, order: Effect, task: TaskRow | None) -> OutboxRow:
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
