"""The worker's loop: poll for due rows, start their jobs, sleep until woken.

It also finds what a crash left.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from osiris.core.errors import LeaseLost, Unavailable
from osiris.core.ports.live import Wake
from osiris.queue.event_processor import EventProcessor
from osiris.queue.leases import Lease
from osiris.queue.locks import InboxElection
from osiris.queue.order_processor import OrderProcessor
from osiris.queue.outbox import ClaimedOrder
from osiris.queue.outbox_queries import REACTIONS, REPORTS, RUNS, STOPS, WRITES
from osiris.queue.tables import now
from osiris.queue.task_store import Store, ThreadKey

T = TypeVar("T")

log = logging.getLogger(__name__)

_IDLE = 1.0  # seconds between two polls when nothing woke the worker
_HANDLES = 16
_RUSH_ROWS = 2  # this many new rows at once are a rush
# seconds left to the web server in a rush: answering requests comes first. What comes meanwhile is
# closed in one transaction, and each transaction less is one for whose end the web server waits
_RUSH_PAUSE = 0.03


class Worker:
    """A worker. It processes the inbox while it holds that lock, and performs the outbox.

    It runs up to `runs` agents at once, and one write to GitHub at a time per account, all of it
    under its lease.
    """

    def __init__(
        self,
        store: Store,
        events: EventProcessor,
        orders: OrderProcessor,
        wake: Wake,
        lease: Lease,
        election: InboxElection,
        *,
        runs: int,
    ) -> None:
        self._store = store
        self._events = events
        self._orders = orders
        self._wake = wake
        self._runs = runs
        self._lease = lease
        self._election = election
        self._handling: dict[int, tuple[ThreadKey, asyncio.Task[float]]] = {}
        self._performing: dict[ClaimedOrder, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Run until cancelled; then cancel the running jobs and release them to other workers."""
        await self._acquire_lease()
        heartbeat = asyncio.create_task(self._renew_lease())
        try:
            while True:
                if heartbeat.done():
                    await self._restart_with_new_lease(heartbeat)
                    heartbeat = asyncio.create_task(self._renew_lease())
                await self._wake.wait(await self._poll())
        finally:
            heartbeat.cancel()
            await self._cancel_jobs()
            await self._release_lease()

    async def _renew_lease(self) -> None:
        """Renew the lease until it is lost."""
        while True:
            await asyncio.sleep(self._lease.interval)
            try:
                if await self._lease.renew():
                    self._wake.wake()
            except LeaseLost as fenced:
                log.warning("%s; this worker restarts with a new lease", fenced)
                self._wake.wake()
                return
            except Unavailable as outage:
                log.error("the lease cannot be kept alive: %s", outage)

    async def _restart_with_new_lease(self, heartbeat: asyncio.Task[None]) -> None:
        heartbeat.result()
        await self._cancel_jobs()
        await self._acquire_lease()

    async def _acquire_lease(self) -> None:
        self._election.close_election()
        while True:
            try:
                await self._lease.acquire()
                break
            except SQLAlchemyError as error:
                log.error("the database does not answer: %s", type(error).__name__)
                await asyncio.sleep(_IDLE)
        self._election.open_election()

    async def _cancel_jobs(self) -> None:
        running = [*(job for _, job in self._handling.values()), *self._performing.values()]
        for job in running:
            job.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._events.wait_idle()

    async def _release_lease(self) -> None:
        try:
            await self._lease.release()
            self._wake.wake()
        except Unavailable as outage:
            log.warning(
                "the lease could not be released, so others wait until it expires: %s", outage
            )

    async def _poll(self) -> float:
        """Start what is due, and return the seconds until more is due."""
        try:
            is_decider = await self._election.is_decider()
            rush = is_decider and await self._start_handling() >= _RUSH_ROWS
            await self._start_orders()
            if rush:
                await asyncio.sleep(_RUSH_PAUSE)
            if self._handling or self._performing:
                return _IDLE  # the first job to end wakes us
            at = await self._store.next_due()
        except LeaseLost:
            return self._lease.interval  # the next heartbeat restarts the worker
        except (SQLAlchemyError, Unavailable) as error:
            log.error("the database does not answer: %s", type(error).__name__)
            return _IDLE
        except Exception:
            log.exception("a bug in polling for work")  # it must not end the worker
            return _IDLE
        if at is None:
            return _IDLE
        return max(0.01, min(_IDLE, at - now()))

    async def _start_handling(self) -> int:
        """Start processing the due rows, as far as there is room; return how many were started.

        Issues are processed concurrently, but the rows of one issue in the order in which they
        came, even when the first had to be deferred: a stop must not overtake the label that it
        follows.
        """
        # one time for both queries, so that no row is missing from both results
        room = _HANDLES - len(self._handling)
        at = now()
        # copied before the queries: a job that ends meanwhile still returns its row's next time
        queue = dict(self._handling)
        rows = await self._store.list_due(room, list(queue), at) if room else []
        deferred = await self._store.list_deferred(at) if rows else {}
        for row in rows:
            first, later = deferred.get(row.thread, (row.id, 0.0))
            before = [job for other, job in queue.values() if other == row.thread]
            handling = self._events.handle_event(
                row,
                predecessors=before if row.ordering_key else [],
                not_before=later if first < row.id and row.ordering_key else 0.0,
            )
            job = self._start_job(handling, partial(self._handling.pop, row.id))
            queue[row.id] = self._handling[row.id] = row.thread, job
        return len(rows)

    async def _start_orders(self) -> None:
        """Claim and start due orders, each kind separately, so that many waiting runs do not hide a
        write that could be done."""
        wanted = (
            ((STOPS,), 50),
            ((REACTIONS, REPORTS), 10),
            ((WRITES,), 10),
            ((RUNS,), self._runs),
        )
        running = [order.id for order in self._performing]
        due_lanes = await self._orders.list_due_lanes(running)
        for lanes, most in wanted:
            room = most - sum(order.lane in lanes for order in self._performing)
            if room > 0 and not due_lanes.isdisjoint(lanes):
                await self._claim_orders(room, lanes)

    async def _claim_orders(self, room: int, lanes: tuple[int, ...]) -> None:
        running = [order.id for order in self._performing]
        for order in await self._orders.claim_orders(room, lanes, running):
            performing = self._orders.perform_order(order.id)
            self._performing[order] = self._start_job(
                performing, partial(self._performing.pop, order)
            )

    def _start_job(
        self, work: Coroutine[Any, Any, T], forget: Callable[[], object]
    ) -> asyncio.Task[T]:
        job = asyncio.create_task(work)
        job.add_done_callback(lambda done: self._finish_job(done, forget))
        return job

    def _finish_job(self, job: asyncio.Task[Any], forget: Callable[[], object]) -> None:
        forget()
        self._wake.wake()
        _log_failure(job)


def _log_failure(job: asyncio.Task[Any]) -> None:
    if not job.cancelled() and (error := job.exception()):
        log.error("a job could not be recorded: %s: %s", type(error).__name__, error)
