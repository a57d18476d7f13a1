"""Transactions on the inbox and the tasks. Deciding one inbox row updates its task, adds the orders
and closes the row in one transaction."""

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import Integer, bindparam, case, delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from osiris.core.decide import decide
from osiris.core.decide.conversations import decide_conversation
from osiris.core.effects import Effect, RequeueParked, SwitchModel
from osiris.core.errors import Unavailable
from osiris.core.events import ConversationEvent, Event, IssueRef, TaskEvent
from osiris.core.policy import Policy
from osiris.core.ports.live import AuditEntryAdded, LiveEvents
from osiris.core.task import Task
from osiris.queue import audit_log, conversations, outbox, serialization
from osiris.queue.database import as_read_only, build_insert, create_sync_engine, translate_errors
from osiris.queue.in_process import LocalLiveEvents
from osiris.queue.inbox_rows import OWN, NewInboxRow
from osiris.queue.leases import INBOX, Lease
from osiris.queue.reconcile_state import find_renamed_task
from osiris.queue.tables import InboxRow, OutboxRow, TaskRow, is_due, now

ThreadKey = tuple[str, str]
"""A source, and what a row is about, "" for nothing. Rows of one thread are processed in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxItem:
    """An inbox row that waits for a decision; `delivery` is its sender's id for it."""

    id: int
    source: str
    delivery: str
    kind: str
    ordering_key: str
    trace: str
    body: bytes
    attempts: int

    @property
    def thread(self) -> ThreadKey:
        return self.source, self.ordering_key


# Statements of the busy paths are built once and run without the ORM.
_ITEM_COLUMNS = [getattr(InboxRow, field.name) for field in fields(InboxItem)]
_DUE = (
    select(*_ITEM_COLUMNS)
    .where(is_due(InboxRow), InboxRow.id.not_in(bindparam("without", expanding=True)))
    .order_by(InboxRow.id)
    .limit(bindparam("limit", type_=Integer))
)
_DEFERRED = (
    select(InboxRow.id, InboxRow.source, InboxRow.ordering_key, InboxRow.not_before)
    .where(InboxRow.not_before.is_not(None), ~is_due(InboxRow))
    .order_by(InboxRow.id.desc())
)
_IGNORE = (
    update(InboxRow.__table__)  # type: ignore[arg-type]
    .where(InboxRow.id == bindparam("row"), InboxRow.not_before.is_not(None))
    .values(handled=bindparam("at"), not_before=None, error=None)
)
_WAITING = (InboxRow, OutboxRow)  # both have a partial index of the waiting rows
# one statement, so that a row that moves from the outbox to the inbox is not missed
_NEXT_DUE = select(
    *(
        select(func.min(row.not_before)).where(row.not_before.is_not(None)).scalar_subquery()
        for row in _WAITING
    )
)


class Store:
    """Transactions on the inbox and the tasks. Those that only a worker may make fail without its
    `lease`."""

    def __init__(
        self, engine: AsyncEngine, lease: Lease | None = None, live_events: LiveEvents | None = None
    ) -> None:
        self._executor = ThreadPoolExecutor(1, "inbox")
        self._blocking = create_sync_engine(engine)
        self._engine = engine
        self._lease = lease or Lease(engine, "")
        self._live_events = live_events or LocalLiveEvents()
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._reader = as_read_only(engine)
        self._read = async_sessionmaker(self._reader, expire_on_commit=False)
        new = build_insert(engine, InboxRow)
        self._new = new.on_conflict_do_update(
            index_elements=["source", "delivery"],
            set_={"not_before": new.excluded.not_before, "attempts": 0, "error": None},
            where=InboxRow.not_before.is_(None) & InboxRow.handled.is_(None),
        )

    # ── inbox ─────────────────────────────────────────────────────────────────────────────────────

    async def receive_rows(self, rows: Sequence[NewInboxRow]) -> None:
        """Insert the rows in one transaction.

        A known delivery changes nothing, except one that was given up: it is due again, because
        somebody requested its redelivery.
        """
        at = now()
        values = [
            {**row._asdict(), "received": at, "not_before": at, "attempts": 0} for row in rows
        ]
        await asyncio.get_running_loop().run_in_executor(self._executor, self._insert_rows, values)

    def _insert_rows(self, values: list[dict[str, Any]]) -> None:
        """Insert rows in the inbox thread, which needs one switch of threads per batch; the async
        engine needs one per statement."""
        with self._blocking.begin() as connection:
            connection.execute(self._new, values)

    async def list_due(
        self, limit: int, without: Collection[int] = (), at: float | None = None
    ) -> list[InboxItem]:
        """Return the oldest rows that are due at `at` (seconds since 1970; None: now), except those
        in `without`."""
        params = {"now": now() if at is None else at, "without": without, "limit": limit}
        async with self._reader.connect() as connection:
            rows = await connection.execute(_DUE, params)
            return [InboxItem(**row._mapping) for row in rows]

    async def list_deferred(self, at: float) -> dict[ThreadKey, tuple[int, float]]:
        """Return the oldest row of each thread that is deferred beyond `at`, and its time (both
        seconds since 1970)."""
        async with self._reader.connect() as connection:
            rows = await connection.execute(_DEFERRED, {"now": at})
            return {(row.source, row.ordering_key): (row.id, row.not_before) for row in rows}

    async def ignore_rows(self, ids: Sequence[int]) -> None:
        """Close rows that concern no task, in one transaction."""
        at = now()
        with translate_errors():
            async with self._write.begin() as session:
                await self._lease.assert_holds_lock(session, INBOX)
                connection = await session.connection()
                await connection.execute(_IGNORE, [{"row": id, "at": at} for id in ids])

    async def decide(self, id: int, event: Event, policy: Policy) -> None:
        """Decide one inbox row: update the task, the orders, the audit log and the row itself in
        one transaction."""
        try:
            with translate_errors():
                async with self._write.begin() as session:
                    await self._lease.assert_holds_lock(session, INBOX)
                    row = await session.get_one(InboxRow, id)
                    if row.not_before is None:
                        return
                    row.handled = now()
                    row.not_before = None
                    row.error = None
                    audit_entry = await self._apply_event(session, row, event, policy)
        except (StaleDataError, IntegrityError):
            raise Unavailable("another worker moved the task first", retry_in=0.05) from None
        if audit_entry:
            self._live_events.publish(audit_entry)

    async def _apply_event(
        self, session: AsyncSession, row: InboxRow, event: Event, policy: Policy
    ) -> AuditEntryAdded | None:
        if not isinstance(event, TaskEvent):
            await self._apply_to_conversation(session, row, event)
            return None
        if old_row := await _find_subject(session, row, event.issue):
            event = replace(event, issue=IssueRef(old_row.repo, old_row.issue))
        before = serialization.load_task(old_row.data) if old_row else None
        task, decided = decide(before, event, policy)
        task_row = _update_task_row(old_row, task) if task else None
        if task_row is not None and old_row is None:
            session.add(task_row)
            await session.flush()
        if task_row is not None:
            await _apply_immediately(session, task_row.id, decided)
        orders = [order for order in decided if not isinstance(order, RequeueParked)]
        session.add_all(
            outbox.create_row(row, n, order, task_row) for n, order in enumerate(orders)
        )
        if task_row is not None and (task != before or decided):
            detail = {
                "state": task_row.state,
                "orders": [type(order).__name__ for order in decided],
            }
            happened = ("happened", type(event).__name__, serialization.dump(event))
            return await audit_log.append_entries(
                session, task_row.id, happened, ("decided", task_row.state, detail)
            )
        return None

    async def _apply_to_conversation(
        self, session: AsyncSession, row: InboxRow, event: ConversationEvent
    ) -> None:
        conversation = (
            await conversations.load_conversation(session, event.address) if event.address else None
        )
        decided, orders = decide_conversation(conversation, event)
        if decided is not None and decided != conversation:
            await conversations.save_conversation(session, decided)
        session.add_all(outbox.create_row(row, n, order, None) for n, order in enumerate(orders))

    async def postpone_inbox(self, id: int, error: str, seconds: float) -> float:
        """Defer a row that could not be processed by `seconds`. Return the time when it is due
        (seconds since 1970)."""
        at = now() + seconds
        await self._update_row(id, error=error, not_before=at, attempts=InboxRow.attempts + 1)
        return at

    async def defer_behind(self, id: int, at: float) -> None:
        """Defer a row until `at` because an earlier row of the same issue is deferred until then.

        This counts as a first attempt, because a row with no attempts would be due at once; it does
        not count further.
        """
        tried = case((InboxRow.attempts == 0, 1), else_=InboxRow.attempts)
        await self._update_row(
            id, error="it waits for what was said before", not_before=at, attempts=tried
        )

    async def fail_inbox(self, id: int, error: str) -> None:
        """Give up a row; `osiris task list --failed` lists it."""
        await self._update_row(id, error=error, not_before=None)

    async def _update_row(self, id: int, *, error: str, **values: Any) -> None:
        row = update(InboxRow).where(InboxRow.id == id, InboxRow.not_before.is_not(None))
        with translate_errors():
            async with self._write.begin() as session:
                await self._lease.assert_holds_lock(session, INBOX)
                await session.execute(row.values(error=serialization.replace_nul(error), **values))

    async def next_due(self) -> float | None:
        """Return the time when the earliest waiting row is due, in seconds since 1970; None when
        none waits."""
        async with self._reader.connect() as connection:
            waiting = (await connection.execute(_NEXT_DUE)).one()
        return min((at for at in waiting if at is not None), default=None)

    # ── tasks ─────────────────────────────────────────────────────────────────────────────────────

    async def get(self, issue: IssueRef) -> Task | None:
        async with self._read() as session:
            row = await _task_row(session, issue, lock=False)
        return serialization.load_task(row.data) if row else None

    async def find_task_by_pull(self, repo: str, pull: int) -> Task | None:
        async with self._read() as session:
            row = await session.scalar(
                select(TaskRow).where(TaskRow.repo == repo, TaskRow.pull == pull)
            )
        return serialization.load_task(row.data) if row else None

    async def close(self) -> None:
        """Close every connection to the database."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._blocking.dispose()
        await self._engine.dispose()

    async def check_writable(self) -> None:
        """Raise when the database does not answer or cannot be written."""
        async with self._write.begin() as session:
            await session.execute(delete(InboxRow).where(InboxRow.id < 0))


async def _apply_immediately(session: AsyncSession, task: int, decided: Sequence[Effect]) -> None:
    """Apply the effects that change the outbox within the transaction of the decision."""
    if any(isinstance(order, SwitchModel) for order in decided):
        # the run may be waiting for the other model
        await session.execute(outbox.WAKE_RUN, {"task": task, "now": now()})
    if any(isinstance(order, RequeueParked) for order in decided):
        await session.execute(outbox.TAKE_UP, {"task": task, "now": now()})


async def _task_row(session: AsyncSession, issue: IssueRef, *, lock: bool = True) -> TaskRow | None:
    """Return the task's row. Unless `lock` is False, it is locked for a change in this
    transaction."""
    query = select(TaskRow).where(TaskRow.repo == issue.repo, TaskRow.issue == issue.number)
    found: TaskRow | None = await session.scalar(query.with_for_update() if lock else query)
    return found


async def _find_subject(session: AsyncSession, row: InboxRow, issue: IssueRef) -> TaskRow | None:
    """Return the task that a row is about. A fact of Osiris may come from a job that began under an
    older repository name."""
    found = await _task_row(session, issue)
    return await find_renamed_task(session, issue) if found is None and row.source == OWN else found


def _update_task_row(row: TaskRow | None, task: Task) -> TaskRow:
    """Return the row with the task written into it; a new row when `row` is None."""
    at = now()
    row = row or TaskRow(repo=task.issue.repo, issue=task.issue.number, created=at)
    row.state = task.state.value
    row.pull = task.pull
    row.data = serialization.dump_task(task)
    row.updated = at
    return row
