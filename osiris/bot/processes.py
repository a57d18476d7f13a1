"""Programs of the host, run to their end without holding up the event loop.

Started by `subprocess` and not by the loop: uvloop forks, which in a worker of 150 MiB takes 5 ms of a processor more
for each program than the vfork of `subprocess`, and a run needs some thirty of them.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

CHUNK = 1 << 16  # bytes: what a pipe holds


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: bytes | IO[bytes] = b"",
    timeout: float,
    most: int | None = None,
) -> tuple[int, bytes, bytes]:
    """(exit code, stdout, stderr) of a program; after `timeout` seconds it is ended, with its helpers. Of stdout only
    `most` bytes are taken, and then it is closed.

    Raises TimeoutError. The exit code of one that a signal ended is negative.
    """
    with _started(argv, env, stdin) as process:  # leaving closes pipes that a task ended before its first step has not
        try:
            async with asyncio.timeout(timeout):
                out, told = await asyncio.gather(_all_of(process.stdout, most), _all_of(process.stderr))
                await _ended(process)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return process.returncode, out, told


def _started(argv: Sequence[str], env: Mapping[str, str], stdin: bytes | IO[bytes]) -> subprocess.Popen[bytes]:
    with _readable(stdin) as source:
        return subprocess.Popen(
            argv,
            env=env,
            cwd="/",
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that its helpers, which hold our pipes, can be ended with it
        )


@contextlib.contextmanager
def _readable(content: bytes | IO[bytes]) -> Iterator[IO[bytes] | int]:
    """What a program can read as its input. Bytes go into a file: a pipe would have to be fed."""
    if not isinstance(content, bytes):
        yield content
    elif not content:
        yield subprocess.DEVNULL
    else:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            yield file


async def _all_of(pipe: IO[bytes] | None, most: int | None = None) -> bytes:
    """Everything that comes out of a pipe, or the first `most` bytes; it is closed then."""
    if pipe is None:
        return b""
    loop, content, all_there = asyncio.get_running_loop(), bytearray(), asyncio.Event()
    fd = pipe.fileno()
    os.set_blocking(fd, False)

    def take() -> None:
        with contextlib.suppress(BlockingIOError):
            part = os.read(fd, CHUNK)
            content.extend(part)
            if not part or (most is not None and len(content) >= most):
                loop.remove_reader(fd)
                all_there.set()

    loop.add_reader(fd, take)
    try:
        await all_there.wait()
    finally:
        loop.remove_reader(fd)
        pipe.close()
    return bytes(content[:most])


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Return when the process is there no more."""
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    pidfd = os.pidfd_open(process.pid)  # it waits to be asked for its exit code, so the number is still its own
    loop.add_reader(pidfd, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    process.wait()
