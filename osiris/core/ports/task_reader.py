"""A port to read tasks, for those who show them: the console, web pages, other programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from osiris.core.events import IssueRef
from osiris.core.ports.models import Message
from osiris.core.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSummary:
    """A task in a list; times are seconds since 1970."""

    id: int
    task: Task
    updated: float
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A delivery or an order that was given up. `what` is its kind."""

    what: str
    id: str
    at: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingOrder:
    """An order that is not done yet.

    `until` is the time of its next attempt (None: it is parked), `why` is what it waits for ("":
    only for a worker), and `worker` is the worker that performs it ("": none).
    """

    what: str
    until: float | None
    why: str
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One entry of a task's audit log; `seq` increases."""

    seq: int
    at: float
    kind: str
    what: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One message of a run's transcript."""

    run: str
    seq: int
    at: float
    message: Message


class TaskReader(Protocol):
    """Queries about tasks; none of them changes anything."""

    async def list_tasks(self, limit: int = 50) -> Sequence[TaskSummary]:
        """Return the tasks that changed last, newest first."""

    async def find_task(self, id: int | IssueRef) -> TaskSummary | None:
        """Return a task by its id or by its issue."""

    async def list_failures(self, limit: int = 50) -> Sequence[Failure]:
        """Return the deliveries and orders that were given up, newest first."""

    async def list_waiting(self, task: int) -> Sequence[WaitingOrder]:
        """Return the orders of a task that are not done yet."""

    async def read_audit_log(self, task: int, after: int = 0) -> Sequence[AuditEntry]:
        """Return the audit log of a task, after entry `after`."""

    async def list_steps(self, task: int, after: float = 0.0) -> Sequence[Step]:
        """Return the messages of all runs of a task that are newer than the time `after`."""
