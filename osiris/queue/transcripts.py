"""Runs and their transcripts: every message is committed before the next thing happens, by who runs the run."""

from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from osiris.core.errors import Fenced
from osiris.core.events import IssueRef
from osiris.core.ports.models import Message
from osiris.core.ports.storage import Begun, Kept
from osiris.queue import serialization
from osiris.queue.database import answering, insert, reading
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
    """`osiris.core.ports.storage.Transcripts` over the tables runs and steps.

    The lease that began a run last is the fence of its transcript: nobody else can add to it.
    """

    def __init__(self, engine: AsyncEngine, lease: Lease) -> None:
        self._engine, self._lease = engine, lease
        self._read = async_sessionmaker(reading(engine), expire_on_commit=False)
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._new_run = insert(engine, RunRow).on_conflict_do_nothing()
        self._new_step = insert(engine, StepRow).on_conflict_do_nothing()

    async def begin(self, run: str, issue: IssueRef, purpose: str, base: str) -> Begun:
        with answering():
            async with self._write.begin() as session:
                await self._lease.insist(session)
                task = await session.scalar(
                    select(TaskRow.id).where(TaskRow.repo == issue.repo, TaskRow.issue == issue.number)
                )
                values = {"name": run, "task_id": task, "purpose": purpose, "base": base, "started": now()}
                fresh = {"seconds": 0.0, "place": "", "kept": "", "kept_steps": 0}
                await session.execute(self._new_run, values | fresh)
                row = await session.get_one(RunRow, run, with_for_update=True)
                here = row.place in ("", self._lease.place)  # "": it was begun before places were noted
                row.lease, row.place = self._lease.number, self._lease.place
                await session.execute(update(TaskRow).where(TaskRow.id == task).values(lease=self._lease.number))
                kept = Kept(commit=row.kept, steps=row.kept_steps) if row.kept else None
                return Begun(base=row.base, seconds=row.seconds, here=here, kept=kept)

    async def load(self, run: str) -> list[Message]:
        query = select(StepRow.message).where(StepRow.run == run).order_by(StepRow.seq)
        with answering():
            async with self._read() as session:
                return [serialization.load_message(message) for message in await session.scalars(query)]

    async def append(self, run: str, seq: int, message: Message, seconds: float) -> None:
        values = {"run": run, "seq": seq, "message": serialization.dump_message(message), "at": now()}
        with answering():
            async with self._write.begin() as session:
                await self._hold(session, _ADD_SECONDS, run, more=seconds)
                await session.execute(self._new_step, values)

    async def keep(self, run: str, kept: Kept) -> None:
        with answering():
            async with self._write.begin() as session:
                await self._hold(session, _KEEP, run, commit=kept.commit, steps=kept.steps)

    async def end(self, run: str, outcome: str) -> None:
        with answering():
            async with self._write.begin() as session:
                await session.execute(update(RunRow).where(RunRow.name == run).values(ended=now(), outcome=outcome))

    async def _hold(self, session: AsyncSession, statement: Any, run: str, **values: Any) -> None:
        connection = await session.connection()
        done = await connection.execute(statement, {"run_name": run, "number": self._lease.number, **values})
        if done.rowcount == 0:
            raise Fenced("another worker goes on with this run")
