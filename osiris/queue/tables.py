"""The tables. The database is the truth; everything else only wakes workers."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Integer, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = JSON().with_variant(JSONB, "postgresql")
Key = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself only in an INTEGER column


def now() -> float:
    """Seconds since 1970, the way every time stands in the database."""
    return datetime.now(UTC).timestamp()


class Table(DeclarativeBase): ...


class InboxRow(Table):
    """What happened. `handled` is when it was decided; `error` says why that will never be."""

    __tablename__ = "inbox"
    __table_args__ = (
        UniqueConstraint("source", "delivery", name="uq_inbox_source_delivery"),
        Index("ix_inbox_due", "not_before", "id"),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    source: Mapped[str] = mapped_column(String(32))
    delivery: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(64))
    body: Mapped[bytes] = mapped_column(LargeBinary)
    received: Mapped[float]
    handled: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)


class TaskRow(Table):
    """One issue, one task; `data` is the whole `osiris.task.Task`, the columns are what is looked up."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("repo", "issue", name="uq_tasks_repo_issue"),
        UniqueConstraint("repo", "pull", name="uq_tasks_repo_pull"),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    repo: Mapped[str] = mapped_column(String(255))
    issue: Mapped[int]
    pull: Mapped[int | None]
    state: Mapped[str] = mapped_column(String(16), index=True)
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    created: Mapped[float]
    updated: Mapped[float]
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - the way SQLAlchemy declares it


class OutboxRow(Table):
    """What is to be done; `lane` says what waits for what (`store.py`)."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_due", "not_before", "id"), Index("ix_outbox_task", "task_id", "done"))
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("tasks.id"))
    kind: Mapped[str] = mapped_column(String(32))
    lane: Mapped[int]
    body: Mapped[dict[str, Any]] = mapped_column(Json)
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float | None]
    done: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)


class RunRow(Table):
    """One run of an agent on a task; `name` is unique and also names its session."""

    __tablename__ = "runs"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), index=True)
    purpose: Mapped[str] = mapped_column(String(32))
    base: Mapped[str] = mapped_column(String(64))
    started: Mapped[float]
    seconds: Mapped[float] = mapped_column(default=0.0)
    ended: Mapped[float | None]
    outcome: Mapped[str | None] = mapped_column(String(32))


class StepRow(Table):
    """One message of a run's transcript, append-only."""

    __tablename__ = "steps"
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    message: Mapped[dict[str, Any]] = mapped_column(Json)
    at: Mapped[float]


class JournalRow(Table):
    """What happened, what was decided and what was done, hash-chained per task, append-only."""

    __tablename__ = "journal"
    __table_args__ = (UniqueConstraint("task_id", "seq", name="uq_journal_task_seq"),)
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    seq: Mapped[int]
    at: Mapped[float]
    kind: Mapped[str] = mapped_column(String(16))
    what: Mapped[str] = mapped_column(String(64))
    detail: Mapped[dict[str, Any]] = mapped_column(Json)
    hash: Mapped[str] = mapped_column(String(64))
