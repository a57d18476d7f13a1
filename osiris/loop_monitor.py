"""A monitor of the event loop: it measures stalls of the loop, and finds the code that caused them.

While the loop stalls, a worker sends no heartbeat, and after 12 seconds another worker considers it
dead. So every stall is logged with the code that ran, and counted. Time in which the loop's thread
was ready but had no processor is not caused by the code and does not count.
"""

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

log = logging.getLogger(__name__)

THRESHOLD: Final = 1.0  # seconds
_SHOWN: Final = 3  # functions that are listed


class LoopMonitor:
    """A counter of the stalls of one event loop that are longer than `threshold` seconds.

    `stalls` is their number; `longest` is the longest in seconds, including those below the
    threshold; `place` is the code that ran in it.
    """

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.stalls = 0
        self.longest = 0.0
        self.place = ""
        self._threshold = threshold
        self._interval = threshold / 4
        self._last = 0.0
        self._waited = 0.0
        self._sample = ""
        self._last_reported = -1
        self._thread_id = 0
        self._native_id = 0

    def take_change(self) -> int | None:
        """Return the number of stalls if it differs from the one returned last, otherwise None."""
        if self.stalls == self._last_reported:
            return None
        self._last_reported = self.stalls
        return self.stalls

    @contextlib.contextmanager
    def watch_loop(self) -> Iterator[None]:
        """Watch the running loop until the block ends.

        It must be called on the loop's own thread.
        """
        self._thread_id = threading.get_ident()
        self._native_id = threading.get_native_id()
        self._begin_interval()
        ended = threading.Event()
        watcher = threading.Thread(
            target=self._watch_thread, args=(ended,), name="loop monitor", daemon=True
        )
        watcher.start()
        ticking = asyncio.get_running_loop().create_task(self._tick())
        try:
            yield
        finally:
            self._measure_interval()
            ticking.cancel()
            ended.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self._measure_interval()

    def _measure_interval(self) -> None:
        """Record how much later than planned this interval ended."""
        late = time.monotonic() - self._last - self._interval
        stall = late - (self._time_without_processor() - self._waited)
        if stall > self.longest:
            self.longest = stall
            self.place = self._sample
        if stall > self._threshold:
            self.stalls += 1
            log.warning(
                "the event loop stalled for %.1f s in %s",
                stall,
                self._sample or "an unknown place",
            )
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._last = time.monotonic()
        self._waited = self._time_without_processor()
        self._sample = ""

    def _time_without_processor(self) -> float:
        """Return the seconds for which the loop's thread was ready to run but did not, as Linux
        counts them.

        The source is the second field of schedstat: Documentation/scheduler/sched-stats.rst.
        """
        try:
            fields = Path(f"/proc/self/task/{self._native_id}/schedstat").read_text().split()
            return int(fields[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    # ── the watching thread ───────────────────────────────────────────────────────────────────────

    def _watch_thread(self, ended: threading.Event) -> None:
        """Record what the loop's thread runs once a stall has begun.

        A stall that holds the interpreter's lock is seen a moment after its end, when the function
        that caused it still runs: the interpreter releases the lock at the next call.
        """
        while not ended.wait(self._interval):
            late = time.monotonic() - self._last - self._interval
            if late > self._interval and not self._sample:
                self._sample = _describe_stack(sys._current_frames().get(self._thread_id))


def _describe_stack(frame: FrameType | None) -> str:
    """Return the innermost functions of a stack in one line."""
    summary = traceback.extract_stack(frame, limit=40) if frame else []
    told = [
        f"{_shorten_path(entry.filename)}:{entry.lineno} {entry.name}"
        for entry in reversed(summary)
    ]
    return " < ".join(told[:_SHOWN])


def _shorten_path(filename: str) -> str:
    return "/".join(Path(filename).parts[-2:])
