"""What is remembered between two looks at GitHub: which deliveries never came in, and what was seen
of a repository."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from osiris.bot.github.api_models import TouchedItems, parse_time
from osiris.bot.github.app_auth import DeliveryAttempt

_MOST = 5  # sendings of one delivery: more would not help
_UNDER_WAY = 60.0  # seconds that a sending may be on its way
_BLUR = 2.0  # seconds: GitHub's times are whole, so in the last ones something may be touched again
_BEFORE = 60.0  # seconds before a first look that are looked at again
_WHOLE = 3600.0  # seconds between two looks at all tasks of a repository
_MANY = 100  # rows that are enough for one list


class RedeliveryTracker:
    """The deliveries of one look, by their guid, and what was done about them in this life."""

    def __init__(self) -> None:
        self._attempts: dict[str, list[DeliveryAttempt]] = {}
        self._requested: dict[str, tuple[float, int]] = {}  # when, and how many sendings there were
        self._hopeless: set[str] = set()
        self._waiting: set[str] = set()

    def record_attempts(self, attempts: Iterable[DeliveryAttempt]) -> None:
        """What GitHub has on record, in any order."""
        of = defaultdict(list)
        for attempt in sorted(attempts, key=lambda one: (one.at, one.id)):
            of[attempt.guid].append(attempt)
        self._attempts = dict(of)
        self._requested = {guid: asked for guid, asked in self._requested.items() if guid in of}
        self._hopeless &= of.keys()

    def list_guids(self) -> Collection[str]:
        return self._attempts.keys()

    def select_attempts(self, missing: Collection[str], now: float) -> list[DeliveryAttempt]:
        """One sending of each delivery that is to be sent again, the oldest delivery first.

        That is one that nobody took, or that is `missing` although somebody took it; but not one
        that is on its way, and none that was sent often enough.
        """
        lacking = {
            guid: of
            for guid, of in self._attempts.items()
            if guid in missing or not any(one.is_accepted for one in of)
        }
        self._waiting = {
            guid for guid, of in lacking.items() if len(of) < _MOST and guid not in self._hopeless
        }
        return [
            lacking[guid][-1]
            for guid in lacking
            if guid in self._waiting and not self._is_under_way(guid, now)
        ]

    def _is_under_way(self, guid: str, now: float) -> bool:
        """GitHub may not know its outcome yet, or not even have it on record since it was asked for
        it."""
        (*_, last) = self._attempts[guid]
        (asked, before) = self._requested.get(guid, (0.0, 0))
        begun = last.at if last.code == 0 else asked if len(self._attempts[guid]) <= before else 0.0
        return now < begun + _UNDER_WAY

    def mark_requested(self, guid: str, now: float) -> None:
        self._requested[guid] = (now, len(self._attempts[guid]))

    def give_up(self, guid: str) -> None:
        self._hopeless.add(guid)

    def settled_until(self) -> float:
        """Until when (seconds since 1970) nothing is to be sent again; 0.0 when nothing is
        known."""
        open = [self._attempts[guid][0].at for guid in self._waiting - self._hopeless]
        return min(open, default=max((of[-1].at for of in self._attempts.values()), default=0.0))


@dataclass(slots=True)
class RepositoryState:
    """A repository as it was seen last: what was touched `since` then, and the `etag` of that list.

    `owed` are issues whose tasks could not be looked at; `checked_at` is when all were, in seconds
    since 1970.
    """

    since: str = ""
    etag: str = ""
    seen: dict[int, str] = field(default_factory=dict)
    pending_issues: set[int] = field(default_factory=set)
    checked_at: float = 0.0

    @classmethod
    def create_at(cls, now: float) -> "RepositoryState":
        """A repository that is looked at for the first time; `now` by GitHub's clock."""
        return cls(since=_format_time(now - _BEFORE))

    def is_due(self, now: float) -> bool:
        """Whether all tasks are to be looked at."""
        return now >= self.checked_at + _WHOLE

    def mark_due(self) -> None:
        self.checked_at = 0.0

    def find_changes(self, touched: TouchedItems) -> set[int]:
        """The numbers that were touched since the last look, and those that are owed."""
        return self.pending_issues.union(
            number for number, at in touched.rows.items() if self.seen.get(number) != at
        )

    def record_touched(self, touched: TouchedItems, *, owed: set[int], looked: float = 0.0) -> None:
        """Remember what was seen; what was touched just now counts as not seen, and so does all of
        a list too long."""
        self.pending_issues = owed
        self.checked_at = looked or self.checked_at
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
    """A moment as GitHub writes it."""
    return datetime.fromtimestamp(math.floor(at), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
