"""The door of the inbox: rows that arrive together are committed together."""

import asyncio

from sqlalchemy.exc import SQLAlchemyError

from osiris.errors import Unavailable
from osiris.events import Event
from osiris.ports import Wake
from osiris.queue.store import Store, own_row

_BATCH = 200

Row = tuple[str, str, str, bytes]


class Intake:
    """`osiris.ports.Inbox`. A caller is answered after the commit that holds its row, never before."""

    def __init__(self, store: Store, wake: Wake) -> None:
        self._store, self._wake = store, wake
        self._pending: list[tuple[Row, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def accept(self, source: str, delivery: str, kind: str, body: bytes) -> None:
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append(((source, delivery, kind, body), stored))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await stored
        self._wake.wake()

    async def note(self, key: str, event: Event) -> None:
        row = own_row(key, event)
        await self.accept(row.source, row.delivery, row.kind, row.body)

    async def _write(self) -> None:
        while self._pending:
            batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
            try:
                await self._store.receive([row for row, _ in batch])
            except SQLAlchemyError as error:
                _answer(batch, Unavailable(f"the database did not take it: {type(error).__name__}"))
            else:
                _answer(batch, None)


def _answer(batch: list[tuple[Row, asyncio.Future[None]]], error: Unavailable | None) -> None:
    for _, stored in batch:
        if stored.done():  # its caller has gone
            continue
        if error is None:
            stored.set_result(None)
        else:
            stored.set_exception(error)
