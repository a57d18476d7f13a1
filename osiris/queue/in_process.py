"""What connects the parts within one process: nothing to install."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from osiris.core.ports.live import LiveEvent
from osiris.core.ports.sandbox import Probe


class LocalWake:
    """`osiris.core.ports.live.Wake` over an asyncio event."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    @contextlib.asynccontextmanager
    async def open_connection(self, name: str = "") -> AsyncIterator[None]:
        yield

    async def probe_connection(self) -> Probe | None:
        """There is nothing that could be missing."""
        return None

    async def wait(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()
        self._event.clear()


class LocalLiveEvents:
    """`osiris.core.ports.live.LiveEvents` for those who watch in this process. Who reads too slowly
    loses the oldest pieces."""

    _MOST = 10_000  # pieces that wait for one reader

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
        """A queue that gets every piece from now on, until the block ends."""
        reader: asyncio.Queue[LiveEvent] = asyncio.Queue(self._MOST)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)
