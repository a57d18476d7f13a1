"""What the database keeps: inbox, transcripts, tasks, and what was seen of GitHub."""

from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from osiris.core.events import Event, IssueRef
from osiris.core.ports.models import Message
from osiris.core.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A run's files, put away off this machine: `commit` holds them as they were after `steps`
    messages."""

    commit: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumedRun:
    """A run that this worker goes on with.

    `base` is the commit it stands on (the first one given), `seconds` its active time so far;
    `here` says whether this machine was the last to work on it, so that its workspace is what it
    was.
    """

    base: str
    seconds: float
    here: bool
    checkpoint: Checkpoint | None


class Transcripts(Protocol):
    """The append-only record of runs, in the database. Only who began a run last may add to it:
    else it is LeaseLost."""

    async def begin_run(self, run: str, issue: IssueRef, purpose: str, base: str) -> ResumedRun:
        """Take a run over, and note its begin if it is new."""

    async def load_messages(self, run: str) -> list[Message]: ...

    async def append(self, run: str, seq: int, message: Message, seconds: float) -> None:
        """Store message number `seq` (from 0), add `seconds` to the run's active time, and
        commit.

        Storing the same number again changes nothing.
        """

    async def record_checkpoint(self, run: str, checkpoint: Checkpoint) -> None:
        """Note where a run's files were put away."""

    async def end_run(self, run: str, outcome: str) -> None:
        """Note a run's end. Anybody may: a run that is stopped need not be under way."""


class Inbox(Protocol):
    async def accept_delivery(self, source: str, delivery: str, kind: str, body: bytes) -> None:
        """Store what happened, commit, wake a worker. The same (source, delivery) again changes
        nothing.

        Raises Unavailable when the database did not take it.
        """

    async def accept_fact(self, key: str, event: Event) -> None:
        """Accept a fact of our own, known by `key`."""


class Tasks(Protocol):
    """The tasks, to look at."""

    async def get(self, issue: IssueRef) -> Task | None: ...

    async def find_task_by_pull(self, repo: str, pull: int) -> Task | None: ...


@dataclass(frozen=True, slots=True)
class MetricSample:
    """Something counted, for who watches over Osiris; `label` and `value` say of which."""

    name: str
    count: float
    label: str = ""
    value: str = ""


class ReconcileState(Protocol):
    """What the database knows, for who compares it with GitHub."""

    async def open_tasks(self) -> Sequence[tuple[Task, float]]:
        """Every task that has not ended, and when it was made (seconds since 1970)."""

    async def unseen_deliveries(self, source: str, deliveries: Collection[str]) -> set[str]:
        """Those of some deliveries of a source that never came into the inbox."""

    async def get_value(self, name: str) -> str:
        """What was remembered under a name; "" when nothing was."""

    async def set_value(self, name: str, value: str) -> None: ...

    async def rename_repository(self, old: str, new: str) -> None:
        """A repository has another name from now on, in all that is known of it."""


class WriteLimiter(Protocol):
    """Leave to write to GitHub: through each account one at a time, and no faster than GitHub
    allows."""

    def slot(self, account: str) -> AbstractAsyncContextManager[None]:
        """Wait for leave to send one write through the installation of `account`; the block is the
        sending.

        Raises Unavailable when the wait would be long (`retry_in` says how long), and LeaseLost
        when this worker no longer holds its lease: then nothing may be sent.
        """

    def assert_may_write(self) -> None:
        """The last look before a write is sent. Raises LeaseLost when this worker may have been
        taken for dead."""

    async def pause(self, account: str, seconds: float) -> None:
        """GitHub asked for a pause: no worker gets leave to write through `account` for so many
        seconds."""
