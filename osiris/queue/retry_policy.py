"""Rules for repeating jobs, shared by the processors of events and of orders."""

from collections.abc import Sequence
from dataclasses import dataclass

from osiris.core.errors import Unavailable

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds before the next attempt, by the number of attempts so far; the last value repeats."""
BUG_ATTEMPTS = 3
"""Attempts of a job that fails with an unexpected exception."""
TRIES = 40
"""Attempts during an outage before an order is given up: with the pauses above, slightly less than
three hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Rules for repeating jobs. `pauses` are seconds by the number of tries so far, `tries` the
    maximum number of tries during an outage, `report_every` the seconds between two reports of one
    task; changes in between are combined into one report."""

    pauses: Sequence[float] = PAUSES
    tries: int = TRIES
    report_every: float = 0.0

    def next_pause(self, attempts: int, outage: Unavailable | None = None) -> float:
        """Return the seconds before the next attempt, after `attempts` others."""
        if outage is not None and outage.retry_in is not None:
            return outage.retry_in
        return self.pauses[min(attempts, len(self.pauses) - 1)]


def describe_bug(error: Exception) -> str:
    """Return the public description of a bug. Its text may contain anything, so it stays in the
    operator's log."""
    return f"a bug in Osiris ({type(error).__name__}); the operator's log has the rest"
