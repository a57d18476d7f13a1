"""The lease of a worker: it is valid as long as its heartbeat is renewed, and its number fences
each write.

Clocks of different machines are never compared. A worker that sees another's heartbeat unchanged
for long enough, by its own monotonic clock, expires that lease. From then on the number belongs to
no worker: what it held is free, and a write under it fails in its own transaction.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from osiris.core.errors import LeaseLost
from osiris.queue.database import translate_errors
from osiris.queue.tables import LeaseRow, TurnRow, now

log = logging.getLogger(__name__)

PATIENCE = 12.0
"""Seconds without a heartbeat after which a worker counts as dead."""

INBOX = "inbox"
"""The lock for processing the inbox: one worker at a time, so that events are decided in order."""


def is_claimable(column: Any, mine: Any) -> ColumnElement[bool]:
    """Return whether the worker `mine` may take what `column` holds: it has no holder, or its
    holder is `mine` or a dead worker."""
    return or_(column.is_(None), column == mine, column.not_in(select(LeaseRow.number)))


def held_by_another(column: Any, mine: Any) -> ColumnElement[bool]:
    """Return whether `column` names a worker that is alive and is not `mine`."""
    return and_(column != mine, column.in_(select(LeaseRow.number)))


class Lease:
    """The lease of the worker in the data folder `place`; `number` is 0 while it has none."""

    def __init__(
        self,
        engine: AsyncEngine,
        place: str,
        *,
        patience: float = PATIENCE,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._engine = engine
        self.place = place
        self._patience = patience
        self._clock = clock
        self.interval = patience / 4  # seconds between two heartbeats
        self.number = 0
        self._seen: dict[int, tuple[int, float]] = {}
        self._checked_at = self._renewed_at = 0.0
        self._callbacks: list[Callable[[], Awaitable[None]]] = []

    def on_heartbeat(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Call `callback` after each heartbeat that the database accepted.

        It must not take long, because the next heartbeat waits for it.
        """
        self._callbacks.append(callback)

    async def acquire(self) -> None:
        """Acquire a new lease with a new number.

        An older one from the same data folder belonged to a process that is gone.
        """
        host = f"{socket.gethostname()}:{os.getpid()}"[:255]
        async with self._engine.begin() as connection:
            await connection.execute(delete(LeaseRow).where(LeaseRow.place == self.place))
            made = await connection.execute(
                insert(LeaseRow)
                .values(place=self.place, host=host, since=now(), beat=0)
                .returning(LeaseRow.number)
            )
            self.number = made.scalar_one()
        self._seen = {}
        self._checked_at = self._clock()
        self._renewed_at = self._clock()

    async def renew(self) -> bool:
        """Renew the heartbeat and check those of the other workers; return True when one of them
        was expired.

        Raises LeaseLost when this lease was expired itself, and Unavailable when the database does
        not answer.
        """
        mine = update(LeaseRow).where(LeaseRow.number == self.number).values(beat=LeaseRow.beat + 1)
        at = self._clock()
        with translate_errors():
            async with self._engine.begin() as connection:
                if (await connection.execute(mine)).rowcount == 0:
                    raise LeaseLost("another worker took this one for dead and continues its work")
                rows = await connection.execute(select(LeaseRow.number, LeaseRow.beat))
                beats = {number: beat for number, beat in rows if number != self.number}
            self._renewed_at = at
            expired = any(
                [
                    await self._expire_silent(number, beats[number])
                    for number in self._find_silent(beats)
                ]
            )
        for callback in self._callbacks:
            await callback()
        return expired

    def _find_silent(self, beats: dict[int, int]) -> list[int]:
        """Return the leases whose heartbeat did not change for the whole time in which this worker
        watched."""
        at = self._clock()
        if at - self._checked_at > self._patience / 2:
            self._seen = {}  # we did not look for a while, so nothing is known about that time
        self._checked_at = at
        self._seen = {
            number: was if (was := self._seen.get(number, (-1, at)))[0] == beat else (beat, at)
            for number, beat in beats.items()
        }
        return [number for number, (_, since) in self._seen.items() if at - since > self._patience]

    async def _expire_silent(self, number: int, beat: int) -> bool:
        """Expire a lease, unless its worker is in the middle of a transaction, which this worker's
        own heartbeat must not wait for."""
        silent = select(LeaseRow.number).where(LeaseRow.number == number, LeaseRow.beat == beat)
        async with self._engine.begin() as connection:
            expired = await connection.scalar(silent.with_for_update(skip_locked=True)) is not None
            if expired:
                await connection.execute(delete(LeaseRow).where(LeaseRow.number == number))
        if expired:
            log.warning(
                "worker %s has been silent for %.0f s: its work is free for others",
                number,
                self._patience,
            )
        return expired

    async def release(self) -> None:
        """Release everything at once, so that other workers can continue."""
        number = self.number
        self.number = 0
        with translate_errors():
            async with self._engine.begin() as connection:
                await connection.execute(delete(LeaseRow).where(LeaseRow.number == number))

    def assert_fresh(self) -> None:
        """Raise LeaseLost when the last heartbeat is so long ago that the lease may have expired.

        The database is not queried.
        """
        if self._clock() - self._renewed_at > self._patience / 2:
            raise LeaseLost("this worker stood still, and may have been taken for dead")

    async def assert_held(self, session: AsyncSession) -> None:
        """Lock the lease for the rest of a transaction. Raises LeaseLost when it has expired."""
        held = (
            select(LeaseRow.number).where(LeaseRow.number == self.number).with_for_update(read=True)
        )
        if await session.scalar(held) is None:
            raise LeaseLost("another worker took this one for dead and continues its work")

    async def assert_holds_lock(self, session: AsyncSession, name: str) -> None:
        """Keep a named lock for the rest of a transaction.

        Raises LeaseLost when another worker has it by now.
        """
        holder = select(TurnRow.lease).where(TurnRow.name == name).with_for_update(read=True)
        if await session.scalar(holder) != self.number:
            raise LeaseLost("another worker holds this lock by now")
