"""The job of a worker that performs an order. It may run twice; its work is done once."""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from osiris.core.effects import ESSENTIAL, Effect, OpenIssue, Order, Push, Report, StartRun
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
    Event,
    OrderParked,
    OrderRefused,
    RequestRefused,
    RunHalted,
)
from osiris.core.ports.telemetry import Telemetry, current_trace
from osiris.core.task import Task
from osiris.queue.outbox import ClaimedOrder, LoadedOrder, Outbox
from osiris.queue.retry_policy import BUG_ATTEMPTS, RetryPolicy, describe_bug
from osiris.queue.tables import now

EffectHandler = Callable[[Any, Task | None], Awaitable[Sequence[Event]]]
"""(order, its present task) -> the facts that result from performing it."""

log = logging.getLogger(__name__)


class OrderProcessor:
    """Performs due orders. Unexpected exceptions are caught here, because they must not end the
    worker."""

    def __init__(
        self,
        outbox: Outbox,
        handlers: Mapping[type, EffectHandler],
        retry_policy: RetryPolicy,
        telemetry: Telemetry,
    ) -> None:
        self._outbox = outbox
        self._handlers = handlers
        self._retry_policy = retry_policy
        self._telemetry = telemetry

    async def list_due_lanes(self, without: Collection[int]) -> set[int]:
        """Return the lanes that have a due order beside those in `without`."""
        return await self._outbox.list_due_lanes(without)

    async def claim_orders(
        self, limit: int, lanes: tuple[int, ...], without: Collection[int]
    ) -> list[ClaimedOrder]:
        """Claim up to `limit` due orders of the given lanes for this worker, except those in
        `without`."""
        return await self._outbox.claim_orders(limit, lanes, without)

    async def perform_order(self, id: int) -> None:
        """Perform one order that this worker holds, unless a later one supersedes it."""
        try:
            found = await self._outbox.get(id)
        except (ValueError, KeyError) as error:
            log.error("order %s cannot be read and is given up: %s", id, error)
            await self._outbox.finish_order(id, error="it cannot be read")
            return
        if found is None or (isinstance(found.order, Report) and await self._is_redundant(id)):
            return
        current_trace.set(found.trace)  # of this job alone: each job is a task of its own
        with self._telemetry.start_span("perform order", found.trace, kind=_get_kind(found.order)):
            await self._perform_order(id, found)

    async def _perform_order(self, id: int, found: LoadedOrder) -> None:
        order = found.order
        try:
            facts = await self._handlers[type(order)](order, found.task)
            await self._outbox.finish_order(id, facts)
            attempts = found.attempts + 1
            self._telemetry.record_value("attempts of an order", attempts, kind=_get_kind(order))
        except LeaseLost as fenced:
            log.warning("%s is left: %s", _get_kind(order), fenced)
        except RepositoryUnavailable as unavailable:
            await self._suspend_task(id, order, str(unavailable))
        except NeedsOperator as refused:
            await self._park_order(id, order, str(refused))
        except Refused as refused:
            await self._refuse_order(id, order, str(refused))
        except Unavailable as outage:
            await self._retry_later(id, order, found.attempts, outage)
        except Exception as bug:
            log.exception("a bug in doing %s", _get_kind(order))
            await self._retry_after_bug(id, order, found.attempts, bug)

    async def _retry_after_bug(self, id: int, order: Effect, attempts: int, bug: Exception) -> None:
        if attempts + 1 >= BUG_ATTEMPTS:
            await self._park_order(id, order, describe_bug(bug))
        else:
            pause = self._retry_policy.next_pause(attempts)
            await self._outbox.postpone_order(id, str(bug), pause, tries=attempts + 1)

    async def _is_redundant(self, id: int) -> bool:
        """Return whether a report is not needed (now): a later one waits, or the last one was made
        very recently."""
        if await self._outbox.is_superseded(id):
            await self._outbox.skip_order(id)
            return True
        every = self._retry_policy.report_every
        remaining = every and await self._outbox.last_done_at(id) + every - now()
        if not 0 < remaining <= every:
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
        log.warning("%s waits: %s", _get_kind(order), outage)
        policy = self._retry_policy
        tries = 1 if outage.made_progress else attempts + 1
        if isinstance(outage, Occupied):
            pause = policy.next_pause(0)
            await self._outbox.postpone_order(id, str(outage), pause, tries=attempts)
        elif tries >= min(policy.tries, outage.tries or policy.tries):
            await self._park_order(id, order, f"{outage} (tried {tries} times)")
        else:
            pause = max(policy.next_pause(tries - 1), outage.retry_in or 0.0)
            await self._outbox.postpone_order(id, str(outage), pause, tries=tries)

    async def _suspend_task(self, id: int, order: Effect, reason: str) -> None:
        """Halt the task until the repository can be written again; then its parked orders are
        requeued automatically."""
        if not isinstance(order, Order):  # there is no task that could requeue it
            return await self._refuse_order(id, order, reason)
        log.warning(
            "%s waits until %s can be written: %s", _get_kind(order), order.issue.repo, reason
        )
        lost = [AccessLost(issue=order.issue, reason=reason)]
        if isinstance(order, StartRun):  # a new order starts it again
            await self._outbox.finish_order(id, lost)
        else:
            await self._outbox.park_order(id, reason, lost)

    async def _park_order(self, id: int, order: Effect, reason: str) -> None:
        """Park an order until a person acts. The person is informed once if the task depends on the
        order. A run keeps its progress."""
        if not isinstance(order, Order):  # there is no task that could requeue it
            return await self._refuse_order(id, order, reason)
        log.warning("%s is parked: %s", _get_kind(order), reason)
        if isinstance(order, StartRun):
            halted = RunHalted(issue=order.issue, run=order.run, reason=reason)
            await self._outbox.finish_order(id, [halted], error=reason)
            return
        facts = []
        if isinstance(order, ESSENTIAL):
            run = order.run if isinstance(order, Push) else None
            facts.append(OrderParked(issue=order.issue, reason=reason, run=run))
        await self._outbox.park_order(id, reason, facts)

    async def _refuse_order(self, id: int, order: Effect, reason: str) -> None:
        log.warning("%s was refused: %s", _get_kind(order), reason)
        self._telemetry.add_count("refused orders", kind=_get_kind(order))
        facts: list[Event] = []
        if isinstance(order, ESSENTIAL):
            facts.append(OrderRefused(issue=order.issue, reason=reason))
        if isinstance(order, OpenIssue) and order.address:
            facts.append(RequestRefused(address=order.address, key=order.key, reason=reason))
        await self._outbox.finish_order(id, facts, error=reason)


def _get_kind(order: Effect) -> str:
    return type(order).__name__
