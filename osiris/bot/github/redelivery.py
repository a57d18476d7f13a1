"""The redelivery of missed webhooks: deliveries that GitHub has on record and the inbox never
received are requested again."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from osiris.bot.github.app_auth import AppAuth, DeliveryAttempt
from osiris.config.app_manifest import READ_EVENTS
from osiris.core.errors import Refused
from osiris.core.ports.storage import ReconcileState

log = logging.getLogger(__name__)

_MARK = "github/deliveries"
_KEPT = 3 * 86400.0  # seconds; GitHub does not redeliver anything older
_OVERLAP = 600.0  # seconds that are read again: GitHub records a delivery in progress late
_AT_ONCE = 100  # redeliveries requested in one pass
# maximum seconds to wait for the redeliveries before the comparison reports the same events
_ARRIVAL_TIMEOUT = 5.0
_LOOK = 0.1  # seconds between two checks for their arrival
_MOST = 5  # attempts per delivery; more would not help
_UNDER_WAY = 60.0  # seconds that an attempt may be in progress


class MissedDeliveries:
    """The deliveries that GitHub sent and the inbox never received."""

    def __init__(self, auth: AppAuth, state: ReconcileState, clock: Callable[[], float]) -> None:
        self.has_backlog = False
        """True when more deliveries were missing than are requested at once."""
        self._auth = auth
        self._state = state
        self._clock = clock
        self._tracker = RedeliveryTracker()

    async def request_again(self) -> list[str]:
        """Request the deliveries of the last three days that the inbox never received, oldest
        first. Return the guids of the requested ones.

        A stored mark avoids reading settled deliveries each time. While there is none yet, only
        deliveries that no server accepted are requested: a new database need not receive what an
        older one has received.
        """
        now = self._clock()
        mark = float(await self._state.get_value(_MARK) or 0)
        self._tracker.record_attempts(await self._list_attempts(max(now - _KEPT, mark - _OVERLAP)))
        missing = await self._state.unseen_deliveries("github", self._tracker.list_guids())
        wanted = self._tracker.select_attempts(missing if mark else set(), now)
        self.has_backlog = len(wanted) > _AT_ONCE
        asked = [
            attempt.guid
            for attempt in wanted[:_AT_ONCE]
            if await self._request_delivery(attempt, now)
        ]
        if (settled := self._tracker.settled_until()) > mark:
            await self._state.set_value(_MARK, str(settled))
        return asked

    async def wait_until_received(self, guids: Sequence[str]) -> None:
        """Wait until these deliveries have arrived, for at most a few seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _ARRIVAL_TIMEOUT
        while loop.time() < until:
            if not await self._state.unseen_deliveries("github", guids):
                return
            await asyncio.sleep(_LOOK)

    async def _list_attempts(self, since: float) -> list[DeliveryAttempt]:
        found, cursor = await self._auth.list_attempts()
        while cursor and found and found[-1].at >= since:
            more, cursor = await self._auth.list_attempts(cursor)
            found += more
        return [
            attempt for attempt in found if attempt.at >= since and attempt.event in READ_EVENTS
        ]

    async def _request_delivery(self, attempt: DeliveryAttempt, now: float) -> bool:
        """Request one redelivery. Return whether GitHub will send it again."""
        try:
            await self._auth.request_redelivery(attempt.id)
            self._tracker.mark_requested(attempt.guid, now)
        except Refused as refused:
            self._tracker.give_up(attempt.guid)
            log.warning(
                "GitHub will not redeliver %s (%s): %s", attempt.guid, attempt.event, refused
            )
            return False
        return True


class RedeliveryTracker:
    """The recorded attempts by delivery guid, and the redeliveries requested by this process."""

    def __init__(self) -> None:
        self._attempts: dict[str, list[DeliveryAttempt]] = {}
        self._requested: dict[str, tuple[float, int]] = {}  # time, attempts so far
        self._hopeless: set[str] = set()
        self._waiting: set[str] = set()

    def record_attempts(self, attempts: Iterable[DeliveryAttempt]) -> None:
        """Replace the recorded attempts by those GitHub has on record, in any order."""
        by_guid = defaultdict(list)
        for attempt in sorted(attempts, key=lambda one: (one.at, one.id)):
            by_guid[attempt.guid].append(attempt)
        self._attempts = dict(by_guid)
        self._requested = {
            guid: asked for guid, asked in self._requested.items() if guid in by_guid
        }
        self._hopeless &= by_guid.keys()

    def list_guids(self) -> Collection[str]:
        return self._attempts.keys()

    def select_attempts(self, missing: Collection[str], now: float) -> list[DeliveryAttempt]:
        """Return one attempt of each delivery to send again, the oldest delivery first.

        These are the deliveries that no server accepted, or that are `missing` although one did;
        except those in progress, and those that were sent often enough.
        """
        lacking = {
            guid: attempts
            for guid, attempts in self._attempts.items()
            if guid in missing or not any(attempt.is_accepted for attempt in attempts)
        }
        self._waiting = {
            guid
            for guid, attempts in lacking.items()
            if len(attempts) < _MOST and guid not in self._hopeless
        }
        return [
            lacking[guid][-1]
            for guid in lacking
            if guid in self._waiting and not self._is_under_way(guid, now)
        ]

    def _is_under_way(self, guid: str, now: float) -> bool:
        """Return whether an attempt may be in progress: GitHub may not know its outcome yet, or may
        not have recorded it since the request."""
        (*_, last) = self._attempts[guid]
        (asked, before) = self._requested.get(guid, (0.0, 0))
        begun = last.at if last.code == 0 else asked if len(self._attempts[guid]) <= before else 0.0
        return now < begun + _UNDER_WAY

    def mark_requested(self, guid: str, now: float) -> None:
        self._requested[guid] = (now, len(self._attempts[guid]))

    def give_up(self, guid: str) -> None:
        self._hopeless.add(guid)

    def settled_until(self) -> float:
        """Return the time (seconds since 1970) up to which nothing must be sent again; 0.0 when
        nothing is known."""
        open = [self._attempts[guid][0].at for guid in self._waiting - self._hopeless]
        return min(
            open,
            default=max((attempts[-1].at for attempts in self._attempts.values()), default=0.0),
        )
