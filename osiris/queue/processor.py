"""The two jobs of a worker: handling an inbox row and performing an order. Each job may run twice;
its work is done once."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.exc import SQLAlchemyError

from osiris.core.effects import ESSENTIAL, Effect, OpenIssue, Push, Report, StartRun
from osiris.core.errors import (
    LeaseLost,
    NeedsOperator,
    Occupied,
    Refused,
    RepositoryUnavailable,
    Unavailable,
)
from osiris.core.events import (
    AccessLost,
    Ask,
    Event,
    OrderParked,
    OrderRefused,
    RequestMade,
    RunHalted,
)
from osiris.core.policy import Policy
from osiris.core.task import Task
from osiris.queue import serialization
from osiris.queue.batch import Batch
from osiris.queue.inbox_rows import OWN
from osiris.queue.outbox import Outbox
from osiris.queue.tables import now
from osiris.queue.task_store import InboxItem, Store

ThreadKey = tuple[str, str]
"""A source, and the issue that a row is about, "" for none. Rows of one thread are processed in
order."""
PolicyOf = Callable[[str], Awaitable[Policy]]
EffectHandler = Callable[[Any, Task | None], Awaitable[Sequence[Event]]]
"""(order, its present task) -> the facts that result from performing it."""

log = logging.getLogger(__name__)

PAUSES = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds before the next attempt, by the number of attempts so far; the last value repeats."""
_BUG_ATTEMPTS = 3
TRIES = 40
"""Attempts during an outage before an order is given up: with the pauses above, slightly less than
three hours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Rules for repeating jobs. `pauses` are seconds by the number of tries so far, `tries` the
    maximum number of tries during an outage, `report_every` the seconds between two reports of one
    task; changes in between are combined into one report."""

    pauses: Sequence[float] = PAUSES
    tries: int = TRIES
    report_every: float = 0.0


class Interpreter(Protocol):
    """Interpreter of the deliveries of one source."""

    async def __call__(self, kind: str, body: bytes) -> Event | None:
        """Return the event behind a delivery; None when it does not concern Osiris. Raises Refused
        or Unavailable."""

    async def find_subject(self, kind: str, body: bytes) -> str:
        """Return the issue that a delivery is about, "" for none. Deliveries about one issue are
        interpreted in the order of their arrival."""


class Processor:
    """Handles due inbox rows and performs due orders. Only here are unexpected exceptions caught,
    because they must not end the worker."""

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        interpreters: Mapping[str, Interpreter],
        policy_of: PolicyOf,
        handlers: Mapping[type, EffectHandler],
        retry_policy: RetryPolicy,
    ) -> None:
        self._store = store
        self._outbox = outbox
        self._interpreters = interpreters
        self._policy_of = policy_of
        self._handlers = handlers
        self._pauses = retry_policy.pauses
        self._tries = retry_policy.tries
        self._report_every = retry_policy.report_every
        self._ignored = Batch[int](store.ignore_rows)
        self._deferred: dict[int, ThreadKey] = {}

    async def wait_idle(self) -> None:
        """Wait for work that continues outside the jobs."""
        await self._ignored.wait_idle()

    async def find_thread(self, row: InboxItem) -> ThreadKey:
        """Return the thread of a row. Rows of one thread are decided in order; a row that cannot be
        read belongs to no issue."""
        try:
            if row.source != OWN:
                return row.source, await self._interpreters[row.source].find_subject(
                    row.kind, row.body
                )
            fact = serialization.load(json.loads(row.body))
            return OWN, "" if isinstance(fact, RequestMade) else str(fact.issue)
        except (SQLAlchemyError, Unavailable):
            raise
        except Exception:  # handling it will fail in the same way, and counts the tries
            log.exception("a bug in reading %s (%s)", row.id, row.kind)
            return row.source, ""

    async def list_deferred(self, at: float) -> dict[ThreadKey, tuple[int, float]]:
        """Return the oldest row of each thread that is deferred beyond `at`, and its time (both
        seconds since 1970)."""
        later = await self._store.list_deferred(at)
        new = later.keys() - self._deferred.keys()
        for row in await self._store.load_items(new) if new else []:
            self._deferred[row.id] = await self.find_thread(row)
        self._deferred = {id: self._deferred[id] for id in later if id in self._deferred}
        return {thread: (id, later[id]) for id, thread in reversed(self._deferred.items())}

    async def handle_event(
        self,
        row: InboxItem,
        *,
        predecessors: Collection[asyncio.Task[float]] = (),
        not_before: float = 0.0,
    ) -> float:
        """Process one inbox row after its `predecessors`, the jobs of earlier rows of the same
        issue. Return 0.0, or the time when the row is due again.

        If a predecessor was deferred, or an earlier row without a job is deferred until
        `not_before`, this row is deferred as well. All requests to other services are made before
        the transaction.
        """
        for job in predecessors:
            not_before = max(not_before, await _await_job(job))
        if not_before:
            await self._store.defer_behind(row.id, not_before)
            return not_before
        return await self._decide_event(row)

    async def _decide_event(self, row: InboxItem) -> float:
        id = row.id
        try:
            if (event := await self._interpret_row(row)) is None:
                await self._ignored.add(id)
            else:
                await self._store.decide(id, event, await self._read_policy(event))
        except LeaseLost as fenced:
            log.warning("delivery %s is left: %s", id, fenced)
        except Refused as refused:
            log.warning("delivery %s (%s) cannot be handled: %s", id, row.kind, refused)
            await self._store.fail_inbox(id, str(refused))
        except Unavailable as outage:
            if row.attempts + 1 >= self._tries and row.source != OWN:
                await self._store.fail_inbox(id, f"{outage} (tried {row.attempts + 1} times)")
            else:
                return await self._store.postpone_inbox(
                    id, str(outage), self._next_pause(row.attempts, outage)
                )
        except Exception as bug:
            log.exception("a bug in handling %s (%s)", id, row.kind)
            if row.attempts + 1 >= _BUG_ATTEMPTS:
                await self._store.fail_inbox(id, _describe_bug(bug))
            else:
                return await self._store.postpone_inbox(
                    id, str(bug), self._next_pause(row.attempts)
                )
        return 0.0

    async def _interpret_row(self, row: InboxItem) -> Event | None:
        if row.source == OWN:
            fact: Event = serialization.load(json.loads(row.body))
            return fact
        return await self._interpreters[row.source](row.kind, row.body)

    async def _read_policy(self, event: Event) -> Policy:
        if isinstance(event, RequestMade):
            return Policy()
        try:
            return await self._policy_of(event.issue.repo)
        except Refused:
            if isinstance(event, Ask):
                raise
            # an event of Osiris is never lost because the policy cannot be read now
            return Policy()

    async def perform_effect(self, id: int) -> None:
        """Perform one order that this worker holds, unless a later one supersedes it."""
        try:
            found = await self._outbox.get(id)
        except (ValueError, KeyError) as error:
            log.error("order %s cannot be read and is given up: %s", id, error)
            await self._outbox.finish_order(id, error="it cannot be read")
            return
        if found is None:
            return
        order, task, attempts = found
        if isinstance(order, Report) and await self._is_redundant(id):
            return
        try:
            await self._outbox.finish_order(id, await self._handlers[type(order)](order, task))
        except LeaseLost as fenced:
            log.warning("%s is left: %s", type(order).__name__, fenced)
        except RepositoryUnavailable as unavailable:
            await self._suspend_task(id, order, str(unavailable))
        except NeedsOperator as refused:
            await self._park_order(id, order, str(refused))
        except Refused as refused:
            await self._refuse_order(id, order, str(refused))
        except Unavailable as outage:
            await self._retry_later(id, order, attempts, outage)
        except Exception as bug:
            log.exception("a bug in doing %s", type(order).__name__)
            if attempts + 1 >= _BUG_ATTEMPTS:
                await self._park_order(id, order, _describe_bug(bug))
            else:
                await self._outbox.postpone_order(
                    id, str(bug), self._next_pause(attempts), tries=attempts + 1
                )

    async def _is_redundant(self, id: int) -> bool:
        """Return whether a report is not needed (now): a later one waits, or the last one was made
        very recently."""
        if await self._outbox.is_superseded(id):
            await self._outbox.skip_order(id)
            return True
        remaining = (
            self._report_every and await self._outbox.last_done_at(id) + self._report_every - now()
        )
        if not 0 < remaining <= self._report_every:
            return False
        await self._outbox.postpone_order(
            id, "it waits, so that several changes become one edit", remaining, tries=1
        )
        return True

    async def _retry_later(
        self, id: int, order: Effect, attempts: int, outage: Unavailable
    ) -> None:
        """Defer an order after an outage. An order whose outage does not end is parked; waiting for
        other work of this machine has no limit."""
        log.warning("%s waits: %s", type(order).__name__, outage)
        tries = 1 if outage.made_progress else attempts + 1
        if isinstance(outage, Occupied):
            await self._outbox.postpone_order(id, str(outage), self._next_pause(0), tries=attempts)
        elif tries >= min(self._tries, outage.tries or self._tries):
            await self._park_order(id, order, f"{outage} (tried {tries} times)")
        else:
            pause = max(self._next_pause(tries - 1), outage.retry_in or 0.0)
            await self._outbox.postpone_order(id, str(outage), pause, tries=tries)

    async def _suspend_task(self, id: int, order: Effect, reason: str) -> None:
        """Halt the task until the repository can be written again; then its parked orders are
        requeued automatically."""
        if isinstance(order, OpenIssue):  # there is no task yet that could requeue it
            return await self._refuse_order(id, order, reason)
        log.warning(
            "%s waits until %s can be written: %s", type(order).__name__, order.issue.repo, reason
        )
        lost = [AccessLost(issue=order.issue, reason=reason)]
        if isinstance(order, StartRun):  # a new order starts it again
            await self._outbox.finish_order(id, lost)
        else:
            await self._outbox.park_order(id, reason, lost)

    async def _park_order(self, id: int, order: Effect, reason: str) -> None:
        """Park an order until a person acts. The person is informed once if the task depends on the
        order. A run keeps its progress."""
        log.warning("%s is parked: %s", type(order).__name__, reason)
        if isinstance(order, StartRun):
            await self._outbox.finish_order(
                id, [RunHalted(issue=order.issue, run=order.run, reason=reason)], error=reason
            )
        else:
            run = order.run if isinstance(order, Push) else None
            facts = (
                [OrderParked(issue=order.issue, reason=reason, run=run)]
                if isinstance(order, ESSENTIAL)
                else []
            )
            await self._outbox.park_order(id, reason, facts)

    async def _refuse_order(self, id: int, order: Effect, reason: str) -> None:
        log.warning("%s was refused: %s", type(order).__name__, reason)
        facts = (
            [OrderRefused(issue=order.issue, reason=reason)] if isinstance(order, ESSENTIAL) else []
        )
        await self._outbox.finish_order(id, facts, error=reason)

    def _next_pause(self, attempts: int, outage: Unavailable | None = None) -> float:
        if outage is not None and outage.retry_in is not None:
            return outage.retry_in
        return self._pauses[min(attempts, len(self._pauses) - 1)]


async def _await_job(job: asyncio.Task[float]) -> float:
    """Wait for a job. Return the time when its row is due again (seconds since 1970); 0.0 for
    never."""
    await asyncio.wait([job])
    if job.cancelled() or job.exception():
        return now()  # the outcome could not be recorded, so its row is unchanged
    return job.result()


def _describe_bug(error: Exception) -> str:
    """Return the public description of a bug. Its text may contain anything, so it stays in the
    operator's log."""
    return f"a bug in Osiris ({type(error).__name__}); the operator's log has the rest"
