"""Osiris as a separate process that tests kill and start again quickly."""

import asyncio
import logging
import os
import signal
import threading
from multiprocessing.process import BaseProcess

from osiris.bootstrap import Parts, Timeouts, build_osiris
from osiris.config.settings import Settings
from osiris.runtime import serve
from tests.forkserver import FORK_CONTEXT


def serve_osiris(settings: Settings) -> None:
    """Run web server and worker in one process until it is killed."""
    logging.disable(logging.CRITICAL)
    asyncio.run(serve(build_osiris(settings, Parts(timeouts=Timeouts(pauses=(0.05,))))))


class RestartableOsiris:
    """Consecutive processes with the same settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: BaseProcess | None = None
        self._lock = threading.Lock()  # two writes may be interrupted at the same moment
        self.count = 0

    def start(self) -> None:
        self._process = FORK_CONTEXT.Process(
            target=serve_osiris, args=(self._settings,), daemon=True
        )
        self._process.start()
        self.count += 1

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        if self._process is not None and self._process.pid is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.join()
            self._process.close()
            self._process = None

    def restart(self) -> None:
        with self._lock:
            self.kill()
            self.start()
