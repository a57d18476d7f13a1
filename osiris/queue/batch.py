"""Batch processing: items that arrive together are processed together, and each caller returns when
its own item is done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

_MOST = 200
_REST = 5.0  # seconds


class Batch(Generic[Item]):
    """Collects items while the previous batch is processed. No caller waits for a timer, and
    batches grow with the load."""

    def __init__(self, process: Callable[[list[Item]], Awaitable[None]]) -> None:
        self._process = process
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._under_way = 0
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """Return the number of items that are not done yet."""
        return len(self._waiting) + self._under_way

    async def add(self, item: Item) -> None:
        """Wait until `item` is processed. Raises the exception of its batch."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._process_batches())
        await done

    async def wait_idle(self) -> None:
        """Wait until the current batches are done; their callers may have been cancelled."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_REST)

    async def _process_batches(self) -> None:
        while self._waiting:
            batch = self._waiting[:_MOST]
            self._waiting = self._waiting[_MOST:]
            self._under_way = len(batch)
            [outcome] = await asyncio.gather(
                self._process([item for item, _ in batch]), return_exceptions=True
            )
            for _, done in batch:
                if done.done():  # its caller was cancelled
                    continue
                if isinstance(outcome, BaseException):
                    done.set_exception(outcome)
                else:
                    done.set_result(None)
            self._under_way = 0
