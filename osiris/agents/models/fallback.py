"""A second model that is used while the first is unavailable."""

import logging
import time
from collections.abc import Callable, Sequence

from osiris.core.errors import Unavailable
from osiris.core.ports.models import LanguageModel, Message, OnDelta, ToolSpec, ignore_deltas

log = logging.getLogger(__name__)

TRIES = 3  # consecutive failures of the first model before the second takes over
REST = 300.0  # seconds until the first model is tried again


class FallbackModel:
    """A `ports.LanguageModel` over two models: the same transcript is sent to either."""

    def __init__(
        self,
        first: LanguageModel,
        second: LanguageModel,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first = first
        self._second = second
        self._clock = clock
        self.is_priced = first.is_priced and second.is_priced
        self._failures = 0
        self._rests_until = 0.0

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        if self._failures < TRIES or self._clock() >= self._rests_until:
            try:
                reply = await self._first.reply(transcript, tools, on_delta)
            except Unavailable as outage:
                self._failures += 1
                if self._failures < TRIES:
                    raise
                log.warning("%s; the second model takes over for %d min", outage, REST // 60)
                self._rests_until = self._clock() + REST
                on_delta("restart", "")
            else:
                self._failures = 0
                return reply
        return await self._second.reply(transcript, tools, on_delta)
