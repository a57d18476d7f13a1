"""A worker's lease: it lives as long as it beats, and its number is the fence in each of its
writes.

No clock is compared between machines. A worker that sees the beat of another stand still for long
enough, by its own monotonic clock, strikes its lease out. From then on that number is nobody's:
what it held is free, and what it still tries to write fails in the transaction that would write it.
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
"""Seconds without a beat after which a worker counts as dead."""

INBOX = "inbox"
"""The turn to decide: one worker at a time, so that what was said first is decided first."""


def is_claimable(column: Any, mine: Any) -> ColumnElement[bool]:
    """Whether the worker `mine` may take what `column` holds: it is nobody's, its own, or a dead
    worker's."""
    return or_(column.is_(None), column == mine, column.not_in(select(LeaseRow.number)))


def held_by_another(column: Any, mine: Any) -> ColumnElement[bool]:
    """Whether `column` names another worker than `mine`, and a living one."""
    return and_(column != mine, column.in_(select(LeaseRow.number)))


class Lease:
    """The lease of the worker in the data folder `place`; `parse_number` is 0 while there is
    none."""

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
        self.interval = patience / 4  # seconds from beat to beat
        self.number = 0
        self._seen: dict[int, tuple[int, float]] = {}
        self._checked_at = self._renewed_at = 0.0
        self._callbacks: list[Callable[[], Awaitable[None]]] = []

    def on_heartbeat(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Let `duty` be done after each beat that the database took; it must not wait long, for the
        next beat waits."""
        self._callbacks.append(callback)

    async def acquire(self) -> None:
        """A new lease, with a new number; an older one from the same data folder was of a process
        that is gone."""
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
        """Say that this worker lives, and look whether the others do; True when one of them was
        struck out.

        Raises LeaseLost when this lease was struck out itself, and Unavailable when the database
        does not answer.
        """
        mine = update(LeaseRow).where(LeaseRow.number == self.number).values(beat=LeaseRow.beat + 1)
        at = self._clock()
        with translate_errors():
            async with self._engine.begin() as connection:
                if (await connection.execute(mine)).rowcount == 0:
                    raise LeaseLost(
                        "another worker took this one for dead and goes on with its work"
                    )
                rows = await connection.execute(select(LeaseRow.number, LeaseRow.beat))
                beats = {number: beat for number, beat in rows if number != self.number}
            self._renewed_at = at
            struck = any(
                [
                    await self._expire_silent(number, beats[number])
                    for number in self._find_silent(beats)
                ]
            )
        for duty in self._callbacks:
            await duty()
        return struck

    def _find_silent(self, beats: dict[int, int]) -> list[int]:
        """Whose beat stood still for all the time in which this worker looked."""
        at = self._clock()
        if at - self._checked_at > self._patience / 2:
            self._seen = {}  # we did not look for a while: nothing can be said about that time
        self._checked_at = at
        self._seen = {
            number: was if (was := self._seen.get(number, (-1, at)))[0] == beat else (beat, at)
            for number, beat in beats.items()
        }
        return [number for number, (_, since) in self._seen.items() if at - since > self._patience]

    async def _expire_silent(self, number: int, beat: int) -> bool:
        """Not while it is in the middle of a transaction, for which this worker's own beat must not
        wait."""
        silent = select(LeaseRow.number).where(LeaseRow.number == number, LeaseRow.beat == beat)
        async with self._engine.begin() as connection:
            struck = await connection.scalar(silent.with_for_update(skip_locked=True)) is not None
            if struck:
                await connection.execute(delete(LeaseRow).where(LeaseRow.number == number))
        if struck:
            log.warning(
                "worker %s has been silent for %.0f s: its work is free for others",
                number,
                self._patience,
            )
        return struck

    async def release(self) -> None:
        """Let go of everything at once: others may take it up."""
        number = self.number
        self.number = 0
        with translate_errors():
            async with self._engine.begin() as connection:
                await connection.execute(delete(LeaseRow).where(LeaseRow.number == number))

    def assert_fresh(self) -> None:
        """Raises LeaseLost when the last beat is so long ago that the lease may be over by now. It
        asks nobody."""
        if self._clock() - self._renewed_at > self._patience / 2:
            raise LeaseLost("this worker stood still, and may have been taken for dead")

    async def assert_held(self, session: AsyncSession) -> None:
        """Hold the lease for the rest of a transaction. Raises LeaseLost when it was struck out."""
        held = (
            select(LeaseRow.number).where(LeaseRow.number == self.number).with_for_update(read=True)
        )
        if await session.scalar(held) is None:
            raise LeaseLost("another worker took this one for dead and goes on with its work")

    async def assert_holds_lock(self, session: AsyncSession, name: str) -> None:
        """Hold a turn for the rest of a transaction. Raises LeaseLost when it is somebody else's by
        now."""
        turn = select(TurnRow.lease).where(TurnRow.name == name).with_for_update(read=True)
        if await session.scalar(turn) != self.number:
            raise LeaseLost("it is another worker's turn by now")
