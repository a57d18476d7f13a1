"""Ports to the database: inbox, transcripts, tasks, the reconciler's state, and write limits."""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from osiris.core.events import Event, IssueRef
from osiris.core.ports.channels import VerifiedDelivery
from osiris.core.ports.models import Message
from osiris.core.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The saved files of a run: `commit` holds them as they were after `steps` messages."""

    commit: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedRun:
    """A run that this worker begins or resumes.

    `base` is the commit that it started from (the first one given), `seconds` its active time so
    far. `here` is True when this machine ran it last, so that its workspace is up to date.
    """

    base: str
    seconds: float
    here: bool
    checkpoint: Checkpoint | None


class Transcripts(Protocol):
    """The append-only messages of runs. Only the worker that began or resumed a run last may add to
    it; any other gets LeaseLost."""

    async def begin_run(self, run: str, issue: IssueRef, purpose: str, base: str) -> ResumedRun:
        """Begin or resume a run; record its begin if it is new."""

    async def load_messages(self, run: str) -> list[Message]: ...

    async def append(self, run: str, seq: int, message: Message, seconds: float) -> None:
        """Store message number `seq` (from 0), add `seconds` to the run's active time, and commit.

        Storing the same number again changes nothing.
        """

    async def record_checkpoint(self, run: str, checkpoint: Checkpoint) -> None:
        """Record the checkpoint of a run that was saved last."""

    async def end_run(self, run: str, outcome: str) -> None:
        """Record the end of a run. Any worker may do so: a stopped run need not be active."""


class Inbox(Protocol):
    async def accept_delivery(
        self, source: str, delivery: VerifiedDelivery, ordering_key: str
    ) -> None:
        """Store a delivery of a channel, commit, and wake a worker. The same (source, id) again
        changes nothing.

        Raises Unavailable when the database does not take it.
        """

    async def accept_fact(self, key: str, event: Event) -> None:
        """Store an event that Osiris itself reports, known by `key`."""


class Tasks(Protocol):
    """Read access to tasks."""

    async def get(self, issue: IssueRef) -> Task | None: ...

    async def find_task_by_pull(self, repo: str, pull: int) -> Task | None: ...


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One sample of a metric; `label` and `value` are its label, if it has one."""

    name: str
    count: float
    label: str = ""
    value: str = ""


class ReconcileState(Protocol):
    """The memory of the reconciler, and the tasks that it compares with GitHub."""

    async def open_tasks(self) -> Sequence[tuple[Task, float]]:
        """Return every task that has not ended, with its creation time (seconds since 1970)."""

    async def unseen_deliveries(self, source: str, deliveries: Collection[str]) -> set[str]:
        """Return those of `deliveries` that never came into the inbox from a source."""

    async def get_value(self, name: str) -> str:
        """Return the value of a name; "" when it has none."""

    async def set_value(self, name: str, value: str) -> None: ...

    async def rename_repository(self, old: str, new: str) -> None:
        """Replace the name of a repository in everything that is stored."""


class WriteLimiter(Protocol):
    """Permission to write to GitHub: one write at a time through each account, and no faster than
    GitHub allows."""

    def slot(self, account: str) -> AbstractAsyncContextManager[None]:
        """Wait for permission to send one write through the installation of `account`; the block
        sends it.

        Raises Unavailable when the wait would be long (`retry_in` is its length in seconds), and
        LeaseLost when this worker no longer holds its lease: then nothing may be sent.
        """

    def assert_may_write(self) -> None:
        """Raise LeaseLost when this worker's lease may have expired. It is called last before a
        write."""

    async def pause(self, account: str, seconds: float) -> None:
        """Let no worker write through `account` for `seconds`, as GitHub asked."""
