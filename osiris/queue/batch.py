"""Things that come together are done together, and each caller is answered when its own thing is
done."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

_MOST = 200
_REST = 5.0  # seconds


class Batch(Generic[Item]):
    """While one batch is being done, the next one gathers: nobody waits for a timer, and load makes
    batches larger."""

    def __init__(self, process: Callable[[list[Item]], Awaitable[None]]) -> None:
        self._process = process
        self._waiting: list[tuple[Item, asyncio.Future[None]]] = []
        self._under_way = 0
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        """How many things are not done yet."""
        return len(self._waiting) + self._under_way

    async def add(self, item: Item) -> None:
        """Return when `item` is done. Raises what doing its batch raised."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._process_batches())
        await done

    async def wait_idle(self) -> None:
        """Wait until what is under way is done: whoever waited for it may have gone."""
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
                if done.done():  # its caller has gone
                    continue
                if isinstance(outcome, BaseException):
                    done.set_exception(outcome)
                else:
                    done.set_result(None)
            self._under_way = 0
