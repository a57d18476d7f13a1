"""An `osiris.core.ports.storage.ReconcileState`: the database side of the comparison with
GitHub."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from osiris.core.errors import Refused
from osiris.core.events import IssueRef
from osiris.core.task import LIVING, Task
from osiris.queue import audit_log, serialization
from osiris.queue.database import as_read_only, build_insert, translate_errors
from osiris.queue.tables import InboxRow, OutboxRow, RecordRow, TaskRow

_AT_ONCE = 500  # parameters in one statement
_RENAMED = "renamed/"
STALLS = "stalls/"
"""The prefix, before a worker's data folder, of the record that counts its event loop's stalls."""
_RENAMES = 5  # renames that are followed, one after the other


class DatabaseReconcileState:
    """The state for reconciling, in the database.

    Raises Unavailable when the database does not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._read = async_sessionmaker(as_read_only(engine), expire_on_commit=False)
        self._write = async_sessionmaker(engine, expire_on_commit=False)

    async def open_tasks(self) -> Sequence[tuple[Task, float]]:
        query = select(TaskRow.data, TaskRow.created).where(
            TaskRow.state.in_([state.value for state in LIVING])
        )
        with translate_errors():
            async with self._read() as session:
                return [
                    (serialization.load_task(data), created)
                    for data, created in await session.execute(query)
                ]

    async def unseen_deliveries(self, source: str, deliveries: Collection[str]) -> set[str]:
        wanted = list(deliveries)
        known = set[str]()
        with translate_errors():
            async with self._read() as session:
                for start in range(0, len(wanted), _AT_ONCE):
                    some = InboxRow.delivery.in_(wanted[start : start + _AT_ONCE])
                    known |= set(
                        await session.scalars(
                            select(InboxRow.delivery).where(InboxRow.source == source, some)
                        )
                    )
        return set(wanted) - known

    async def get_value(self, name: str) -> str:
        with translate_errors():
            async with self._read() as session:
                return (
                    await session.scalar(select(RecordRow.value).where(RecordRow.name == name))
                    or ""
                )

    async def set_value(self, name: str, value: str) -> None:
        with translate_errors():
            async with self._write.begin() as session:
                await session.execute(self._build_upsert(), {"name": name, "value": value})

    def _build_upsert(self) -> Any:
        new = build_insert(self._engine, RecordRow)
        return new.on_conflict_do_update(
            index_elements=["name"], set_={"value": new.excluded.value}
        )

    async def rename_repository(self, old: str, new: str) -> None:
        """Rename a repository in its tasks and waiting orders, and remember the new name for facts
        that arrive later under the old one.

        Raises Refused when the new name already has tasks with the same numbers.
        """
        kept = self._build_upsert()
        try:
            with translate_errors():
                async with self._write.begin() as session:
                    rows = await session.scalars(
                        select(TaskRow).where(TaskRow.repo == old).with_for_update()
                    )
                    for row in list(rows):
                        await _rename_task(session, row, new)
                    await session.execute(kept, {"name": f"{_RENAMED}{old}", "value": new})
        except IntegrityError:
            raise Refused(
                f"{new} already has tasks with the numbers of {old}'s, so these keep the old name"
            ) from None


async def find_renamed_task(session: AsyncSession, issue: IssueRef) -> TaskRow | None:
    """Return the task of an issue whose repository was renamed, locked until the end of the
    transaction."""
    repo: str | None = issue.repo
    for _ in range(_RENAMES):
        repo = await session.scalar(
            select(RecordRow.value).where(RecordRow.name == f"{_RENAMED}{repo}")
        )
        if repo is None:
            return None
        query = (
            select(TaskRow)
            .where(TaskRow.repo == repo, TaskRow.issue == issue.number)
            .with_for_update()
        )
        if (row := await session.scalar(query)) is not None:
            return row
    return None


async def _rename_task(session: AsyncSession, row: TaskRow, repo: str) -> None:
    task = serialization.load_task(row.data)
    renamed = replace(task, issue=IssueRef(repo, task.issue.number))
    row.repo = repo
    row.data = serialization.dump_task(renamed)
    waiting = await session.scalars(
        select(OutboxRow).where(OutboxRow.task_id == row.id, OutboxRow.done.is_(None))
    )
    for order in list(waiting):
        body = {**order.body, "issue": {"repo": repo, "number": task.issue.number}}
        # the messages to a conversation are ordered by that conversation
        about = str(renamed.issue) if order.about == str(task.issue) else order.about
        await session.execute(
            update(OutboxRow).where(OutboxRow.id == order.id).values(body=body, about=about)
        )
    detail = {"from": task.issue.repo, "to": repo}
    await audit_log.append_entries(session, row.id, ("happened", "RepositoryRenamed", detail))
