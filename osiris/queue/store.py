"""The unit of work: one inbox row in, one task moved, its orders out, all or nothing."""

import asyncio
import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import bindparam, delete, exists, func, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import aliased
from sqlalchemy.orm.exc import StaleDataError

from osiris.decide import decide
from osiris.effects import Effect, React, StartRun, StopRun, SwitchModel
from osiris.errors import Unavailable
from osiris.events import Event, IssueRef, RequestMade
from osiris.policy import Policy
from osiris.queue import codec, journal
from osiris.queue.database import blocking
from osiris.queue.tables import InboxRow, OutboxRow, TaskRow, now
from osiris.task import LIVING, Task

WRITES, RUNS, REACTIONS, STOPS = range(4)
"""Lanes of the outbox. Only a write holds up what comes after it; a reaction and a stop wait for nothing."""

_LANES = {StartRun: RUNS, React: REACTIONS, StopRun: STOPS, SwitchModel: STOPS}

OWN = "osiris"
"""The source of our own facts in the inbox."""


class Received(NamedTuple):
    """What arrived; `delivery` is its sender's own name for it."""

    source: str
    delivery: str
    kind: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """An inbox row that waits to be decided."""

    id: int
    source: str
    kind: str
    body: bytes
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """An outbox row whose turn it is; `owner` is the account whose installation it writes through."""

    id: int
    key: str
    lane: int
    owner: str


_WAKE_RUN = (
    update(OutboxRow.__table__)  # type: ignore[arg-type]
    .where(OutboxRow.task_id == bindparam("task"), OutboxRow.lane == RUNS, OutboxRow.not_before.is_not(None))
    .values(not_before=bindparam("now"), attempts=0)
)

# Statements of the busy paths are built once, and run without the ORM.
_HAPPENING = (InboxRow.id, InboxRow.source, InboxRow.kind, InboxRow.body, InboxRow.attempts)
_IGNORE = (
    update(InboxRow.__table__)  # type: ignore[arg-type]
    .where(InboxRow.id == bindparam("row"), InboxRow.not_before.is_not(None))
    .values(handled=bindparam("at"), not_before=None, error=None)
)
_new = insert(InboxRow)
_RECEIVE = _new.on_conflict_do_update(
    index_elements=["source", "delivery"],
    set_={"not_before": _new.excluded.not_before, "attempts": 0, "error": None},
    where=InboxRow.not_before.is_(None) & InboxRow.handled.is_(None),
)


class Store:
    """Every transaction on inbox, tasks and outbox."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._door, self._blocking = ThreadPoolExecutor(1, "door"), blocking(engine)
        self._engine, self._reader = engine, engine.execution_options(readonly=True)
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._read = async_sessionmaker(self._reader, expire_on_commit=False)

    # ── inbox ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def receive(self, rows: Sequence[Received]) -> None:
        """Write down what arrived, in one transaction.

        A known delivery changes nothing, but one that was given up is taken up again: somebody had it redelivered.
        """
        at = now()
        values = [{**row._asdict(), "received": at, "not_before": at, "attempts": 0} for row in rows]
        await asyncio.get_running_loop().run_in_executor(self._door, self._receive, values)

    def _receive(self, values: list[dict[str, Any]]) -> None:
        """In the door's own thread: one hand-over a batch, where the async engine needs one a statement."""
        with self._blocking.begin() as connection:
            connection.execute(_RECEIVE, values)

    async def inbox_due(self, limit: int, without: Collection[int] = ()) -> list[Happening]:
        """The oldest rows that wait to be decided, but for those that are `without`."""
        due = select(*_HAPPENING).where(InboxRow.not_before <= now(), InboxRow.id.not_in(without))
        async with self._reader.connect() as connection:
            rows = await connection.execute(due.order_by(InboxRow.id).limit(limit))
            return [Happening(**row._mapping) for row in rows]

    async def ignore(self, ids: Sequence[int]) -> None:
        """Close rows that concern nobody, in one transaction."""
        at = now()
        async with self._engine.begin() as connection:
            await connection.execute(_IGNORE, [{"row": id, "at": at} for id in ids])

    async def settle(self, id: int, event: Event, policy: Policy) -> None:
        """Decide one inbox row: task state, orders, journal and the row itself, in one transaction."""
        try:
            async with self._write.begin() as session:
                row = await session.get_one(InboxRow, id)
                if row.not_before is None:
                    return
                row.handled, row.not_before, row.error = now(), None, None
                await self._decide(session, row, event, policy)
        except (StaleDataError, IntegrityError):
            raise Unavailable("another worker moved the task first", retry_in=0.05) from None

    async def _decide(self, session: AsyncSession, row: InboxRow, event: Event, policy: Policy) -> None:
        was = None if isinstance(event, RequestMade) else await _task_row(session, event.issue)
        before = codec.load_task(was.data) if was else None
        task, orders = decide(before, event, policy)
        kept = _keep(was, task) if task else None
        if kept is not None and was is None:
            session.add(kept)
            await session.flush()
        session.add_all(_order_row(row.id, n, order, kept) for n, order in enumerate(orders))
        if kept is not None and any(isinstance(order, SwitchModel) for order in orders):
            await session.execute(_WAKE_RUN, {"task": kept.id, "now": now()})  # it may wait for the other model
        if kept is not None and (task != before or orders):
            detail = {"state": kept.state, "orders": [type(order).__name__ for order in orders]}
            happened = ("happened", type(event).__name__, codec.dump(event))
            await journal.write(session, kept.id, happened, ("decided", kept.state, detail))

    async def postpone_inbox(self, id: int, error: str, seconds: float) -> None:
        """It could not be looked at now; again in `seconds`."""
        await self._touch(InboxRow, id, error=error, not_before=now() + seconds, attempts=InboxRow.attempts + 1)

    async def fail_inbox(self, id: int, error: str) -> None:
        """It will never be decided; `osiris task list --failed` shows it."""
        await self._touch(InboxRow, id, error=error, not_before=None)

    # ── outbox ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def orders_due(self, limit: int, lanes: Collection[int], without: Collection[int]) -> list[Due]:
        """Orders of some lanes whose time has come, but for those that are `without`.

        In the lanes 0 and 1 an order waits for every earlier order of its task in lane 0.
        """
        earlier = aliased(OutboxRow)
        blocked = exists().where(
            earlier.task_id == OutboxRow.task_id,
            earlier.id < OutboxRow.id,
            earlier.not_before.is_not(None),
            earlier.lane == WRITES,
        )
        query = (
            select(OutboxRow, TaskRow.repo)
            .outerjoin(TaskRow, TaskRow.id == OutboxRow.task_id)
            .where(OutboxRow.not_before <= now(), OutboxRow.lane.in_(lanes), OutboxRow.id.not_in(without))
            .where(~blocked | (OutboxRow.lane > RUNS))
            .order_by(OutboxRow.id)
            .limit(limit)
        )
        async with self._read() as session:
            rows = (await session.execute(query)).all()
        return [Due(id=o.id, key=o.key, lane=o.lane, owner=(repo or "").partition("/")[0]) for o, repo in rows]

    async def order(self, id: int) -> tuple[Effect, Task | None, int] | None:
        """The order, its task as it is now, and the attempts so far; None when it is done."""
        async with self._read() as session:
            row = await session.get(OutboxRow, id)
            if row is None or row.not_before is None:
                return None
            task = await session.get(TaskRow, row.task_id) if row.task_id else None
            return codec.load(row.body), codec.load_task(task.data) if task else None, row.attempts

    async def superseded(self, id: int) -> bool:
        """Whether the same task has a later order of the same kind to be done: two reports are one."""
        later = aliased(OutboxRow)
        query = select(OutboxRow.id).where(
            OutboxRow.id == id,
            exists().where(
                later.task_id == OutboxRow.task_id,
                later.kind == OutboxRow.kind,
                later.id > OutboxRow.id,
                later.not_before.is_not(None),
            ),
        )
        async with self._read() as session:
            return await session.scalar(query) is not None

    async def finish(self, id: int, facts: Sequence[Event] = (), error: str | None = None) -> None:
        """The order is done (or refused for good, with `error`); the facts it brought enter the inbox with that."""
        async with self._write.begin() as session:
            row = await session.get_one(OutboxRow, id)
            if row.not_before is None:
                return
            row.done, row.not_before, row.error = now(), None, error
            for n, fact in enumerate(facts):
                session.add(InboxRow(**own_row(f"{row.key}/{n}", fact)._asdict(), received=now(), not_before=now()))
            if row.task_id is not None:
                detail = {"key": row.key, **({"refused": error} if error else {})}
                await journal.write(session, row.task_id, ("done", row.kind, detail))

    async def postpone_order(self, id: int, error: str, seconds: float, *, tries: int) -> None:
        await self._touch(OutboxRow, id, error=error, not_before=now() + seconds, attempts=tries)

    async def _touch(self, table: type[InboxRow | OutboxRow], id: int, **values: Any) -> None:
        async with self._write.begin() as session:
            await session.execute(update(table).where(table.id == id, table.not_before.is_not(None)).values(**values))

    async def next_due(self) -> float | None:
        """When the earliest waiting row wants to be looked at, in seconds since 1970."""
        async with self._reader.connect() as connection:
            inbox = await connection.scalar(select(func.min(InboxRow.not_before)))
            outbox = await connection.scalar(select(func.min(OutboxRow.not_before)))
        return min((at for at in (inbox, outbox) if at is not None), default=None)

    # ── tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def get(self, issue: IssueRef) -> Task | None:
        async with self._read() as session:
            row = await _task_row(session, issue)
        return codec.load_task(row.data) if row else None

    async def by_pull(self, repo: str, pull: int) -> Task | None:
        async with self._read() as session:
            row = await session.scalar(select(TaskRow).where(TaskRow.repo == repo, TaskRow.pull == pull))
        return codec.load_task(row.data) if row else None

    async def living(self) -> list[Task]:
        """Every task that has not ended."""
        query = select(TaskRow.data).where(TaskRow.state.in_([state.value for state in LIVING]))
        async with self._read() as session:
            return [codec.load_task(data) for data in await session.scalars(query)]

    async def close(self) -> None:
        """Close every connection to the database."""
        self._door.shutdown()
        self._blocking.dispose()
        await self._engine.dispose()

    async def ready(self) -> None:
        """Raises when the database does not answer."""
        async with self._write.begin() as session:
            await session.execute(delete(InboxRow).where(InboxRow.id < 0))


def own_row(key: str, fact: Event) -> Received:
    """A fact of our own as it enters the inbox; `key` keeps it single."""
    body = codec.dump(fact)
    return Received(OWN, key, body["type"], json.dumps(body).encode())


async def _task_row(session: AsyncSession, issue: IssueRef) -> TaskRow | None:
    found: TaskRow | None = await session.scalar(
        select(TaskRow).where(TaskRow.repo == issue.repo, TaskRow.issue == issue.number)
    )
    return found


def _keep(row: TaskRow | None, task: Task) -> TaskRow:
    """The task's row with the task in it; `row` None: a new one."""
    at = now()
    row = row or TaskRow(repo=task.issue.repo, issue=task.issue.number, created=at)
    row.state, row.pull, row.data, row.updated = task.state.value, task.pull, codec.dump_task(task), at
    return row


def _order_row(inbox_id: int, n: int, order: Effect, task: TaskRow | None) -> OutboxRow:
    return OutboxRow(
        key=f"{inbox_id}.{n}",
        task_id=task.id if task else None,
        kind=type(order).__name__,
        lane=_LANES.get(type(order), WRITES),
        body=codec.dump(order),
        not_before=now(),
    )
