"""Retention: expired rows are deleted to keep the database small; audit logs are first exported to
files."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Select, delete, exists, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from osiris.core.events import IssueRef
from osiris.core.task import ENDED
from osiris.queue import serialization
from osiris.queue.database import as_read_only, translate_errors
from osiris.queue.tables import (
    ConversationRow,
    InboxRow,
    JournalRow,
    OutboxRow,
    RunRow,
    StepRow,
    TaskRow,
    now,
)

_DAY = 86400.0
_AT_ONCE = 100  # tasks or rows in one transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """The number of deleted rows."""

    tasks: int = 0
    steps: int = 0
    lines: int = 0
    deliveries: int = 0
    conversations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ObsoleteCheckpoint:
    """The checkpoint of a run that nothing will need again."""

    issue: IssueRef
    run: str

    @property
    def ref(self) -> str:
        return f"{self.issue.number}-{self.run.rpartition('-')[2]}"


class Retention:
    """The retention of old data: what is older than `days` is deleted.

    The task itself is kept, so that its request is never done twice.
    """

    def __init__(self, engine: AsyncEngine, exports: Path, *, days: int) -> None:
        """Create the retention.

        Audit logs are appended to files in `exports`, one for each task, before their rows are
        deleted.
        """
        self._read = async_sessionmaker(as_read_only(engine), expire_on_commit=False)
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._exports = exports
        self._days = days

    async def prune(self) -> PruneResult:
        """Run one pass.

        Raises Unavailable without a database, and OSError when an audit log cannot be exported.
        """
        before = now() - self._days * _DAY
        tasks = 0
        steps = 0
        lines = 0
        with translate_errors():
            for id in await self._find_expired(before):
                async with self._write.begin() as session:
                    if (task := await _lock_if_expired(session, id, before)) is None:
                        continue
                    some_steps, some_lines = await self._prune_task(session, task)
                tasks = tasks + 1
                steps = steps + some_steps
                lines = lines + some_lines
            return PruneResult(
                tasks=tasks,
                steps=steps,
                lines=lines,
                deliveries=await self._prune_inbox(before),
                conversations=await self._prune_conversations(before),
            )

    async def _find_expired(self, before: float) -> list[int]:
        async with self._read() as session:
            return list(
                await session.scalars(
                    select(TaskRow.id).where(_is_expired(before)).order_by(TaskRow.id)
                )
            )

    async def _prune_task(self, session: AsyncSession, task: TaskRow) -> tuple[int, int]:
        runs = select(RunRow.name).where(RunRow.task_id == task.id)
        lines = await self._export_journal(session, task)
        steps = await _delete_rows(session, StepRow, StepRow.run.in_(runs))
        await _delete_rows(session, RunRow, RunRow.task_id == task.id)
        await _delete_rows(session, OutboxRow, OutboxRow.task_id == task.id)
        return steps, lines

    async def _export_journal(self, session: AsyncSession, task: TaskRow) -> int:
        """Export all entries except the last one, on which the chain continues if the task is
        resumed."""
        query = select(JournalRow).where(JournalRow.task_id == task.id).order_by(JournalRow.seq)
        rows = list(await session.scalars(query))[:-1]
        self._exports.mkdir(mode=0o700, exist_ok=True)
        _append_lines(
            self._exports / f"{task.repo.replace('/', '.')}-{task.issue}.jsonl",
            [_format_line(row) for row in rows],
        )
        return await _delete_rows(session, JournalRow, JournalRow.id.in_([row.id for row in rows]))

    async def _prune_inbox(self, before: float) -> int:
        """Delete deliveries that were handled.

        GitHub can redeliver for three days; we keep them longer.

        The newest row is kept whatever its age: SQLite continues counting from the highest existing
        id, and the orders of active tasks are identified by the ids of the rows that caused them.
        """
        newest = select(func.max(InboxRow.id)).scalar_subquery()
        total = 0
        old = (InboxRow.handled < before) & InboxRow.not_before.is_(None) & (InboxRow.id < newest)
        while True:
            async with self._write.begin() as session:
                ids = list(
                    await session.scalars(select(InboxRow.id).where(old).limit(_AT_ONCE * 10))
                )
                total += await _delete_rows(session, InboxRow, InboxRow.id.in_(ids))
            if len(ids) < _AT_ONCE * 10:
                return total

    async def _prune_conversations(self, before: float) -> int:
        """Delete conversations in which nothing was said for long, except those with a request that
        is not filed yet."""
        address = tuple_(ConversationRow.channel, ConversationRow.name)
        query = (
            select(ConversationRow)
            .where(ConversationRow.updated < before)
            .order_by(ConversationRow.channel, ConversationRow.name)
        )
        await self._prune_messages(before)
        total = 0
        last = ("", "")
        while True:
            async with self._write.begin() as session:
                rows = list(await session.scalars(query.where(address > last).limit(_AT_ONCE)))
                for row in rows:
                    if serialization.load_conversation(row.data).request is None:
                        await session.delete(row)
                        total += 1
            if len(rows) < _AT_ONCE:
                return total
            last = (rows[-1].channel, rows[-1].name)

    async def _prune_messages(self, before: float) -> None:
        """Delete the orders that belonged to no task and are over."""
        over = OutboxRow.task_id.is_(None) & (OutboxRow.done < before)
        async with self._write.begin() as session:
            await session.execute(delete(OutboxRow).where(over))

    # ── checkpoints ───────────────────────────────────────────────────────────────────────────────

    async def find_obsolete(self, *, without: Collection[str] = ()) -> list[ObsoleteCheckpoint]:
        """Return some runs that are over, have a checkpoint, and have no work waiting for a push.

        Repositories in `without` are left out.
        """
        with translate_errors():
            async with self._read() as session:
                rows = await session.execute(_select_obsolete().where(TaskRow.repo.not_in(without)))
                return [
                    ObsoleteCheckpoint(issue=IssueRef(repo, number), run=name)
                    for name, repo, number in rows
                ]

    async def forget_checkpoint(self, run: str) -> None:
        """Record that a run has no checkpoint any more."""
        with translate_errors():
            async with self._write.begin() as session:
                await session.execute(update(RunRow).where(RunRow.name == run).values(kept=""))

    async def list_active_runs(self, place: str) -> set[str]:
        """Return the runs that are not over and whose workspace is in the data folder `place`."""
        over = TaskRow.state.in_([state.value for state in ENDED])
        query = select(RunRow.name).join(TaskRow, TaskRow.id == RunRow.task_id)
        with translate_errors():
            async with self._read() as session:
                here = RunRow.place.in_(("", place))  # "": it was begun before places were recorded
                return set(await session.scalars(query.where(here, RunRow.ended.is_(None), ~over)))

    async def list_busy_repositories(self) -> set[str]:
        """Return the repositories that a run or an order still needs on this machine."""
        orders = (
            select(TaskRow.repo)
            .join(OutboxRow, OutboxRow.task_id == TaskRow.id)
            .where(OutboxRow.done.is_(None))
        )
        runs = (
            select(TaskRow.repo)
            .join(RunRow, RunRow.task_id == TaskRow.id)
            .where(RunRow.ended.is_(None))
        )
        with translate_errors():
            async with self._read() as session:
                return {*(await session.scalars(orders)), *(await session.scalars(runs))}


def _is_expired(before: float) -> ColumnElement[bool]:
    """Return whether a task ended before that time, has nothing left to do, and has more rows than
    the last entry of its audit log."""
    mine = OutboxRow.task_id == TaskRow.id
    ended = TaskRow.state.in_([state.value for state in ENDED]) & (TaskRow.updated < before)
    return ended & exists().where(mine) & ~exists().where(mine, OutboxRow.not_before.is_not(None))


async def _lock_if_expired(session: AsyncSession, id: int, before: float) -> TaskRow | None:
    """Return the task's locked row; None when the task was resumed meanwhile.

    The query comes after the lock: PostgreSQL may have waited for the lock, and sees only then what
    was committed meanwhile.
    """
    await session.execute(select(TaskRow.id).where(TaskRow.id == id).with_for_update())
    found: TaskRow | None = await session.scalar(
        select(TaskRow).where(TaskRow.id == id, _is_expired(before))
    )
    return found


def _format_line(row: JournalRow) -> bytes:
    fields = ("seq", "at", "kind", "what", "detail", "hash")
    return json.dumps({name: getattr(row, name) for name in fields}).encode() + b"\n"


def _append_lines(path: Path, lines: Sequence[bytes]) -> None:
    """Append `lines` to a file and sync it to disk; afterwards the file contains each of them once.

    Some may be there already: they are written before the commit that removes their rows, and that
    commit may fail. A process that died while writing left half a line, whose row still exists.
    """
    with path.open("a+b") as file:
        os.chmod(file.fileno(), 0o600)
        file.seek(0)
        whole = [line for line in file if line.endswith(b"\n")]
        file.truncate(sum(len(line) for line in whole))
        known = set(whole)
        file.writelines(line for line in lines if line not in known)
        file.flush()
        os.fsync(file.fileno())


def _select_obsolete() -> Select[str, str, int]:
    pushing = exists().where(
        OutboxRow.task_id == RunRow.task_id, OutboxRow.kind == "Push", OutboxRow.done.is_(None)
    )
    undecided = exists().where(InboxRow.not_before.is_not(None), InboxRow.source == "osiris")
    return (
        select(RunRow.name, TaskRow.repo, TaskRow.issue)
        .join(TaskRow, TaskRow.id == RunRow.task_id)
        .where(RunRow.kept != "", RunRow.ended.is_not(None), ~pushing, ~undecided)
        .limit(_AT_ONCE)
    )


async def _delete_rows(session: AsyncSession, table: type, which: ColumnElement[bool]) -> int:
    count = await session.scalar(select(func.count()).select_from(table).where(which))
    await session.execute(delete(table).where(which))
    return count or 0
