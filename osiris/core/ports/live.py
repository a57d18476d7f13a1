"""Ports for live events, and for waking workers."""

from dataclasses import dataclass
from typing import Protocol

from osiris.core.ports.models import DeltaKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyDelta:
    """A piece of the reply that will be message `seq` of `run`."""

    run: str
    seq: int
    kind: DeltaKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntryAdded:
    """A new entry, number `seq`, in the audit log of task number `task`."""

    task: int
    seq: int


LiveEvent = ReplyDelta | AuditEntryAdded


class LiveEvents(Protocol):
    """Events for people who watch, as they happen. What is lost here can be read from the database
    soon after."""

    def publish(self, event: LiveEvent) -> None: ...


class Wake(Protocol):
    """A hint that the database holds a due row. A lost hint costs time, never work."""

    def wake(self) -> None:
        """Wake every worker, on this machine and on others."""

    async def wait(self, timeout: float) -> None:
        """Return when woken, or after `timeout` seconds."""
