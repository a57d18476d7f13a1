"""The worker's loop: look for due rows, start their jobs, sleep until woken. It finds whatever a crash left."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from osiris.ports import Wake
from osiris.queue.jobs import Jobs
from osiris.queue.store import REACTIONS, RUNS, STOPS, WRITES, Due, Store

log = logging.getLogger(__name__)

_IDLE = 1.0  # seconds between two looks when nothing woke us
_HANDLES = 16
_CROWD = 8  # so many new rows at once are a rush
_BREATH = 0.02  # seconds we leave to the web side in a rush: answering comes first, working later


class Worker:
    """Handles the inbox and performs the outbox: `runs` agents at once, writes one at a time per account."""

    def __init__(self, store: Store, jobs: Jobs, wake: Wake, *, runs: int) -> None:
        self._store, self._jobs, self._wake, self._runs = store, jobs, wake, runs
        self._handling: dict[int, tuple[str, asyncio.Task[None]]] = {}
        self._performing: dict[Due, asyncio.Task[None]] = {}

    async def work(self) -> None:
        """Go on until cancelled; then cut off the jobs that are under way: their rows are still due."""
        try:
            while True:
                await self._wake.wait(await self._look())
        finally:
            under_way = [*(job for _, job in self._handling.values()), *self._performing.values()]
            for job in under_way:
                job.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _look(self) -> float:
        """Start what is due; returns how long nothing more will be, in seconds."""
        try:
            rush = await self._start_handles() >= _CROWD
            await self._start_orders()
            if rush:
                await asyncio.sleep(_BREATH)
            if self._handling or self._performing:
                return _IDLE  # whatever ends first wakes us
            at = await self._store.next_due()
        except SQLAlchemyError as error:
            log.error("the database does not answer: %s", type(error).__name__)
            return _IDLE
        except Exception:
            log.exception("a bug in looking for work")  # the worker must not end of it
            return _IDLE
        if at is None:
            return _IDLE
        return max(0.01, min(_IDLE, at - time.time()))

    async def _start_handles(self) -> int:
        """Start deciding what is due, as far as there is room; how many were started.

        Look-ups go on side by side, but what one source said first is decided first: a stop must not overtake the
        label it follows.
        """
        room = _HANDLES - len(self._handling)
        rows = await self._store.inbox_due(room, without=list(self._handling)) if room else []
        for row in rows:
            before = [job for source, job in self._handling.values() if source == row.source]
            job = self._job(self._jobs.handle(row, after=before), partial(self._handling.pop, row.id))
            self._handling[row.id] = row.source, job
        return len(rows)

    async def _start_orders(self) -> None:
        """Start what is due, each kind by itself: many runs that wait must not hide a write that could be done."""
        under_way = [due.id for due in self._performing]
        room = self._runs - sum(due.lane == RUNS for due in self._performing)
        wanted = [((STOPS, REACTIONS), 200), ((WRITES,), 200), *([((RUNS,), room)] if room > 0 else [])]
        dues = [due for lanes, most in wanted for due in await self._store.orders_due(most, lanes, under_way)]
        for due in dues:
            if self._has_room(due):
                self._performing[due] = self._job(self._jobs.perform(due.id), partial(self._performing.pop, due))

    def _has_room(self, due: Due) -> bool:
        """Writes and reactions go one at a time through each account."""
        if due.lane in (RUNS, STOPS):
            return True
        return all((other.lane, other.owner) != (due.lane, due.owner) for other in self._performing)

    def _job(self, work: Coroutine[Any, Any, None], forget: Callable[[], object]) -> asyncio.Task[None]:
        job = asyncio.create_task(work)
        job.add_done_callback(lambda done: self._ended(done, forget))
        return job

    def _ended(self, job: asyncio.Task[None], forget: Callable[[], object]) -> None:
        forget()
        self._wake.wake()
        _complain(job)


def _complain(job: asyncio.Task[None]) -> None:
    if not job.cancelled() and (error := job.exception()):
        log.error("a job could not be recorded: %s: %s", type(error).__name__, error)
