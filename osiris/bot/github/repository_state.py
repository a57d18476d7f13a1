"""The state of one repository between two comparisons with GitHub."""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

from osiris.bot.github.api_models import TouchedItems, parse_time

_BLUR = 2.0  # seconds: GitHub's times are whole seconds, so a recent item may be touched again
_BEFORE = 60.0  # seconds before the first read that the first read covers
_WHOLE = 3600.0  # seconds between two comparisons of all tasks of a repository
_MANY = 100  # maximum rows of one list


@dataclass(slots=True)
class RepositoryState:
    """A repository as it was last read.

    `seen` maps the issues that were touched after `since` to the times of their changes; `etag` is
    the etag of that list. `pending_issues` are the issues whose tasks could not be read;
    `checked_at` is the time when all tasks were read, in seconds since 1970.
    """

    since: str = ""
    etag: str = ""
    seen: dict[int, str] = field(default_factory=dict)
    pending_issues: set[int] = field(default_factory=set)
    checked_at: float = 0.0

    @classmethod
    def create_at(cls, now: float) -> "RepositoryState":
        """Return the state of a repository that is read for the first time; `now` is GitHub's
        time."""
        return cls(since=_format_time(now - _BEFORE))

    def is_due(self, now: float) -> bool:
        """Return whether all tasks must be compared."""
        return now >= self.checked_at + _WHOLE

    def mark_due(self) -> None:
        self.checked_at = 0.0

    def find_changes(self, touched: TouchedItems) -> set[int]:
        """Return the numbers that were touched since the last comparison, and those still
        pending."""
        return self.pending_issues.union(
            number for number, at in touched.rows.items() if self.seen.get(number) != at
        )

    def record_touched(
        self, touched: TouchedItems, *, pending: set[int], checked_at: float = 0.0
    ) -> None:
        """Record the touched items, the issues still pending, and the time of a complete check
        (0.0: none).

        Issues that were touched in the last seconds count as not seen, because GitHub's times are
        whole seconds. When the list is too long, all of it counts as not seen.
        """
        self.pending_issues = pending
        self.checked_at = checked_at or self.checked_at
        if touched.is_unchanged:
            return
        self.seen = {
            number: at for number, at in touched.rows.items() if parse_time(at) < touched.at - _BLUR
        }
        self.etag = touched.etag if len(self.seen) == len(touched.rows) else ""
        if len(touched.rows) > _MANY:
            self.since = _format_time(touched.at - _BEFORE)
            self.etag = ""


def _format_time(at: float) -> str:
    """Return a time in GitHub's notation."""
    return datetime.fromtimestamp(math.floor(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
