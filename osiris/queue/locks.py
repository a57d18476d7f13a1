"""Named locks for what only one worker may do at a time."""

import asyncio
import time

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from osiris.queue.database import as_read_only, build_insert, translate_errors
from osiris.queue.leases import INBOX, Lease, held_by_another, is_claimable
from osiris.queue.tables import TurnRow


class NamedLocks:
    """Locks in the table `turns`.

    Each is held by one lease, and is free again when that lease is over.
    """

    def __init__(self, engine: AsyncEngine, lease: Lease) -> None:
        self._lease = lease
        self._read = async_sessionmaker(as_read_only(engine))
        self._write = async_sessionmaker(engine, expire_on_commit=False)
        self._new = build_insert(engine, TurnRow)

    async def acquire(self, name: str) -> bool:
        """Return whether this worker holds the lock from now on.

        Raises LeaseLost or Unavailable.
        """
        with translate_errors():
            if await self._is_held_elsewhere(name):
                return False
            async with self._write.begin() as session:
                await self._lease.assert_held(session)
                taken = self._new.on_conflict_do_update(
                    index_elements=["name"],
                    set_={"lease": self._new.excluded.lease},
                    where=is_claimable(TurnRow.lease, self._lease.number),
                ).returning(TurnRow.name)
                values = {"name": name, "lease": self._lease.number, "data": {}}
                return (await session.execute(taken, values)).scalar_one_or_none() is not None

    async def _is_held_elsewhere(self, name: str) -> bool:
        held = select(TurnRow.name).where(
            TurnRow.name == name, held_by_another(TurnRow.lease, self._lease.number)
        )
        async with self._read() as session:
            return await session.scalar(held) is not None

    async def release(self, name: str) -> None:
        """Release the lock, so that another worker can acquire it."""
        mine = update(TurnRow).where(TurnRow.name == name, TurnRow.lease == self._lease.number)
        with translate_errors():
            async with self._write.begin() as session:
                await session.execute(mine.values(lease=None))


_ASK = 1.0  # seconds between two tries to become the decider


class InboxElection:
    """The election of the decider, the one worker that processes the inbox.

    A worker that is elected keeps the lock until its lease is over.
    """

    def __init__(self, locks: NamedLocks) -> None:
        self._locks = locks
        self._is_decider = False
        self._asked_at = 0.0
        self._is_open = asyncio.Event()

    def close_election(self) -> None:
        """Forget the result: this worker has no lease."""
        self._is_open.clear()
        self._is_decider = False
        self._asked_at = 0.0

    def open_election(self) -> None:
        """Let the worker take part: it has a lease."""
        self._is_open.set()

    async def is_decider(self) -> bool:
        """Return whether this worker processes the inbox; before it has a lease, wait for it.

        Raises LeaseLost or Unavailable.
        """
        await self._is_open.wait()
        if not self._is_decider and time.monotonic() >= self._asked_at + _ASK:
            self._is_decider = await self._locks.acquire(INBOX)
            self._asked_at = time.monotonic()
        return self._is_decider
