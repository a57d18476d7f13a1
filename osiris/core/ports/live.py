"""Events while they happen: for people who watch, and to wake workers."""

from dataclasses import dataclass
from typing import Protocol

from osiris.core.ports.models import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a reply that is under way: the reply that will be message `seq` of `run`."""

    run: str
    seq: int
    kind: Kind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """The journal of task number `task` has a new last line, number `seq`."""

    task: int
    seq: int


News = Delta | Noted


class Journal(Protocol):
    """Where news go as they come, for people who watch. What is lost here is in the database soon after."""

    def hear(self, news: News) -> None: ...


class Wake(Protocol):
    """A hint that the database holds something due. Losing one costs time, never work."""

    def wake(self) -> None:
        """Tell every worker, on this machine and on others."""

    async def wait(self, timeout: float) -> None:
        """Return when woken, or after `timeout` seconds."""
