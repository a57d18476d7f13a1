"""Runs and their transcripts: every message is committed before the next thing happens."""

from sqlalchemy import bindparam, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from osiris.events import IssueRef
from osiris.ports import Message
from osiris.queue import codec
from osiris.queue.tables import RunRow, StepRow, TaskRow, now

_ADD_SECONDS = (
    update(RunRow).where(RunRow.name == bindparam("run_name")).values(seconds=RunRow.seconds + bindparam("more"))
)


class DatabaseTranscripts:
    """`osiris.ports.Transcripts` over the tables runs and steps."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._read = async_sessionmaker(engine.execution_options(readonly=True), expire_on_commit=False)

    async def begin(self, run: str, issue: IssueRef, purpose: str, base: str) -> tuple[str, float]:
        task = select(TaskRow.id).where(TaskRow.repo == issue.repo, TaskRow.issue == issue.number).scalar_subquery()
        values = {"name": run, "task_id": task, "purpose": purpose, "base": base, "started": now(), "seconds": 0.0}
        async with self._engine.begin() as connection:
            await connection.execute(insert(RunRow).values(**values).on_conflict_do_nothing())
            row = (await connection.execute(select(RunRow.base, RunRow.seconds).where(RunRow.name == run))).one()
        return row.base, row.seconds

    async def load(self, run: str) -> list[Message]:
        query = select(StepRow.message).where(StepRow.run == run).order_by(StepRow.seq)
        async with self._read() as session:
            return [codec.load_message(message) for message in await session.scalars(query)]

    async def append(self, run: str, seq: int, message: Message, seconds: float) -> None:
        values = {"run": run, "seq": seq, "message": codec.dump_message(message), "at": now()}
        async with self._engine.begin() as connection:
            await connection.execute(insert(StepRow).on_conflict_do_nothing(), values)
            await connection.execute(_ADD_SECONDS, {"run_name": run, "more": seconds})

    async def end(self, run: str, outcome: str) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(update(RunRow).where(RunRow.name == run).values(ended=now(), outcome=outcome))
