"""The jail of one command: the only module that starts jailed processes.

Every command gets a separate jail, and every process that it started dies with the jail. The rules
and their reasons:
- The worker drops its uid before it starts bwrap. Started by root, bwrap leaves kernel uid 0
  inside, which could write the host's core_pattern and so run code as root outside; root is also
  exempt from the limit on processes.
- bwrap itself gets an empty environment, and its options through a file descriptor: pid 1 inside
  shows both.
- No descriptor leaks (close_fds): one leaked folder is an escape by openat("../..").
- /, /dev and /proc are remounted read-only: the first two are memory of the host, the third reaches
  its settings.
- The event loop's thread starts the jail: --die-with-parent holds per thread, so the jail of a
  thread that ends is killed at once.
"""

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from osiris.core.errors import Unavailable
from osiris.core.ports.sandbox import Result
from osiris.tools.sandbox.jail import seccomp
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec, build_arguments
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.descriptors import (
    DescriptorSet,
    is_readable,
    wait_until_readable,
)
from osiris.tools.sandbox.jail.first_program import build_first_program
from osiris.tools.sandbox.jail.jail_user import build_unprivileged_command, resolve_jail_uid
from osiris.tools.sandbox.jail.output_buffer import OutputBuffer

BWRAP: Final = "/usr/bin/bwrap"
CHUNK: Final = 1 << 16
CHILD: Final = re.compile(rb'"child-pid": (\d+)')
OWN_OUTPUT: Final = 8192  # bytes of output that are kept of a command of Osiris itself
END_WAIT: Final = 0.02  # seconds that the event loop waits for the end of a killed jail
TIMEOUT: Final = 10.0  # seconds that a jail may take to start, or to end after SIGKILL


def disable_core_dumps() -> None:
    """Disable core dumps in this process and in its jails, which inherit the limit.

    Where core_pattern names a program, the kernel starts it as root and outside of the jail, with
    data of the jail, whatever the limit is: core(5). The exception is a limit of one byte:
    fs/coredump.c.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


_REAPERS: set[threading.Thread] = set()


class JailStartFailed(Unavailable):
    """The error of a jail that could not be started; no command has begun in it."""


class Jail:
    """One jail: it is set up, runs one command, and ends. Must be created on the event loop's
    thread."""

    def __init__(self, spec: JailSpec, cgroup: Cgroup | None, *, stdout: int | None = None) -> None:
        """Start to set the jail up, in `cgroup`. With `stdout` the command's output goes to that
        file, and only stderr to the worker.

        Raises JailStartFailed.
        """
        self._descriptors = DescriptorSet()
        self._discarded = False
        self._child_pidfd: int | None = None
        try:
            self._start_bwrap(spec, cgroup, stdout)
        except OSError as error:  # too many processes or files, or too little memory
            self._discarded = True
            self._descriptors.close_all()
            raise JailStartFailed(
                f"the sandbox could not be started: {error.strerror or error}"
            ) from error

    def _start_bwrap(self, spec: JailSpec, cgroup: Cgroup | None, stdout: int | None) -> None:
        block, self._block = self._descriptors.open_pipe()
        self._info, info = self._descriptors.open_pipe()
        go, self._go = self._descriptors.open_pipe()
        stdin, self._stdin = self._descriptors.open_pipe()
        self._out, out = self._descriptors.open_pipe()
        if (uid := resolve_jail_uid(spec.uid)) is not None:
            for end in (stdin, out):
                os.fchown(end, uid, uid)  # so that scripts can open /dev/stdin and /dev/stdout
        self._command = self._descriptors.create_memfd(b"")
        rules = self._descriptors.create_memfd(seccomp.build_program())
        options = self._descriptors.create_memfd(b"")
        words = ["--block-fd", block, "--info-fd", info, *build_arguments(spec), "--seccomp", rules]
        os.pwrite(options, b"".join(os.fsencode(str(word)) + b"\0" for word in words), 0)
        entries = (
            [self._descriptors.add(os.open(path, os.O_WRONLY)) for path in cgroup.entry_files]
            if cgroup
            else []
        )
        first = build_first_program(spec.limits, go=go, command=self._command, entries=entries)
        theirs = [block, info, go, rules, options, *entries]
        self._process = subprocess.Popen(
            build_unprivileged_command(
                [BWRAP, "--args", str(options), "--", "/bin/bash", "-c", first],
                spec.nsenter_prefix,
                uid=spec.uid,
            ),
            env={},
            cwd="/",
            stdin=stdin,
            stdout=out if stdout is None else stdout,
            stderr=out,
            pass_fds=[*theirs, self._command],
            start_new_session=True,
        )
        self._descriptors.close(*theirs, stdin, out)
        self._monitor = self._descriptors.add(os.pidfd_open(self._process.pid))
        for ours in (self._info, self._stdin, self._out):
            os.set_blocking(ours, False)

    def __del__(self) -> None:
        """End a jail that was never discarded; it runs no command, so it ends at once. This starts
        no thread, because the attributes are finalized together with the jail."""
        if getattr(self, "_descriptors", None) and not self._discarded:
            self._discarded = True
            self._reap_processes()

    async def wait_until_ready(self) -> None:
        """Wait until the jail is set up. Raises JailStartFailed."""
        try:
            async with asyncio.timeout(TIMEOUT):
                child = await self._read_child_pid()
        except (OSError, ValueError) as error:  # TimeoutError is an OSError too
            self.kill()
            said = os.fsdecode(await self._read_startup_error())[-400:].strip()
            raise JailStartFailed(
                f"the sandbox could not be set up: {said or repr(error)}"
            ) from error
        _raise_oom_score(child, self._process.pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._block, b"+")
        self._descriptors.close(self._block)

    async def run(
        self,
        argv: Sequence[str],
        stdin: bytes,
        timeout: float,
        output: OutputBuffer,
        *,
        cwd: str = ".",
    ) -> Result:
        """Run the command in folder `cwd` of the workspace, and wait until every process in the
        jail has ended.

        Raises JailStartFailed, or Unavailable when a process does not die.
        """
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        timed_out = False
        try:
            loop.add_reader(self._out, self._read_output, output)
            self._write_stdin(memoryview(stdin))
            self._release_command([cwd, *argv])
            try:
                async with asyncio.timeout(timeout):
                    await wait_until_readable(self._monitor)
            except TimeoutError:
                timed_out = True
                self.kill()
            await self._wait_for_child()
            loop.remove_reader(self._out)
            while self._read_output(output):
                pass
            if not timed_out and not self._has_started():
                raise JailStartFailed(
                    "the sandbox could not start:"
                    f" {os.fsdecode(output.get_excerpt())[-400:].strip()}"
                )
            code = self._process.wait()
        finally:
            self.discard()
        return Result(
            exit_code=None if timed_out or code < 0 else code,
            output=output.get_excerpt(),
            total=output.total,
            timed_out=timed_out,
            out_of_memory=False,
            seconds=time.monotonic() - began,
        )

    @property
    def is_alive(self) -> bool:
        return not self._discarded and not is_readable(self._monitor, 0)

    def kill(self) -> None:
        """Send SIGKILL to the monitor and to pid 1 inside.

        The end of the monitor kills pid 1, and the kernel then kills the pid namespace. While the
        jail is being set up, pid 1 has not asked yet to die with the monitor.
        """
        for pidfd in (self._monitor, self._child_pidfd):
            if pidfd is not None and pidfd in self._descriptors:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def discard(self) -> None:
        """End the jail and release all its resources; may be called twice. Synchronous, because it
        must also work while a task is cancelled.

        The kernel takes seconds to free the memory of some jails. A thread waits for those: see
        `wait_for_jails`.
        """
        if self._discarded:
            return
        self._discarded = True
        # without a running loop none watches the descriptors either
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            for fd in (self._out, self._info, self._monitor, self._child_pidfd):
                if fd is not None and fd in self._descriptors:
                    loop.remove_reader(fd)
            if self._stdin in self._descriptors:
                loop.remove_writer(self._stdin)
        if self._child_pidfd is not None:
            self.kill()
            if is_readable(self._monitor, END_WAIT) and is_readable(self._child_pidfd, END_WAIT):
                self._reap_processes()
                return
        thread = threading.Thread(target=self._reap_processes, name="a jail's end", daemon=True)
        _REAPERS.add(thread)
        thread.start()

    def _reap_processes(self) -> None:
        """Wait until all processes of the jail have ended, however far it was set up."""
        self._find_child()
        self.kill()
        self._process.wait()
        self._descriptors.close_all(keep=self._child_pidfd)
        if self._child_pidfd is not None and self._child_pidfd in self._descriptors:
            is_readable(self._child_pidfd, TIMEOUT)
        self._descriptors.close_all()
        _REAPERS.discard(threading.current_thread())

    # ── the steps of a run ────────────────────────────────────────────────────────────────────────

    async def _read_child_pid(self) -> int:
        text = b""
        while not text.endswith(b"}\n"):
            await wait_until_readable(self._info)
            if not (part := os.read(self._info, CHUNK)):
                raise ValueError("bubblewrap ended early")
            text += part
        self._descriptors.close(self._info)
        child = int(json.loads(text)["child-pid"])
        self._child_pidfd = self._descriptors.add(os.pidfd_open(child))
        return child

    def _find_child(self) -> None:
        """Find pid 1 inside, for a jail that ends early: when bwrap is killed before it releases
        its child, the child waits for ever."""
        while (
            self._child_pidfd is None
            and self._info in self._descriptors
            and is_readable(self._info, 1)
        ):
            text = os.read(self._info, CHUNK)
            if found := CHILD.search(text):
                with contextlib.suppress(ProcessLookupError):
                    self._child_pidfd = self._descriptors.add(os.pidfd_open(int(found[1])))
            if found or not text:
                return

    def _release_command(self, words: Sequence[str]) -> None:
        os.pwrite(self._command, b"".join(os.fsencode(word) + b"\0" for word in words), 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"+")
        self._descriptors.close(self._go)

    def _has_started(self) -> bool:
        """Return whether the command has started.

        The memfd of the command shares its offset with the jail: when it is unread, bwrap failed.
        No command can forge that.
        """
        return os.lseek(self._command, 0, os.SEEK_CUR) > 0

    def _write_stdin(self, data: memoryview) -> None:
        """Write as much as the pipe takes, and the rest when the command has read."""
        loop = asyncio.get_running_loop()
        try:
            rest = data[os.write(self._stdin, data[:CHUNK]) :] if data else data
        except BlockingIOError:
            rest = data
        except BrokenPipeError:
            rest = data[:0]
        if rest:
            loop.add_writer(self._stdin, self._write_stdin, rest)
            return
        loop.remove_writer(self._stdin)
        self._descriptors.close(self._stdin)

    def _read_output(self, output: OutputBuffer) -> bool:
        """Read one piece of output. Return False when there is none now, or never again."""
        try:
            data = os.read(self._out, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._out)
        output.append(data)
        return bool(data)

    async def _wait_for_child(self) -> None:
        """Wait for the end of pid 1 inside: it ends after all other processes, the end of the
        output and of the monitor come earlier."""
        if self._child_pidfd is None:
            return
        try:
            async with asyncio.timeout(TIMEOUT):
                await wait_until_readable(self._child_pidfd)
        except TimeoutError as error:
            raise Unavailable("a sandboxed process does not die") from error

    async def _read_startup_error(self) -> bytes:
        """Return the output of a jail that could not be set up. Wait one second at most: a process
        may keep the output open without writing to it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await wait_until_readable(self._out)
                return os.read(self._out, CHUNK)
        return b""


async def wait_for_jails() -> None:
    """Wait until the jails that were discarded so far have ended: then what they held open can be
    unmounted."""
    for thread in list(_REAPERS):
        await asyncio.to_thread(thread.join)


async def run_once(
    spec: JailSpec,
    argv: Sequence[str],
    timeout: float,
    *,
    cgroup: Cgroup | None,
    stdout: int | None = None,
) -> Result:
    """Run one command of Osiris itself in a new jail; with `stdout` its output goes to that file.

    Raises Unavailable.
    """
    killed = cgroup.count_oom_kills() if cgroup else 0
    jail = Jail(spec, cgroup, stdout=stdout)
    try:
        await jail.wait_until_ready()
        result = await jail.run(argv, b"", timeout, OutputBuffer(OWN_OUTPUT))
    finally:
        jail.discard()
    if cgroup and cgroup.count_oom_kills() > killed:
        return replace(result, out_of_memory=True)
    return result


def _raise_oom_score(*pids: int) -> None:
    """Make the kernel kill these processes first when the machine runs out of memory."""
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("1000")
