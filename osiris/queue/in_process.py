"""Wake-ups and live events within one process, without any service to install."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from osiris.core.ports.live import LiveEvent
from osiris.core.ports.sandbox import Probe


class LocalWake:
    """An `osiris.core.ports.live.Wake` over an asyncio event."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    @contextlib.asynccontextmanager
    async def open_connection(self, name: str = "") -> AsyncIterator[None]:
        yield

    async def probe_connection(self) -> Probe | None:
        """Return None: there is nothing that could be missing."""
        return None

    async def wait(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()
        self._event.clear()


class LocalLiveEvents:
    """An `osiris.core.ports.live.LiveEvents` for readers in this process.

    A reader that is too slow loses the oldest events.
    """

    _MOST = 10_000  # events that wait for one reader

    def __init__(self) -> None:
        self._readers: list[asyncio.Queue[LiveEvent]] = []

    @contextlib.asynccontextmanager
    async def open_connection(self) -> AsyncIterator[None]:
        yield

    def publish(self, event: LiveEvent) -> None:
        for reader in self._readers:
            if reader.full():
                reader.get_nowait()
            reader.put_nowait(event)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[LiveEvent]]:
        """Return a queue that receives every event from now on, until the block ends."""
        reader: asyncio.Queue[LiveEvent] = asyncio.Queue(self._MOST)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)
