"""The worker's loop: look for due rows, start their jobs, sleep until woken. It finds whatever a crash left."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from osiris.core.errors import Fenced, Unavailable
from osiris.core.ports.live import Wake
from osiris.queue.leases import INBOX, Lease
from osiris.queue.locks import Turns
from osiris.queue.outbox import Due, Orders
from osiris.queue.outbox_queries import REACTIONS, REPORTS, RUNS, STOPS, WRITES
from osiris.queue.processor import Jobs, Thread
from osiris.queue.tables import now
from osiris.queue.task_store import Store

T = TypeVar("T")

log = logging.getLogger(__name__)

_IDLE = 1.0  # seconds between two looks when nothing woke us
_HANDLES = 16
_CROWD = 8  # so many new rows at once are a rush
_BREATH = 0.02  # seconds we leave to the web side in a rush: answering comes first, working later


class Worker:
    """Handles the inbox while it is its turn, and performs the outbox: `runs` agents at once, and one write to GitHub
    at a time per account. All that it does it does under its lease."""

    def __init__(
        self, store: Store, orders: Orders, jobs: Jobs, wake: Wake, lease: Lease, turns: Turns, *, runs: int
    ) -> None:
        self._store, self._orders, self._jobs, self._wake, self._runs = store, orders, jobs, wake, runs
        self._lease, self._turns = lease, turns
        self._handling: dict[int, tuple[Thread, asyncio.Task[float]]] = {}
        self._performing: dict[Due, asyncio.Task[None]] = {}
        self._decides, self._asked, self._leased = False, 0.0, asyncio.Event()

    async def decides(self) -> bool:
        """Whether this worker is the one that decides; asked before it has its lease, the answer waits for that."""
        await self._leased.wait()
        return await self._may_decide()

    async def work(self) -> None:
        """Go on until cancelled; then cut off the jobs that are under way, and let others have them."""
        await self._take_lease()
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                if beating.done():
                    await self._start_over(beating)
                    beating = asyncio.create_task(self._beat())
                await self._wake.wait(await self._look())
        finally:
            beating.cancel()
            await self._cut_off()
            await self._give_back()

    async def _beat(self) -> None:
        """Keep the lease alive; ends when it is lost."""
        while True:
            await asyncio.sleep(self._lease.rhythm)
            try:
                if await self._lease.beat():
                    self._wake.wake()
            except Fenced as fenced:
                log.warning("%s; this worker begins again with a new lease", fenced)
                self._wake.wake()
                return
            except Unavailable as outage:
                log.error("the lease cannot be kept alive: %s", outage)

    async def _start_over(self, beating: asyncio.Task[None]) -> None:
        beating.result()
        await self._cut_off()
        await self._take_lease()

    async def _take_lease(self) -> None:
        self._decides, self._asked = False, 0.0
        self._leased.clear()
        while not self._leased.is_set():
            try:
                await self._lease.take()
                self._leased.set()
            except SQLAlchemyError as error:
                log.error("the database does not answer: %s", type(error).__name__)
                await asyncio.sleep(_IDLE)

    async def _cut_off(self) -> None:
        under_way = [*(job for _, job in self._handling.values()), *self._performing.values()]
        for job in under_way:
            job.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._jobs.rest()

    async def _give_back(self) -> None:
        try:
            await self._lease.give_back()
            self._wake.wake()
        except Unavailable as outage:
            log.warning("the lease could not be given back, so others wait until it is over: %s", outage)

    async def _look(self) -> float:
        """Start what is due; returns how long nothing more will be, in seconds."""
        try:
            rush = await self._may_decide() and await self._start_handles() >= _CROWD
            await self._start_orders()
            if rush:
                await asyncio.sleep(_BREATH)
            if self._handling or self._performing:
                return _IDLE  # whatever ends first wakes us
            at = await self._store.next_due()
        except Fenced:
            return self._lease.rhythm  # the next beat tells what to do
        except (SQLAlchemyError, Unavailable) as error:
            log.error("the database does not answer: %s", type(error).__name__)
            return _IDLE
        except Exception:
            log.exception("a bug in looking for work")  # the worker must not end of it
            return _IDLE
        if at is None:
            return _IDLE
        return max(0.01, min(_IDLE, at - now()))

    async def _may_decide(self) -> bool:
        """Whether it is our turn to decide; it stays so until the lease is over."""
        if not self._decides and time.monotonic() >= self._asked + _IDLE:
            self._decides, self._asked = await self._turns.take(INBOX), time.monotonic()
        return self._decides

    async def _start_handles(self) -> int:
        """Start deciding what is due, as far as there is room; how many were started.

        Issues go on side by side, but what was said first about one is looked up and decided first, also when it had to
        be put off: a stop must not overtake the label it follows.
        """
        room, at = _HANDLES - len(self._handling), now()  # one time for both questions: no row is in neither answer
        queue = dict(self._handling)  # before the questions: who ends meanwhile still tells whether its row was put off
        rows = await self._store.inbox_due(room, list(queue), at) if room else []
        put_off = await self._jobs.put_off(at) if rows else {}
        for row in rows:
            thread = await self._jobs.thread(row)
            first, later = put_off.get(thread, (row.id, 0.0))
            before = [job for other, job in queue.values() if other == thread and thread[1]]
            handling = self._jobs.handle(row, after=before, behind=later if first < row.id and thread[1] else 0.0)
            job = self._job(handling, partial(self._handling.pop, row.id))
            queue[row.id] = self._handling[row.id] = thread, job
        return len(rows)

    async def _start_orders(self) -> None:
        """Take and start what is due, each kind by itself: many waiting runs must hide no write that could be done."""
        wanted = (((STOPS,), 50), ((REACTIONS, REPORTS), 10), ((WRITES,), 10), ((RUNS,), self._runs))
        for lanes, most in wanted:
            room = most - sum(due.lane in lanes for due in self._performing)
            under_way = [due.id for due in self._performing]
            for due in await self._orders.claim(room, lanes, under_way) if room > 0 else []:
                self._performing[due] = self._job(self._jobs.perform(due.id), partial(self._performing.pop, due))

    def _job(self, work: Coroutine[Any, Any, T], forget: Callable[[], object]) -> asyncio.Task[T]:
        job = asyncio.create_task(work)
        job.add_done_callback(lambda done: self._ended(done, forget))
        return job

    def _ended(self, job: asyncio.Task[Any], forget: Callable[[], object]) -> None:
        forget()
        self._wake.wake()
        _complain(job)


def _complain(job: asyncio.Task[Any]) -> None:
    if not job.cancelled() and (error := job.exception()):
        log.error("a job could not be recorded: %s: %s", type(error).__name__, error)
