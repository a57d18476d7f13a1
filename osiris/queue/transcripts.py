"""Runs and their transcripts.

The worker that runs a run commits every message before the next action.
"""

from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from osiris.core.errors import LeaseLost
from osiris.core.events import IssueRef
from osiris.core.ports.models import Message
from osiris.core.ports.storage import Checkpoint, ResumedRun
from osiris.queue import serialization
from osiris.queue.database import as_read_only, build_insert, translate_errors
from osiris.queue.leases import Lease
from osiris.queue.tables import RunRow, StepRow, TaskRow, now

_HELD = (RunRow.name == bindparam("run_name"), RunRow.lease == bindparam("number"))
_ADD_SECONDS = (
    update(RunRow.__table__)  # type: ignore[arg-type]
    .where(*_HELD)
    .values(seconds=RunRow.seconds + bindparam("more"))
)
_KEEP = (
    update(RunRow.__table__)  # type: ignore[arg-type]
    .where(*_HELD)
    .values(kept=bindparam("commit"), kept_steps=bindparam("steps"))
)


class DatabaseTranscripts:
    """An `osiris.core.ports.storage.Transcripts` over the tables runs and steps.

    The lease that began a run last is the fence of its transcript: no other worker can add to it.
    """

    def __init__(self, engine: AsyncEngine, lease: Lease) -> None:
        self._engine = engine
        self._lease = lease
        self._read = async_sessionmaker(as_read_only(engine), expire_on_commit=False)
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._new_run = build_insert(engine, RunRow).on_conflict_do_nothing()
        self._new_step = build_insert(engine, StepRow).on_conflict_do_nothing()

    async def begin_run(self, run: str, issue: IssueRef, purpose: str, base: str) -> ResumedRun:
        with translate_errors():
            async with self._write.begin() as session:
                await self._lease.assert_held(session)
                task = await session.scalar(
                    select(TaskRow.id).where(
                        TaskRow.repo == issue.repo, TaskRow.issue == issue.number
                    )
                )
                values = {
                    "name": run,
                    "task_id": task,
                    "purpose": purpose,
                    "base": base,
                    "started": now(),
                }
                fresh = {"seconds": 0.0, "place": "", "kept": "", "kept_steps": 0}
                await session.execute(self._new_run, values | fresh)
                row = await session.get_one(RunRow, run, with_for_update=True)
                # "": it was begun before places were recorded
                here = row.place in ("", self._lease.place)
                row.lease = self._lease.number
                row.place = self._lease.place
                await session.execute(
                    update(TaskRow).where(TaskRow.id == task).values(lease=self._lease.number)
                )
                kept = Checkpoint(commit=row.kept, steps=row.kept_steps) if row.kept else None
                return ResumedRun(base=row.base, seconds=row.seconds, here=here, checkpoint=kept)

    async def load_messages(self, run: str) -> list[Message]:
        query = select(StepRow.message).where(StepRow.run == run).order_by(StepRow.seq)
        with translate_errors():
            async with self._read() as session:
                return [
                    serialization.load_message(message) for message in await session.scalars(query)
                ]

    async def append(self, run: str, seq: int, message: Message, seconds: float) -> None:
        values = {
            "run": run,
            "seq": seq,
            "message": serialization.dump_message(message),
            "at": now(),
        }
        with translate_errors():
            async with self._write.begin() as session:
                await self._execute_as_holder(session, _ADD_SECONDS, run, more=seconds)
                await session.execute(self._new_step, values)

    async def record_checkpoint(self, run: str, checkpoint: Checkpoint) -> None:
        with translate_errors():
            async with self._write.begin() as session:
                await self._execute_as_holder(
                    session, _KEEP, run, commit=checkpoint.commit, steps=checkpoint.steps
                )

    async def end_run(self, run: str, outcome: str) -> None:
        with translate_errors():
            async with self._write.begin() as session:
                await session.execute(
                    update(RunRow).where(RunRow.name == run).values(ended=now(), outcome=outcome)
                )

    async def _execute_as_holder(
        self, session: AsyncSession, statement: Any, run: str, **values: Any
    ) -> None:
        connection = await session.connection()
        done = await connection.execute(
            statement, {"run_name": run, "number": self._lease.number, **values}
        )
        if done.rowcount == 0:
            raise LeaseLost("another worker continues this run")
