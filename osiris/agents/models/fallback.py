"""A second model that stands in while the first cannot be asked."""

import logging
import time
from collections.abc import Callable, Sequence

from osiris.core.errors import Unavailable
from osiris.core.ports.models import Brain, Hear, Message, ToolSpec, deaf

log = logging.getLogger(__name__)

TRIES = 3  # failures of the first in a row before the second takes over
REST = 300.0  # seconds until the first is asked again


class WithSecond:
    """`ports.Brain` over two: the same transcript goes to either."""

    def __init__(self, first: Brain, second: Brain, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._first, self._second, self._clock = first, second, clock
        self.priced = first.priced and second.priced
        self._failures = 0
        self._rests_until = 0.0

    async def reply(self, transcript: Sequence[Message], tools: Sequence[ToolSpec], hear: Hear = deaf) -> Message:
        if self._failures < TRIES or self._clock() >= self._rests_until:
            try:
                reply = await self._first.reply(transcript, tools, hear)
            except Unavailable as outage:
                self._failures += 1
                if self._failures < TRIES:
                    raise
                log.warning("%s; the second model takes over for %d min", outage, REST // 60)
                self._rests_until = self._clock() + REST
                hear("again", "")
            else:
                self._failures = 0
                return reply
        return await self._second.reply(transcript, tools, hear)
