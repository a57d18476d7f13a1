"""Fast starts of Osiris processes: each is forked from a process that has already imported
everything.

Starting Python and importing Osiris takes a second of processor time, and the tests start hundreds
of processes. Apart from the fork, these are the processes that an operator starts, each with its
own environment, streams and exit code. `tests/flow/test_processes.py` and the demo start Osiris
without a fork.
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

PRELOADED_MODULES = (
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
REQUIRED_ENVIRON = {} if os.geteuid() == 0 else {"OSIRIS_SANDBOX": "weak"}
FORK_CONTEXT = multiprocessing.get_context("forkserver")
FORK_CONTEXT.set_forkserver_preload(list(PRELOADED_MODULES))


class SentStreams:
    """File descriptors that are passed to a process as it starts."""

    def __init__(self, *fds: int) -> None:
        self._fds = fds

    def __reduce__(self) -> Any:
        return ReceivedStreams, tuple(map(DupFd, self._fds))


class ReceivedStreams:
    """The same descriptors in the process that received them."""

    def __init__(self, *handles: Any) -> None:
        self.fds = [handle.detach() for handle in handles]


def _run_command(
    args: tuple[str, ...], environ: Mapping[str, str], cwd: str, streams: Any, at_terminal: bool
) -> None:
    """Run one `osiris` command from start to end."""
    for fd, target in zip(streams.fds, range(3), strict=True):
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(fd, mode, closefd=False) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
    )
    os.setsid()
    if at_terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # tests that run in the background ignore SIGINT, and the fork inherits that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.argv = ["osiris", *args]
    from osiris.cli import main

    main()


class CommandProcess:
    """A process that runs `osiris ARGS`. A stream that is not given is /dev/null."""

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
        """`environ` is the whole environment, except PATH, HOME and the setting that an ordinary
        user needs."""
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            **REQUIRED_ENVIRON,
            **environ,
        }
        dev_null = os.open(os.devnull, os.O_RDWR)
        try:
            streams = SentStreams(*(dev_null if fd < 0 else fd for fd in (stdin, stdout, stderr)))
            self._process: BaseProcess = FORK_CONTEXT.Process(
                target=_run_command,
                args=(args, environ, str(cwd), streams, at_terminal),
                daemon=True,
            )
            self._process.start()
        finally:
            os.close(dev_null)
        assert self._process.pid
        self.pid: int = self._process.pid

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; that of a killed process is negative."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "the process has not ended"
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def run_osiris(
    *args: str, cwd: Path | str = ".", **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `osiris ARGS`, wait for its end, and return the result."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        command = CommandProcess(
            *args, environ=environ, cwd=cwd, stdout=out.fileno(), stderr=err.fileno()
        )
        exit_code = command.wait(120)
        outputs = []
        for file in (out, err):
            file.seek(0)
            outputs.append(file.read().decode())
    return subprocess.CompletedProcess(args, exit_code, *outputs)
