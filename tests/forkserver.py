"""Processes of Osiris that begin in no time: forked from one that has imported everything.

To start python and import Osiris takes a second of a processor, and the tests start some hundred
processes. Apart from that they are what an operator starts: processes of their own with an
environment, streams and an exit code of their own. `tests/flow/test_processes.py` and the demo
start Osiris as operators do.
"""

import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import termios
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

IMPORTED = (
    "aiosqlite",
    "alembic.command",
    "anyio._backends._asyncio",
    "httpcore._async",
    "osiris.cli",
    "osiris.console.commands",
    "osiris.console.doctor",
    "osiris.console.prune",
    "osiris.console.reports",
    "osiris.local.command",
    "osiris.queue.redis_wake",
    "osiris.queue.redis_events",
    "psycopg",
    "pydantic_ai.models.anthropic",
    "pydantic_ai.providers.anthropic",
    "tests.flow.support.osiris_process",
    "tests.flow.support.cluster",
    "uvicorn.lifespan.off",
    "uvicorn.protocols.http.httptools_impl",
)
NEEDED = {} if os.geteuid() == 0 else {"OSIRIS_SANDBOX": "weak"}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(list(IMPORTED))


class Streams:
    """Descriptors on their way into a process that is being started."""

    def __init__(self, *fds: int) -> None:
        self._fds = fds

    def __reduce__(self) -> Any:
        return Arrived, tuple(map(DupFd, self._fds))


class Arrived:
    def __init__(self, *handles: Any) -> None:
        self.fds = [handle.detach() for handle in handles]


def _live(
    args: tuple[str, ...], environ: Mapping[str, str], cwd: str, streams: Any, at_terminal: bool
) -> None:
    """The whole life of one command."""
    for fd, target in zip(streams.fds, range(3), strict=True):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(fd, mode, closefd=False) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    os.setsid()
    if at_terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # a test run in the background ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.argv = ["osiris", *args]
    from osiris.cli import main

    main()


class CommandProcess:
    """`osiris ARGS` as a process; a stream that is not given is nothing."""

    def __init__(
        self,
        *args: str,
        environ: Mapping[str, str],
        cwd: Path | str = ".",
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        at_terminal: bool = False,
    ) -> None:
        """`environ` is all of its environment, but for PATH and HOME, and what an ordinary user has
        to say."""
        environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **NEEDED, **environ}
        null = os.open(os.devnull, os.O_RDWR)
        try:
            streams = Streams(*(null if fd < 0 else fd for fd in (stdin, stdout, stderr)))
            self._process: BaseProcess = FORKS.Process(
                target=_live, args=(args, environ, str(cwd), streams, at_terminal), daemon=True
            )
            self._process.start()
        finally:
            os.close(null)
        assert self._process.pid
        self.pid: int = self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; that of a killed one is negative."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it has not ended"
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def osiris(*args: str, cwd: Path | str = ".", **environ: str) -> subprocess.CompletedProcess[str]:
    """Run `osiris ARGS` to its end."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = CommandProcess(
            *args, environ=environ, cwd=cwd, stdout=out.fileno(), stderr=err.fileno()
        )
        code = command.wait(120)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(args, code, *said)
