"""The entry of the inbox. Rows that arrive together are committed together."""

import asyncio

from sqlalchemy.exc import SQLAlchemyError

from osiris.core.errors import Unavailable
from osiris.core.events import Event
from osiris.core.ports.channels import VerifiedDelivery
from osiris.core.ports.live import Wake
from osiris.queue import serialization
from osiris.queue.batch import Batch
from osiris.queue.inbox_rows import NewInboxRow, create_fact_row, create_trace
from osiris.queue.task_store import Store

WAITING = 2000
"""The maximum number of rows that wait for their commit."""

COMMIT_PATIENCE = 8.0
"""Seconds that a caller waits for the commit of its row; GitHub waits ten for the answer."""

_LONGEST_KEY = 300  # characters of an ordering key that the database keeps


class DatabaseInbox:
    """Implementation of `osiris.core.ports.storage.Inbox`. A caller returns only after the commit
    of its row.

    At most `most` rows wait for their commit; further callers get Unavailable at once and come
    again, and so does a caller whose row is not committed after `patience` seconds.
    """

    def __init__(
        self, store: Store, wake: Wake, *, most: int = WAITING, patience: float = COMMIT_PATIENCE
    ) -> None:
        self._wake = wake
        self._most = most
        self._patience = patience
        self._rows = Batch[NewInboxRow](store.receive_rows)

    def __len__(self) -> int:
        """Return the number of rows that wait for their commit."""
        return len(self._rows)

    async def wait_idle(self) -> None:
        """Wait for the current commit."""
        await self._rows.wait_idle()

    async def accept_delivery(
        self, source: str, delivery: VerifiedDelivery, ordering_key: str
    ) -> None:
        await self._add_row(
            NewInboxRow(
                source=source,
                delivery=delivery.id,
                kind=delivery.kind,
                body=delivery.body,
                ordering_key=serialization.replace_nul(ordering_key)[:_LONGEST_KEY],
                trace=create_trace(),
            )
        )

    async def accept_fact(self, key: str, event: Event) -> None:
        await self._add_row(create_fact_row(key, event))

    async def _add_row(self, row: NewInboxRow) -> None:
        if len(self._rows) >= self._most:
            raise Unavailable("too much comes at once; come again", retry_in=5.0)
        try:
            async with asyncio.timeout(self._patience):
                await self._rows.add(row)
        except SQLAlchemyError as error:
            raise Unavailable(
                f"the database did not take it: {type(error).__name__}", retry_in=5.0
            ) from None
        except TimeoutError:
            raise Unavailable(
                f"the database did not answer in {self._patience:.0f} s", retry_in=5.0
            ) from None
        self._wake.wake()
