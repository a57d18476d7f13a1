"""The jail: what bubblewrap is told, and the only place that starts jailed processes.

Every command gets a jail of its own, and everything it started dies with it. The rules and their
proofs:
- The host uid is dropped before bwrap. Started by root, bwrap leaves kernel uid 0 inside, which
  could write the host's core_pattern and so run code as root outside; root is also exempt from the
  limit on processes.
- bwrap itself gets an empty environment and its options through a file descriptor: pid 1 inside
  shows both.
- No descriptor leaks (close_fds): one leaked folder is an escape by openat("../..").
- /, /dev and /proc are remounted read-only: the first two are memory of the host, the third reaches
  its settings.
- Spawn on the event loop's thread: --die-with-parent is per thread, a jail of a thread that ends is
  killed at once.
"""

import asyncio
import contextlib
import json
import os
import re
import resource
import select
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Final

from osiris.core.errors import Unavailable
from osiris.core.ports.sandbox import Result
from osiris.tools.sandbox.jail import seccomp
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec, build_arguments
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.output_buffer import OutputBuffer
from osiris.tools.sandbox.users import SHARED

BWRAP: Final = "/usr/bin/bwrap"
SETPRIV: Final = "/usr/bin/setpriv"
CHUNK: Final = 1 << 16
CHILD: Final = re.compile(rb'"child-pid": (\d+)')
SAID: Final = 8192  # bytes that a command of our own may say
MOMENT: Final = 0.02  # seconds that the event loop waits for a jail that was killed
PATIENCE: Final = 10.0  # seconds that a jail may take to be set up, or to be gone after SIGKILL

MARK: Final = "# a jail of Osiris"  # by which one is known whose worker is gone
# The first program inside. It enters the cgroup by descriptors that the worker has opened (moved
# from outside, it would wait for an RCU grace period after each idle moment, 7 to 22 ms), sets the
# limits (from outside that needs CAP_SYS_RESOURCE; as a bash builtin it is 0.8 ms cheaper than
# /usr/bin/prlimit), waits for the word, takes the command from a memfd, and becomes it. On end of
# file instead of the word the worker has died, and nothing runs.
FIRST_PROGRAM: Final = (
    MARK
    + """
for door in {doors}; do echo 0 >&$door || exit 125; done
ulimit -t {cpu} -u {processes} -n {files} -f {file_blocks} || exit 125
IFS= read -r -n 1 -u {go} word && [[ $word = + ]] || exit 125
mapfile -d '' -t -u {command} argv
cd -- "$argv" || exit 126
exec -- "${{argv[@]:1}}" {go}<&- {command}<&- {shut}
"""
)


def resolve_jail_uid(uid: int | None = None) -> int | None:
    """Return the user that a root worker's jail runs as; None: ours, which is none of root's."""
    return (uid or SHARED) if os.geteuid() == 0 else None


def build_unprivileged_command(
    argv: Sequence[str], enter: Sequence[str] = (), *, uid: int | None = None
) -> list[str]:
    """Return `argv` as the jail's user.

    `uid` is that of a root worker's session. An ordinary user has to `enter` where the disk is
    held. By setpriv: Popen(user=...) gives vfork up, 5.9 ms against 1.6 in a 120 MiB worker.
    """
    uid = resolve_jail_uid(uid)
    if uid is None:
        return [*enter, *argv]
    return [
        SETPRIV,
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        "--pdeathsig=KILL",
        "--",
        *argv,
    ]


def disable_core_dumps() -> None:
    """Where core_pattern names a program, the kernel starts it as root and outside of the jail,
    with what the jail left, whatever the limit: core(5). But not for a limit of one byte:
    fs/coredump.c. Jails have this process's."""
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


_ENDING: set[threading.Thread] = set()


class JailStartFailed(Unavailable):
    """The jail could not be made, and no command has begun in it."""


class Jail:
    """One jail: it stands ready, then runs one command, then is gone. Made on the event loop's
    thread."""

    def __init__(self, view: JailSpec, cgroup: Cgroup | None, *, stdout: int | None = None) -> None:
        """Start to set the jail up, in `cgroup`. With `stdout` the command's output goes to that
        file and only stderr to us.

        Raises NotBegun."""
        self._open: set[int] = set()
        self._discarded = False
        self._child_pidfd: int | None = None
        self._limits = view.limits
        try:
            self._start_bwrap(view, cgroup, stdout)
        except OSError as error:  # too many processes or files, or too little memory
            self._discarded = True
            self._close_descriptors(*self._open)
            raise JailStartFailed(
                f"the sandbox could not be started: {error.strerror or error}"
            ) from error

    def _start_bwrap(self, view: JailSpec, cgroup: Cgroup | None, stdout: int | None) -> None:
        block, self._block = self._open_pipe()
        self._info, info = self._open_pipe()
        go, self._go = self._open_pipe()
        stdin, self._stdin = self._open_pipe()
        self._out, out = self._open_pipe()
        if (uid := resolve_jail_uid(view.uid)) is not None:
            for end in (stdin, out):
                os.fchown(end, uid, uid)  # so that scripts can open /dev/stdin and /dev/stdout
        self._command = self._create_memfd(b"")
        rules = self._create_memfd(seccomp.build_program())
        options = self._create_memfd(b"")
        words = ["--block-fd", block, "--info-fd", info, *build_arguments(view), "--seccomp", rules]
        os.pwrite(options, b"".join(os.fsencode(str(word)) + b"\0" for word in words), 0)
        doors = (
            [self._track_descriptor(os.open(path, os.O_WRONLY)) for path in cgroup.entry_files]
            if cgroup
            else []
        )
        first = ["/bin/bash", "-c", self._build_first_program(go, doors)]
        theirs = [block, info, go, rules, options, *doors]
        self._process = subprocess.Popen(
            build_unprivileged_command(
                [BWRAP, "--args", str(options), "--", *first], view.nsenter_prefix, uid=view.uid
            ),
            env={},
            cwd="/",
            stdin=stdin,
            stdout=out if stdout is None else stdout,
            stderr=out,
            pass_fds=[*theirs, self._command],
            start_new_session=True,
        )
        self._close_descriptors(*theirs, stdin, out)
        self._monitor = self._track_descriptor(os.pidfd_open(self._process.pid))
        for ours in (self._info, self._stdin, self._out):
            os.set_blocking(ours, False)

    def __del__(self) -> None:
        """One that nobody discarded runs no command, and ends at once. No thread: its parts are
        finalized with it."""
        if getattr(self, "_open", None) and not self._discarded:
            self._discarded = True
            self._reap_processes()

    async def wait_until_ready(self) -> None:
        """Wait until the jail holds. Raises NotBegun."""
        try:
            async with asyncio.timeout(PATIENCE):
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
        self._close_descriptors(self._block)

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
        jail is gone.

        Raises NotBegun, or Unavailable when something in it does not die.
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
                    await _wait_readable(self._monitor)
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
        return not self._discarded and not _is_readable(self._monitor, 0)

    def kill(self) -> None:
        """SIGKILL for the monitor: its end kills pid 1 inside, and the kernel then kills the pid
        namespace.

        And for pid 1 itself: while the jail is being set up it has not asked yet to die with the
        monitor."""
        for pidfd in (self._monitor, self._child_pidfd):
            if pidfd in self._open:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def discard(self) -> None:
        """End it and let go of everything; twice is fine. Synchronous, for it must also hold while
        a task is cancelled.

        The kernel takes seconds to free the memory of some jails. A thread waits for those: see
        `wait_for_jails`.
        """
        if self._discarded:
            return
        self._discarded = True
        # no loop is running: then none watches our descriptors either
        with contextlib.suppress(RuntimeError):
            loop = asyncio.get_running_loop()
            for fd in self._open & {self._out, self._info, self._monitor, self._child_pidfd}:
                if fd is not None:
                    loop.remove_reader(fd)
            if self._stdin in self._open:
                loop.remove_writer(self._stdin)
        if self._child_pidfd is not None:
            self.kill()
            if _is_readable(self._monitor, MOMENT) and _is_readable(self._child_pidfd, MOMENT):
                self._reap_processes()
                return
        thread = threading.Thread(target=self._reap_processes, name="a jail's end", daemon=True)
        _ENDING.add(thread)
        thread.start()

    def _reap_processes(self) -> None:
        """Wait until all of it is gone, wherever it was in being set up."""
        self._find_child()
        self.kill()
        self._process.wait()
        self._close_descriptors(*(self._open - {self._child_pidfd}))
        if self._child_pidfd in self._open:
            _is_readable(self._child_pidfd, PATIENCE)
        self._close_descriptors(*self._open)
        _ENDING.discard(threading.current_thread())

    # ── the parts of a run ────────────────────────────────────────────────────────────────────────

    def _build_first_program(self, go: int, doors: Sequence[int]) -> str:
        limits = self._limits
        return FIRST_PROGRAM.format(
            cpu=limits.cpu_seconds,
            processes=limits.processes,
            files=limits.open_files,
            file_blocks=limits.file_size // 1024,
            go=go,
            command=self._command,
            doors=" ".join(map(str, doors)),
            shut=" ".join(f"{door}>&-" for door in doors),
        )

    async def _read_child_pid(self) -> int:
        text = b""
        while not text.endswith(b"}\n"):
            await _wait_readable(self._info)
            if not (part := os.read(self._info, CHUNK)):
                raise ValueError("bubblewrap ended early")
            text += part
        self._close_descriptors(self._info)
        child = int(json.loads(text)["child-pid"])
        self._child_pidfd = self._track_descriptor(os.pidfd_open(child))
        return child

    def _find_child(self) -> None:
        """Learn who pid 1 inside is, for a jail that ends early: killed before bwrap has let its
        child go, the child would wait for that word for ever."""
        while (
            self._child_pidfd is None and self._info in self._open and _is_readable(self._info, 1)
        ):
            text = os.read(self._info, CHUNK)
            if found := CHILD.search(text):
                with contextlib.suppress(ProcessLookupError):
                    self._child_pidfd = self._track_descriptor(os.pidfd_open(int(found[1])))
            if found or not text:
                return

    def _release_command(self, words: Sequence[str]) -> None:
        os.pwrite(self._command, b"".join(os.fsencode(word) + b"\0" for word in words), 0)
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b"+")
        self._close_descriptors(self._go)

    def _has_started(self) -> bool:
        """The command's memfd shares its offset with the jail: unread, bwrap failed. No command can
        forge that."""
        return os.lseek(self._command, 0, os.SEEK_CUR) > 0

    def _write_stdin(self, data: memoryview) -> None:
        """Write what fits and come back for the rest when the command has read."""
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
        self._close_descriptors(self._stdin)

    def _read_output(self, output: OutputBuffer) -> bool:
        """Take one piece of output; False when there is none now, or never again."""
        try:
            data = os.read(self._out, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._out)
        output.append(data)
        return bool(data)

    async def _wait_for_child(self) -> None:
        """Neither the end of output nor that of the monitor is the end: pid 1 inside leaves after
        all others."""
        if self._child_pidfd is None:
            return
        try:
            async with asyncio.timeout(PATIENCE):
                await _wait_readable(self._child_pidfd)
        except TimeoutError as error:
            raise Unavailable("a sandboxed process does not die") from error

    async def _read_startup_error(self) -> bytes:
        """Return what a jail says that could not be set up; a process may keep its output open
        without a word."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await _wait_readable(self._out)
                return os.read(self._out, CHUNK)
        return b""

    # ── descriptors ───────────────────────────────────────────────────────────────────────────────

    def _track_descriptor(self, fd: int) -> int:
        self._open.add(fd)
        return fd

    def _open_pipe(self) -> tuple[int, int]:
        read, write = os.pipe()
        return self._track_descriptor(read), self._track_descriptor(write)

    def _create_memfd(self, content: bytes) -> int:
        fd = self._track_descriptor(os.memfd_create("osiris"))
        os.pwrite(fd, content, 0)
        return fd

    def _close_descriptors(self, *fds: int) -> None:
        for fd in self._open & set(fds):
            os.close(fd)
        self._open -= set(fds)


async def wait_for_jails() -> None:
    """Return when the jails that were discarded so far are gone: what they hold open can be
    unmounted then."""
    for thread in list(_ENDING):
        await asyncio.to_thread(thread.join)


async def run_once(
    view: JailSpec,
    argv: Sequence[str],
    timeout: float,
    *,
    cgroup: Cgroup | None,
    stdout: int | None = None,
) -> Result:
    """A jail for one command of our own; with `stdout` its output goes to that file. Raises
    Unavailable."""
    jail = Jail(view, cgroup, stdout=stdout)
    try:
        await jail.wait_until_ready()
        return await jail.run(argv, b"", timeout, OutputBuffer(SAID))
    finally:
        jail.discard()


async def _wait_readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    seen: asyncio.Future[None] = loop.create_future()

    def mark_readable() -> None:
        if not seen.done():
            seen.set_result(None)

    loop.add_reader(fd, mark_readable)
    try:
        await seen
    finally:
        loop.remove_reader(fd)


def _raise_oom_score(*pids: int) -> None:
    """When the machine runs out of memory, these go first."""
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
            file.write("1000")


def _is_readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
