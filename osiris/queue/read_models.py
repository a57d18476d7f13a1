"""Read models for the operator: tasks, failures, and the history of one task."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from osiris.core.events import IssueRef
from osiris.core.ports.storage import MetricSample
from osiris.core.ports.task_reader import AuditEntry, Failure, Step, TaskSummary, WaitingOrder
from osiris.queue import serialization
from osiris.queue.database import as_read_only
from osiris.queue.reconcile_state import STALLS
from osiris.queue.tables import (
    InboxRow,
    JournalRow,
    LeaseRow,
    OutboxRow,
    RecordRow,
    RunRow,
    StepRow,
    TaskRow,
    TurnRow,
    now,
)


class ReadModels:
    """Queries that only read; implements `osiris.core.ports.task_reader.TaskReader`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._read = async_sessionmaker(as_read_only(engine), expire_on_commit=False)

    async def list_tasks(self, limit: int = 50) -> list[TaskSummary]:
        """Return the tasks that changed last, newest first."""
        query = select(TaskRow).order_by(TaskRow.updated.desc(), TaskRow.id.desc()).limit(limit)
        async with self._read() as session:
            rows = list(await session.scalars(query))
            return [await _summarize_task(session, row) for row in rows]

    async def find_task(self, id: int | IssueRef) -> TaskSummary | None:
        """Return a task by its id or by its issue."""
        query = select(TaskRow)
        if isinstance(id, IssueRef):
            query = query.where(TaskRow.repo == id.repo, TaskRow.issue == id.number)
        else:
            query = query.where(TaskRow.id == id)
        async with self._read() as session:
            row = await session.scalar(query)
            return await _summarize_task(session, row) if row else None

    async def list_failures(self, limit: int = 50) -> list[Failure]:
        """Return the deliveries and orders that were given up, newest first."""
        inbox = select(InboxRow).where(InboxRow.error.is_not(None), InboxRow.not_before.is_(None))
        outbox = select(OutboxRow).where(
            OutboxRow.error.is_not(None), OutboxRow.not_before.is_(None)
        )
        async with self._read() as session:
            lost = await session.scalars(inbox.order_by(InboxRow.id.desc()).limit(limit))
            refused = await session.scalars(outbox.order_by(OutboxRow.id.desc()).limit(limit))
            found = [
                *(
                    Failure(what=r.kind, id=r.delivery, at=r.received, error=r.error or "")
                    for r in lost
                ),
                *(
                    Failure(what=r.kind, id=r.key, at=r.done or 0.0, error=r.error or "")
                    for r in refused
                ),
            ]
        return sorted(found, key=lambda failure: -failure.at)[:limit]

    async def list_waiting(self, task: int) -> list[WaitingOrder]:
        """Return the orders of a task that are not done yet, in their order."""
        query = (
            select(OutboxRow.kind, OutboxRow.not_before, OutboxRow.error, LeaseRow.host)
            .outerjoin(LeaseRow, LeaseRow.number == OutboxRow.lease)
            .where(OutboxRow.task_id == task, OutboxRow.done.is_(None))
            .order_by(OutboxRow.id)
        )
        async with self._read() as session:
            rows = await session.execute(query)
            return [
                WaitingOrder(what=kind, until=at, why=why or "", worker=host or "")
                for kind, at, why, host in rows
            ]

    async def read_metrics(self) -> list[MetricSample]:
        """Return the current counts of rows and of waiting work."""
        waits = OutboxRow.not_before.is_not(None)
        parked = (
            OutboxRow.not_before.is_(None) & OutboxRow.error.is_not(None) & OutboxRow.done.is_(None)
        )
        oldest = select(func.min(InboxRow.received)).where(InboxRow.not_before.is_not(None))
        stalls = select(LeaseRow.host, RecordRow.value).outerjoin(
            RecordRow, RecordRow.name == STALLS + LeaseRow.place
        )
        async with self._read() as session:
            return [
                *await _count_rows(session, "tasks", TaskRow.state),
                *await _count_rows(session, "orders_waiting", OutboxRow.kind, waits),
                *await _count_rows(session, "orders_parked", OutboxRow.kind, parked),
                *await _count_rows(
                    session, "deliveries_waiting", InboxRow.source, InboxRow.not_before.is_not(None)
                ),
                MetricSample(
                    "oldest_delivery_seconds",
                    now() - since if (since := await session.scalar(oldest)) else 0.0,
                ),
                MetricSample(
                    "workers",
                    float(await session.scalar(select(func.count()).select_from(LeaseRow)) or 0),
                ),
                *[
                    MetricSample("loop_stalls", float(n or 0), "worker", host)
                    for host, n in await session.execute(stalls)
                ],
                *_count_writes(
                    list(
                        await session.scalars(
                            select(TurnRow).where(TurnRow.name.startswith("writes/"))
                        )
                    )
                ),
            ]

    async def read_audit_log(self, task: int, after: int = 0) -> list[AuditEntry]:
        """Return the audit log of a task after entry `after`."""
        query = (
            select(JournalRow)
            .where(JournalRow.task_id == task, JournalRow.seq > after)
            .order_by(JournalRow.seq)
        )
        async with self._read() as session:
            rows = await session.scalars(query)
            return [
                AuditEntry(seq=r.seq, at=r.at, kind=r.kind, what=r.what, detail=r.detail)
                for r in rows
            ]

    async def list_steps(self, task: int, after: float = 0.0) -> list[Step]:
        """Return the messages of all runs of a task that were stored after the time `after`."""
        query = (
            select(StepRow)
            .join(RunRow, RunRow.name == StepRow.run)
            .where(RunRow.task_id == task, StepRow.at > after)
            .order_by(StepRow.at, StepRow.seq)
        )
        async with self._read() as session:
            rows = await session.scalars(query)
            return [
                Step(run=r.run, seq=r.seq, at=r.at, message=serialization.load_message(r.message))
                for r in rows
            ]

    async def is_handled(self, source: str, delivery: str) -> bool:
        """Return whether a worker has processed an inbox row."""
        query = select(InboxRow.not_before).where(
            InboxRow.source == source, InboxRow.delivery == delivery
        )
        async with self._read() as session:
            return (await session.execute(query)).one_or_none() == (None,)


async def _count_rows(
    session: AsyncSession, name: str, by: Any, *only: ColumnElement[bool]
) -> list[MetricSample]:
    rows = await session.execute(select(by, func.count()).where(*only).group_by(by))
    return [MetricSample(name, float(count), by.key, str(value)) for value, count in rows]


def _count_writes(accounts: Sequence[TurnRow]) -> list[MetricSample]:
    """Return the writes to GitHub in the last hour. GitHub allows an account 500."""
    since = now() - 3600
    return [
        MetricSample(
            "writes_last_hour",
            sum(at > since for at in row.data.get("sent", [])),
            "account",
            row.name[7:],
        )
        for row in accounts
    ]


async def _summarize_task(session: Any, row: TaskRow) -> TaskSummary:
    waiting = await session.scalar(
        select(func.count()).where(OutboxRow.task_id == row.id, OutboxRow.not_before.is_not(None))
    )
    return TaskSummary(
        id=row.id, task=serialization.load_task(row.data), updated=row.updated, waiting=waiting
    )
