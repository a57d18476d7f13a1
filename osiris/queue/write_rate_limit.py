"""An `osiris.core.ports.storage.WriteLimiter`: limits on writes to GitHub, shared by all workers in
the database.

https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#about-secondary-rate-limits
"""

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from osiris.core.errors import Unavailable
from osiris.queue.database import build_insert, translate_errors
from osiris.queue.leases import Lease, is_claimable
from osiris.queue.tables import TurnRow, now

_WAIT = 5.0  # seconds that a write waits for its slot; otherwise its order is deferred
_ASK = 0.1  # seconds between two checks whether the other worker is done
_LONGEST = 3600.0  # seconds; no pause is longer
_CLOCK_SKEW = 60.0  # seconds by which the clocks of two machines may differ
_PAST = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteLimits:
    """GitHub's limits for an installation: seconds between two writes, and writes in a minute and
    in an hour."""

    pause: float = 1.0
    minute: int = 80
    hour: int = 500


def seconds_until_slot(sent: Sequence[float], at: float, limits: WriteLimits) -> float:
    """Return the seconds until one more write may be sent, after earlier ones at the times `sent`
    (in order)."""
    free = at
    if sent:
        free = max(free, sent[-1] + limits.pause)
    for many, seconds in ((limits.minute, 60.0), (limits.hour, 3600.0)):
        if len(sent) >= many:
            free = max(free, sent[-many] + seconds)
    return free - at


class DatabaseWriteLimiter:
    """A limiter that allows one write at a time through each account.

    With `limits` None, there is no limit on the rate (an Enterprise Server, or devhub).
    """

    def __init__(self, engine: AsyncEngine, lease: Lease, limits: WriteLimits | None) -> None:
        self._lease = lease
        self._limits = limits
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._new = build_insert(engine, TurnRow).on_conflict_do_nothing()
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._wanted = Counter[str]()  # by lock, the number of holders and waiters in this process
        # locks that this worker may hold in the database, needed or not
        self._held: set[str] = set()
        lease.on_heartbeat(self._release_held_locks)

    @contextlib.asynccontextmanager
    async def slot(self, account: str) -> AsyncIterator[None]:
        async with self._lock_locally(name := _lock_name(account)):
            if self._limits is None:
                await self.verify_lease()
                yield
                return
            self._held.add(name)  # before acquiring: a commit whose answer is lost acquires too
            wait = await self._reserve_slot(account, self._limits)
            try:
                if wait:
                    await asyncio.sleep(wait)
                    await self.verify_lease()
                yield
            finally:
                await self._release_lock(name)

    @contextlib.asynccontextmanager
    async def _lock_locally(self, name: str) -> AsyncIterator[None]:
        """Hold the lock `name` within this process."""
        self._wanted[name] += 1
        try:
            async with self._locks[name]:
                yield
        finally:
            self._wanted[name] -= 1

    def assert_may_write(self) -> None:
        self._lease.assert_fresh()

    async def verify_lease(self) -> None:
        """Raise LeaseLost when this worker may not write any more."""
        with translate_errors():
            async with self._write.begin() as session:
                await self._lease.assert_held(session)

    async def _reserve_slot(self, account: str, limits: WriteLimits) -> float:
        """Acquire the account's lock and record the write; return the seconds until it may be
        sent."""
        until = asyncio.get_running_loop().time() + _WAIT
        while (wait := await self._try_reserve(account, limits)) is None:
            if asyncio.get_running_loop().time() > until:
                raise Unavailable(f"another worker writes to {account}", retry_in=1.0)
            await asyncio.sleep(_ASK)
        return wait

    async def _try_reserve(self, account: str, limits: WriteLimits) -> float | None:
        """Return the seconds until the write may be sent; None when another worker holds the lock.

        Raises Unavailable when the wait would be long.
        """
        with translate_errors():
            async with self._write.begin() as session:
                await self._lease.assert_held(session)
                row = await self._load_row(session, account)
                if not await session.scalar(
                    select(TurnRow.name).where(TurnRow.name == row.name, self._is_claimable())
                ):
                    return None
                at = now()
                sent = _recent_writes(row.data, at)
                until = _pause_end(row.data, at)
                wait = max(seconds_until_slot(sent, at, limits), min(until - at, _LONGEST))
                if wait > _WAIT:
                    raise Unavailable(
                        f"GitHub's limits for writes let {account} write no more now", retry_in=wait
                    )
                row.lease = self._lease.number
                row.data = {"sent": [*sent, at + wait][-limits.hour :], "until": until}
                return float(wait)

    def _is_claimable(self) -> Any:
        return is_claimable(TurnRow.lease, self._lease.number)

    async def _load_row(self, session: AsyncSession, account: str) -> TurnRow:
        """Return the account's row, locked until the end of the transaction."""
        connection = await session.connection()
        await connection.execute(
            self._new, {"name": _lock_name(account), "lease": None, "data": {}}
        )
        return await session.get_one(TurnRow, _lock_name(account), with_for_update=True)

    async def _release_lock(self, name: str, *, waits: bool = True) -> None:
        """Release the lock. If the database does not answer, a later heartbeat releases it."""
        mine = select(TurnRow.name).where(TurnRow.name == name, TurnRow.lease == self._lease.number)
        given = (
            update(TurnRow)
            .where(TurnRow.name.in_(mine.with_for_update(nowait=not waits)))
            .values(lease=None)
        )
        with contextlib.suppress(Unavailable), translate_errors():
            async with self._write.begin() as session:
                await session.execute(given)
            self._held.discard(name)

    async def _release_held_locks(self) -> None:
        """Release the locks that could not be released at their end, except those that are in use
        here again, whose user releases them."""
        for name in list(self._held):
            if not self._wanted[name]:
                async with self._lock_locally(name):
                    await self._release_lock(name, waits=False)

    async def pause(self, account: str, seconds: float) -> None:
        if self._limits is None:
            return
        with translate_errors():
            async with self._write.begin() as session:
                row = await self._load_row(session, account)
                row.data = {**row.data, "until": now() + min(seconds, _LONGEST)}


def _lock_name(account: str) -> str:
    return f"writes/{account.lower()}"


def _recent_writes(data: dict[str, Any], at: float) -> list[float]:
    """Return the writes of the last hour.

    Those in the future were recorded by a clock that has been set back since.
    """
    return [when for when in data.get("sent", []) if at - _PAST < when <= at + _WAIT]


def _pause_end(data: dict[str, Any], at: float) -> float:
    """Return the end of the pause that GitHub asked for, or 0.

    One too far in the future was recorded by a clock that has been set back since.
    """
    until = float(data.get("until", 0.0))
    return until if until - at <= _LONGEST + _CLOCK_SKEW else 0.0
