"""The wake within one process: nothing to install."""

import asyncio
import contextlib


class LocalWake:
    """`osiris.ports.Wake` over an asyncio event."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def wait(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout)
        self._event.clear()
