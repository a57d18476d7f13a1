"""The job of a worker that handles an inbox row. It may run twice; its work is done once."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping

from osiris.core.errors import LeaseLost, Refused, Unavailable
from osiris.core.events import Ask, Event, TaskEvent
from osiris.core.policy import Policy
from osiris.core.ports.channels import Channel, VerifiedDelivery
from osiris.core.ports.telemetry import Telemetry, current_trace
from osiris.queue import serialization
from osiris.queue.batch import Batch
from osiris.queue.inbox_rows import OWN
from osiris.queue.retry_policy import BUG_ATTEMPTS, RetryPolicy, describe_bug
from osiris.queue.tables import now
from osiris.queue.task_store import InboxItem, Store

PolicyOf = Callable[[str], Awaitable[Policy]]

log = logging.getLogger(__name__)


class EventProcessor:
    """Handles due inbox rows. Unexpected exceptions are caught here, because they must not end the
    worker."""

    def __init__(
        self,
        store: Store,
        channels: Mapping[str, Channel],
        policy_of: PolicyOf,
        retry_policy: RetryPolicy,
        telemetry: Telemetry,
    ) -> None:
        self._store = store
        self._channels = channels
        self._policy_of = policy_of
        self._retry_policy = retry_policy
        self._telemetry = telemetry
        self._ignored = Batch[int](store.ignore_rows)

    async def wait_idle(self) -> None:
        """Wait for work that continues outside the jobs."""
        await self._ignored.wait_idle()

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
        current_trace.set(row.trace)  # of this job alone: each job is a task of its own
        with self._telemetry.start_span(
            "handle event", row.trace, source=row.source, kind=row.kind
        ):
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
            if row.attempts + 1 >= self._retry_policy.tries and row.source != OWN:
                await self._store.fail_inbox(id, f"{outage} (tried {row.attempts + 1} times)")
            else:
                return await self._store.postpone_inbox(
                    id, str(outage), self._retry_policy.next_pause(row.attempts, outage)
                )
        except Exception as bug:
            log.exception("a bug in handling %s (%s)", id, row.kind)
            if row.attempts + 1 >= BUG_ATTEMPTS:
                await self._store.fail_inbox(id, describe_bug(bug))
            else:
                return await self._store.postpone_inbox(
                    id, str(bug), self._retry_policy.next_pause(row.attempts)
                )
        return 0.0

    async def _interpret_row(self, row: InboxItem) -> Event | None:
        if row.source == OWN:
            fact: Event = serialization.load(json.loads(row.body))
            return fact
        channel = self._channels.get(row.source)
        if channel is None:
            raise Refused(f"the channel {row.source} is not configured any more")
        return await channel.interpret(
            VerifiedDelivery(id=row.delivery, kind=row.kind, body=row.body)
        )

    async def _read_policy(self, event: Event) -> Policy:
        if not isinstance(event, TaskEvent):
            return Policy()
        try:
            return await self._policy_of(event.issue.repo)
        except Refused:
            if isinstance(event, Ask):
                raise
            # an event of Osiris is never lost because the policy cannot be read now
            return Policy()


async def _await_job(job: asyncio.Task[float]) -> float:
    """Wait for a job. Return the time when its row is due again (seconds since 1970); 0.0 for
    never."""
    await asyncio.wait([job])
    if job.cancelled() or job.exception():
        return now()  # the outcome could not be recorded, so its row is unchanged
    return job.result()
