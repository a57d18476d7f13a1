"""The session and the reviews that the tools of one run work on."""

from collections.abc import Sequence
from dataclasses import dataclass

from osiris.core.ports.sandbox import Session
from osiris.core.review import Review


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The session of a run, and the reviews that it answers."""

    session: Session
    reviews: Sequence[Review] = ()
