"""The tables. The database is the source of truth; everything else only wakes workers."""

import time
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    and_,
    bindparam,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# JSON in PostgreSQL too, because JSONB refuses U+0000, which a command's output may contain
Json = JSON()
# SQLite autoincrements only an INTEGER column
Key = BigInteger().with_variant(Integer, "sqlite")


_LONGEST = 7200.0  # seconds; nothing is deferred for longer


clock = time.time


def now() -> float:
    """Return the seconds since 1970, the form of every time in the database, from `clock`."""
    return clock()


class Table(DeclarativeBase): ...


def _partial_index(name: str, column: str, where: str) -> Index:
    """Return an index of the few rows that are queried, in a table where most rows are finished."""
    return Index(name, column, sqlite_where=text(where), postgresql_where=text(where))


class LeaseRow(Table):
    """A live worker.

    Its number is the fence: it is never reused, and each write of the worker checks it.

    `place` is the data folder that it works in; `beat` increases as long as the worker lives.
    """

    __tablename__ = "leases"
    __table_args__ = ({"sqlite_autoincrement": True},)
    number: Mapped[int] = mapped_column(Key, primary_key=True)
    place: Mapped[str] = mapped_column(String(64))
    host: Mapped[str] = mapped_column(String(255))
    since: Mapped[float]
    beat: Mapped[int] = mapped_column(BigInteger, default=0)


class TurnRow(Table):
    """A lock for what only one worker may do at a time.

    `lease` is its holder, and `data` is what the next holder needs to know.
    """

    __tablename__ = "turns"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    lease: Mapped[int | None] = mapped_column(BigInteger)
    data: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)


class RecordRow(Table):
    """A small value stored under a name."""

    __tablename__ = "records"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class InboxRow(Table):
    """A received event.

    Rows of one source with the same `ordering_key` are processed in order ("": in any order).
    `handled` is when it was processed; `error` is the reason why it never will be. `trace` connects
    it with the orders that follow from it.
    """

    __tablename__ = "inbox"
    __table_args__ = (
        UniqueConstraint("source", "delivery", name="uq_inbox_source_delivery"),
        _partial_index("ix_inbox_waiting", "id", "not_before IS NOT NULL"),
        _partial_index("ix_inbox_failed", "id", "error IS NOT NULL"),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    source: Mapped[str] = mapped_column(String(32))
    delivery: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(64))
    ordering_key: Mapped[str] = mapped_column(String(300), default="", server_default="")
    trace: Mapped[str] = mapped_column(String(32), default="", server_default="")
    body: Mapped[bytes] = mapped_column(LargeBinary)
    received: Mapped[float]
    handled: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)


class TaskRow(Table):
    """The task of one issue.

    `data` is the complete `osiris.core.task.Task`; the columns are what is queried.

    `lease` is that of the worker that ran the task last; the files of its runs are on that machine.
    """

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
    lease: Mapped[int | None] = mapped_column(BigInteger)
    created: Mapped[float]
    updated: Mapped[float] = mapped_column(index=True)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy declares it


class ConversationRow(Table):
    """A conversation outside of GitHub; `data` is its `osiris.core.conversation.Conversation`."""

    __tablename__ = "conversations"
    channel: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    updated: Mapped[float]


class OutboxRow(Table):
    """An order.

    `about` (an issue, a repository or a conversation) and `lane` determine what it waits for
    (`outbox_queries.py`); `lease` is the worker that performs it.

    Waiting: `not_before` is set. Over: `done` is set, with an `error` when it was refused. Parked:
    neither is set.
    """

    __tablename__ = "outbox"
    __table_args__ = (
        Index("ix_outbox_task", "task_id", "done"),
        _partial_index("ix_outbox_waiting", "id", "not_before IS NOT NULL"),
        _partial_index("ix_outbox_waiting_about", "about", "not_before IS NOT NULL"),
        _partial_index("ix_outbox_failed", "id", "error IS NOT NULL"),
    )
    id: Mapped[int] = mapped_column(Key, primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("tasks.id"))
    kind: Mapped[str] = mapped_column(String(32))
    about: Mapped[str] = mapped_column(String(300))
    trace: Mapped[str] = mapped_column(String(32), default="", server_default="")
    lane: Mapped[int]
    body: Mapped[dict[str, Any]] = mapped_column(Json)
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[float | None]
    lease: Mapped[int | None] = mapped_column(BigInteger)
    done: Mapped[float | None]
    error: Mapped[str | None] = mapped_column(Text)


class RunRow(Table):
    """One run of an agent on a task; `name` is unique and also names its session.

    `lease` is that of the worker that runs it, and the fence of its transcript; `place` is the data
    folder of its workspace; `kept` is the commit of its last checkpoint, taken after `kept_steps`
    messages.
    """

    __tablename__ = "runs"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), index=True)
    purpose: Mapped[str] = mapped_column(String(32))
    base: Mapped[str] = mapped_column(String(64))
    started: Mapped[float]
    seconds: Mapped[float] = mapped_column(default=0.0)
    ended: Mapped[float | None]
    outcome: Mapped[str | None] = mapped_column(String(32))
    lease: Mapped[int | None] = mapped_column(BigInteger)
    place: Mapped[str] = mapped_column(String(64), default="")
    kept: Mapped[str] = mapped_column(String(64), default="")
    kept_steps: Mapped[int] = mapped_column(default=0)


class StepRow(Table):
    """One message of a run's transcript; append-only."""

    __tablename__ = "steps"
    run: Mapped[str] = mapped_column(ForeignKey("runs.name"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    message: Mapped[dict[str, Any]] = mapped_column(Json)
    at: Mapped[float]


class JournalRow(Table):
    """An entry of the audit log: an event, a decision or an action.

    Append-only, hash-chained per task.
    """

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


def is_due(row: Any) -> ColumnElement[bool]:
    """Return whether the time of a waiting row has come, at the parameter `now`.

    Clocks can be set back, so a row that was never deferred is due whatever the clock shows, and so
    is one that is deferred for longer than is possible.
    """
    at: ColumnElement[Any] = bindparam("now")
    soon: ColumnElement[bool] = (
        (row.not_before <= at) | (row.attempts == 0) | (row.not_before > at + _LONGEST)
    )
    return and_(row.not_before.is_not(None), soon)
