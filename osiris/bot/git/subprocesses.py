"""Host programs, run to their end without blocking the event loop.

They are started by `subprocess` and not by the loop: uvloop forks, which in a worker of 150 MiB
takes 5 ms of processor time more for each program than the vfork of `subprocess`, and a run needs
about thirty of them.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

CHUNK = 1 << 16  # bytes: the capacity of a pipe
STDERR_KEPT = 1 << 12  # bytes kept of the beginning of stderr, and as many of its end


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessResult:
    """The result of a program; `code` is negative when a signal ended it.

    `is_truncated` is True when it printed more than `out`, and was killed for it. `err` is the
    beginning and the end of its stderr.
    """

    code: int
    out: bytes
    err: bytes
    is_truncated: bool


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    timeout: float,
    most: int,
    stdin: bytes | IO[bytes] = b"",
    to: IO[bytes] | None = None,
) -> ProcessResult:
    """Run a program to its end; after `timeout` seconds it is killed, with its children.

    It is also killed when it prints more than `most` bytes. With the file `to`, its output is
    written there instead. Raises TimeoutError.
    """
    out = _HeadBuffer(most)
    err = _EndsBuffer(STDERR_KEPT)
    # the block closes the pipes, which a task cancelled before its first step does not
    with _start_process(argv, env, stdin, to) as process:
        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(
                    _read_output(process, out), _drain_pipe(process.stderr, err.add)
                )
                await _await_exit(process)
        finally:
            _kill_group(process)
            process.wait()
    return ProcessResult(
        code=process.returncode,
        out=out.to_bytes(),
        err=err.to_bytes(),
        is_truncated=out.is_truncated,
    )


def _start_process(
    argv: Sequence[str],
    env: Mapping[str, str],
    stdin: bytes | IO[bytes],
    to: IO[bytes] | None,
) -> subprocess.Popen[bytes]:
    with _open_input(stdin) as source:
        return subprocess.Popen(
            argv,
            env=env,
            cwd="/",
            stdin=source,
            stdout=subprocess.PIPE if to is None else to,
            stderr=subprocess.PIPE,
            # so that its children, which hold our pipes, can be killed with it
            start_new_session=True,
        )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and its children.

    A process that was waited for is left alone, because its id may belong to another one by now.
    """
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _open_input(content: bytes | IO[bytes]) -> Iterator[IO[bytes] | int]:
    """Yield an input for a program.

    Bytes are written to a file, because a pipe would have to be fed.
    """
    if not isinstance(content, bytes):
        yield content
    elif not content:
        yield subprocess.DEVNULL
    else:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.seek(0)
            yield file


class _HeadBuffer:
    """A buffer of the first `most` bytes of a stream."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._content = bytearray()

    @property
    def is_truncated(self) -> bool:
        return len(self._content) > self._most

    def add(self, part: bytes) -> bool:
        """Add a part; return whether more is accepted."""
        self._content.extend(part)
        return not self.is_truncated

    def to_bytes(self) -> bytes:
        return bytes(self._content[: self._most])


class _EndsBuffer:
    """A buffer of the first and the last `kept` bytes of a stream, however long it is."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._head = b""
        self._tail = b""
        self._total = 0

    def add(self, part: bytes) -> bool:
        """Add a part and return True: more is always accepted, but only the ends are kept."""
        self._total += len(part)
        room = self._kept - len(self._head)
        self._head += part[:room]
        self._tail = (self._tail + part[room:])[-self._kept :]
        return True

    def to_bytes(self) -> bytes:
        is_cut = self._total > len(self._head) + len(self._tail)
        return self._head + (b"\n[...]\n" if is_cut else b"") + self._tail


async def _read_output(process: subprocess.Popen[bytes], out: _HeadBuffer) -> None:
    """Read the output of a program, and kill the program when that is too much.

    It would otherwise end only when it writes again.
    """
    await _drain_pipe(process.stdout, out.add)
    if out.is_truncated:
        _kill_group(process)


async def _drain_pipe(pipe: IO[bytes] | None, add: Callable[[bytes], bool]) -> None:
    """Pass everything from a pipe to `add` until that returns False; then close the pipe."""
    if pipe is None:
        return
    loop = asyncio.get_running_loop()
    finished = asyncio.Event()
    fd = pipe.fileno()
    os.set_blocking(fd, False)

    def read_chunk() -> None:
        with contextlib.suppress(BlockingIOError):
            part = os.read(fd, CHUNK)
            if not part or not add(part):
                loop.remove_reader(fd)
                finished.set()

    loop.add_reader(fd, read_chunk)
    try:
        await finished.wait()
    finally:
        loop.remove_reader(fd)
        pipe.close()


async def _await_exit(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has exited."""
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    # it was not waited for yet, so the id is still its own
    pidfd = os.pidfd_open(process.pid)
    loop.add_reader(pidfd, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    process.wait()
