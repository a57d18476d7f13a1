"""The worker's side of a session's egress proxy, which runs in a separate process.

A jail can do to the proxy what it can do to any process that accepts its connections: stall it,
fill its memory, or even take it over. So the proxy is not part of the worker. It has an empty
environment, no descriptor except the jails' socket and two pipes, and under a root worker a
separate user. The worker checks the proxy's reports as untrusted input, waits for one a few seconds
at most, and handles no connection itself. The worker ends a proxy that fails and starts no other: a
new one would not know how much was sent, so that session then has no network access.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from osiris.core.errors import Unavailable
from osiris.core.work import Blocked
from osiris.tools.sandbox.guest.proxy_bridge import SOCKET
from osiris.tools.sandbox.network.addresses import AllowedHost
from osiris.tools.sandbox.network.egress_proxy import BACKLOG, ProxyLimits
from osiris.tools.sandbox.network.proxy_report import MOST_REPORT, ProxyReport, parse_report

log = logging.getLogger(__name__)

PROXY_UID: Final = 61999  # the user of a root worker's proxies; jails have other users
SO_PASSRIGHTS = 83  # Linux 6.16: whether a socket accepts descriptors
START_TIMEOUT: Final = 30.0  # seconds until the first report
REPORT_TIMEOUT: Final = 5.0  # seconds for each later one
MOST_LOGGED: Final = 20  # lines for one command
CHILD = """
import sys
sys.path.append(sys.argv[1])
from osiris.tools.sandbox.network.proxy_child import main
main()
"""
CODE: Final = str(Path(__file__).parents[4])
LOST: Final = Blocked(
    host="the proxy",
    port=0,
    times=1,
    reason="it did not answer as it should and was ended; this workspace has no network access now",
)


class ProxyProcess:
    """The egress proxy of one session, which has a separate `folder`.

    The proxy listens on a socket in `folder` as long as it runs. While a command runs,
    `jail_folder` in it, which the jail sees, contains a link to that socket.
    """

    def __init__(
        self, folder: Path, allowed: Sequence[AllowedHost], caps: ProxyLimits | None = None
    ) -> None:
        self.jail_folder = folder / "jail"
        self._socket = folder / SOCKET
        self._allowed = tuple(allowed)
        self._caps = caps or ProxyLimits()
        self._blocked: list[Blocked] = []
        self._reporting = asyncio.Lock()
        self._timeout = START_TIMEOUT
        self._child: _ChildProcess | None = None
        self._lost = False
        self._unreachable = False

    @property
    def unreachable(self) -> bool:
        """Return whether an allowed host could not be reached since `forget_unreachable`. Without
        a proxy no host can be reached."""
        return self._unreachable or self._lost

    def forget_unreachable(self) -> None:
        """Reset `unreachable`, so that it then describes the next command only."""
        self._unreachable = False

    def start(self, uid: int | None) -> None:
        """Start the process, for jails of user `uid` (None: this process's user). Raises
        Unavailable.

        Call it on the event loop's thread: the process dies with the thread that started it.
        """
        proxy_uid = PROXY_UID if os.geteuid() == 0 else None
        settings = {
            "allowed": [asdict(allowed) for allowed in self._allowed],
            "caps": asdict(self._caps),
            "uid": proxy_uid,
        }
        try:
            with make_listener(self._socket, uid) as listener:
                self._child = _ChildProcess(listener, settings)
        except OSError as error:
            raise Unavailable(f"the sandbox's proxy could not be started: {error}") from error
        weakref.finalize(self, self._child.stop)

    def stop(self) -> None:
        """End the process; may be called twice."""
        if self._child:
            self._child.stop()
            self._child = None
        self._socket.unlink(missing_ok=True)

    def take_blocked(self) -> list[Blocked]:
        """Return the connections that were refused since the last call."""
        blocked = [*self._blocked, LOST] if self._lost else self._blocked
        self._blocked = []
        return blocked

    @contextlib.asynccontextmanager
    async def listen_for_jails(self) -> AsyncIterator[Path]:
        """Let jails reach the proxy until the block ends; yields the path of its socket."""
        path = self.jail_folder / SOCKET
        path.unlink(missing_ok=True)
        if self._child:
            os.link(self._socket, path)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            await self._collect_report()

    async def _collect_report(self) -> None:
        """Make the proxy close its connections, and read its report. A proxy that fails is
        ended."""
        async with self._reporting:
            if not self._child:
                return
            try:
                async with asyncio.timeout(self._timeout):
                    report = parse_report(await self._child.request_report())
            except (OSError, ValueError, RecursionError) as error:  # TimeoutError is an OSError too
                self._abandon_proxy(repr(error))
                return
            except asyncio.CancelledError:  # the late answer would be taken for the next report
                self._abandon_proxy("the wait for its report was cut off")
                raise
        self._timeout = REPORT_TIMEOUT
        self._record_report(report)

    def _record_report(self, report: ProxyReport) -> None:
        self._blocked += report.blocked
        self._unreachable = self._unreachable or bool(report.unreachable)
        if report.unreachable:
            log.info("egress: %s", report.unreachable)
        for blocked in report.blocked[:MOST_LOGGED]:
            log.warning("blocked: %s:%d: %s", blocked.host, blocked.port, blocked.reason)
        if len(report.blocked) > MOST_LOGGED:
            log.warning("blocked: %d more hosts", len(report.blocked) - MOST_LOGGED)

    def _abandon_proxy(self, why: str) -> None:
        session = self._socket.parent.name
        log.error("egress: the proxy of %s failed and was ended: %s", session, why[:200])
        self._lost = True
        self.stop()


class _ChildProcess:
    """The proxy process, and the pipes to it and from it."""

    def __init__(self, listener: socket.socket, settings: Mapping[str, object]) -> None:
        with contextlib.ExitStack() as failed, contextlib.ExitStack() as theirs:
            control, self._control = _open_pipe(theirs, failed)
            self._report, report = _open_pipe(failed, theirs)
            memory = os.memfd_create("osiris-proxy")
            theirs.callback(os.close, memory)
            os.pwrite(memory, json.dumps(settings).encode(), 0)
            os.set_blocking(self._control, False)
            os.set_blocking(self._report, False)
            words = [CODE, str(listener.fileno()), str(memory)]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", CHILD, *words],
                env={},
                cwd="/",
                stdin=control,
                stdout=report,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno(), memory],
                start_new_session=True,
            )
            self._pidfd = os.pidfd_open(self._process.pid)
            failed.pop_all()
        self._ended = False

    async def request_report(self) -> bytes:
        """Send one byte and return the report that answers it. Raises OSError, ValueError."""
        os.write(self._control, b"?")
        size = int.from_bytes(await self._read_exactly(4), "big")
        if size > MOST_REPORT:
            raise ValueError(f"a report of {size} bytes")
        return await self._read_exactly(size)

    async def _read_exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            await _wait_readable(self._report)
            part = b"" if self._ended else os.read(self._report, size - len(data))
            if not part:
                raise ValueError("it has ended")
            data += part
        return bytes(data)

    def stop(self) -> None:
        """Kill the process and release all resources; may be called twice.

        A thread waits for the end of the process: the event loop calls this, and SIGKILL does not
        end a process at once.
        """
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        with contextlib.suppress(RuntimeError):  # without a running loop none watches it
            asyncio.get_running_loop().remove_reader(self._report)
        for fd in (self._pidfd, self._control, self._report):
            os.close(fd)
        with contextlib.suppress(RuntimeError):  # this process itself is ending
            threading.Thread(target=self._process.wait, daemon=True).start()


def make_listener(path: Path, uid: int | None) -> socket.socket:
    """Return a listening socket at `path` that user `uid` (None: this process's user) may connect
    to.

    Where the kernel supports it, the socket accepts no descriptors: the sender decides how long it
    takes to close a descriptor that it sent (SO_LINGER). The process that closes this socket last
    closes all descriptors sent to it, so the worker closes its copy before a jail sees the socket.
    """
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)  # accepted ones inherit it
        short = f"/proc/self/fd/{folder}/{path.name}"  # a socket's path has at most 107 bytes
        listener.bind(short)
        os.chmod(short, 0o600)
        if uid is not None:
            os.chown(short, uid, uid)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener


def _open_pipe(reads: contextlib.ExitStack, writes: contextlib.ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    reads.callback(os.close, read)
    writes.callback(os.close, write)
    return read, write


async def _wait_readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(fd, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(fd)
