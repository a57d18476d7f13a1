"""An `osiris.core.ports.live.LiveEvents` across processes, through a Redis stream."""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict

import redis
from redis.asyncio import Redis

from osiris.core.ports.live import AuditEntryAdded, LiveEvent, ReplyDelta
from osiris.queue.in_process import LocalLiveEvents

log = logging.getLogger(__name__)

_STREAM = "osiris:live"
_LENGTH = 10_000  # events that the stream keeps
_WAITING = 10_000  # events that wait to be sent; more are lost
_GATHER = 0.02  # seconds
_BLOCK = 5000  # milliseconds
_LOST = (redis.RedisError, OSError, TimeoutError)


class RedisLiveEvents(LocalLiveEvents):
    """Live events for the readers of all processes.

    An event that Redis loses can be read from the database soon after.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._redis = Redis.from_url(url, socket_connect_timeout=2)
        self._outgoing: deque[LiveEvent] = deque(maxlen=_WAITING)
        self._more = asyncio.Event()
        self._receive_task: asyncio.Task[None] | None = None

    def publish(self, event: LiveEvent) -> None:
        self._outgoing.append(event)
        self._more.set()

    @contextlib.asynccontextmanager
    async def open_connection(self) -> AsyncIterator[None]:
        """Send the published events until the block ends."""
        sending = asyncio.create_task(self._send_events())
        try:
            yield
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await self._redis.aclose()

    async def _send_events(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            events = [self._outgoing.popleft() for _ in range(len(self._outgoing))]
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for event in events:
                        pipe.xadd(
                            _STREAM, {"news": dump_event(event)}, maxlen=_LENGTH, approximate=True
                        )
                    await pipe.execute()
            except _LOST as error:
                log.debug("live events are lost: %s", type(error).__name__)
            await asyncio.sleep(_GATHER)

    @contextlib.contextmanager
    def subscribe(self) -> Iterator[asyncio.Queue[LiveEvent]]:
        if self._receive_task is None:
            self._receive_task = asyncio.create_task(self._receive_events())
        try:
            with super().subscribe() as reader:
                yield reader
        finally:
            if not self._readers and self._receive_task is not None:
                self._receive_task.cancel()
                self._receive_task = None

    async def _receive_events(self) -> None:
        last = "$"
        while True:
            try:
                for _, entries in await self._redis.xread({_STREAM: last}, block=_BLOCK, count=500):
                    for id, fields in entries:
                        last = id
                        super().publish(load_event(fields[b"news"]))
            except _LOST as error:
                log.debug("live events are not received: %s", type(error).__name__)
                await asyncio.sleep(1.0)


def dump_event(event: LiveEvent) -> str:
    return json.dumps({"type": type(event).__name__, **asdict(event)})


def load_event(text: bytes) -> LiveEvent:
    fields = json.loads(text)
    event: LiveEvent = {"ReplyDelta": ReplyDelta, "AuditEntryAdded": AuditEntryAdded}[
        fields.pop("type")
    ](**fields)
    return event
