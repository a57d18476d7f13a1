"""Events while they happen: for people who watch, and to wake workers."""

from dataclasses import dataclass
from typing import Protocol

from osiris.core.ports.models import DeltaKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyDelta:
    """A piece of a reply that is under way: the reply that will be message `seq` of `run`."""

    run: str
    seq: int
    kind: DeltaKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntryAdded:
    """The journal of task number `task` has a new last line, number `seq`."""

    task: int
    seq: int


LiveEvent = ReplyDelta | AuditEntryAdded


class LiveEvents(Protocol):
    """Where news go as they come, for people who watch. What is lost here is in the database soon
    after."""

    def publish(self, event: LiveEvent) -> None: ...


class Wake(Protocol):
    """A hint that the database holds something due. Losing one costs time, never work."""

    def wake(self) -> None:
        """Tell every worker, on this machine and on others."""

    async def wait(self, timeout: float) -> None:
        """Return when woken, or after `timeout` seconds."""
