"""The door of the inbox: rows that arrive together are committed together."""

from sqlalchemy.exc import SQLAlchemyError

from osiris.errors import Unavailable
from osiris.events import Event
from osiris.ports import Wake
from osiris.queue.batch import Batch
from osiris.queue.store import Received, Store, own_row


class Intake:
    """`osiris.ports.Inbox`. A caller is answered after the commit that holds its row, never before."""

    def __init__(self, store: Store, wake: Wake) -> None:
        self._wake = wake
        self._rows = Batch[Received](store.receive)

    async def accept(self, source: str, delivery: str, kind: str, body: bytes) -> None:
        await self._take(Received(source, delivery, kind, body))

    async def note(self, key: str, event: Event) -> None:
        await self._take(own_row(key, event))

    async def _take(self, row: Received) -> None:
        try:
            await self._rows.add(row)
        except SQLAlchemyError as error:
            raise Unavailable(f"the database did not take it: {type(error).__name__}") from None
        self._wake.wake()
