"""The egress proxy: the only network access of a jail, limited to a list of hosts.

It serves a unix socket that the jail sees; without that the jail has no network access at all. A
connection is allowed when its host and port are on the list, the address of the host is a public
one, and the TLS that follows names the same host. So a name that resolves to a service of this
machine or of its cloud is refused, and an allowed name cannot stand for another. The proxy does not
see what is sent inside of TLS, so data can leave through an allowed host: hence the limit on the
bytes that are sent.

It runs in a separate process (`proxy_child.py`), so that a jail can harm only its own network
access. That process must start fast: this module and those it needs import little.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from osiris.tools.sandbox.network.addresses import AllowedHost, ResolveHost, may_reach
from osiris.tools.sandbox.network.proxy_request import ConnectRequest, parse_request
from osiris.tools.sandbox.network.tls_client_hello import (
    ProtocolRejected,
    parse_server_name,
    quote_name,
    read_client_hello,
)

CHUNK: Final = 1 << 16
BACKLOG: Final = 128  # connections that wait to be accepted
HEAD: Final = 16 << 10  # bytes of a request
LONGEST_REASON: Final = 400  # characters
# refused hosts that are listed separately: a hostile jail can request any number of them
MOST_NAMES: Final = 100
OTHERS: Final = ("other hosts", 0, "more than can be told apart")
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
# a fatal alert of TLS: RFC 8446, section 6.2
ACCESS_DENIED: Final = b"\x15\x03\x01\x00\x02\x02\x31"

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyLimits:
    """The limits of one proxy: the bytes that may be sent and received in total, and the
    connections at once. For one connection: the seconds until it is established, and of silence."""

    up: int = 16 << 20
    down: int = 4 << 30
    connections: int = 100
    patience: float = 20.0
    silence: float = 120.0


class HostDenied(Exception):
    """The error of a refused connection. The text is the reason; `answer` is sent to the jail
    instead of an error page."""

    def __init__(self, reason: str, answer: bytes | None = None) -> None:
        super().__init__(reason)
        self.answer = answer


class HostUnreachable(Exception):
    """The error of an allowed host that does not answer."""


class EgressProxy:
    """The proxy of one session. Its connections end with the command that made them: see
    `close_connections`."""

    def __init__(
        self, allowed: Sequence[AllowedHost], resolve: ResolveHost, caps: ProxyLimits | None = None
    ) -> None:
        self._allowed = tuple(allowed)
        self._caps = caps or ProxyLimits()
        self._resolve = resolve
        self._tasks: set[asyncio.Task[None]] = set()
        self._quota_left = {"up": self._caps.up, "down": self._caps.down}
        self._blocked = Counter[tuple[str, int, str]]()
        self._unreachable = ""

    def take_report(self) -> dict[str, object]:
        """Return what happened since the last report, as values for JSON.

        `blocked` is a list of (host, port, times, reason); `unreachable` names an allowed host that
        could not be reached, and the reason.
        """
        rows = [
            [host, port, times, reason] for (host, port, reason), times in self._blocked.items()
        ]
        report: dict[str, object] = {"blocked": rows, "unreachable": self._unreachable}
        self._blocked.clear()
        self._unreachable = ""
        return report

    @contextlib.asynccontextmanager
    async def serve_listener(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve the connections of a listening unix socket until the block ends."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        loop.add_reader(listener, self._accept_connections, listener)
        try:
            yield
        finally:
            loop.remove_reader(listener)
            await self.close_connections(listener)

    async def close_connections(self, listener: socket.socket) -> None:
        """Close all connections, also those that still wait to be accepted."""
        for _ in range(2 * BACKLOG):
            try:
                listener.accept()[0].close()
            except OSError:  # none is left
                break
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept_connections(self, listener: socket.socket) -> None:
        """Accept the waiting connections. Those above the limit are closed: each needs
        descriptors."""
        for _ in range(BACKLOG):
            try:
                jail, _ = listener.accept()
            except OSError:
                return
            if len(self._tasks) >= self._caps.connections:
                jail.close()
                continue
            task = asyncio.get_running_loop().create_task(self._handle_connection(jail))
            self._tasks.add(task)
            task.add_done_callback(partial(self._finish_task, jail))

    def _finish_task(self, jail: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        jail.close()  # also when the task never began
        if not task.cancelled() and (error := task.exception()):
            self._unreachable = f"a connection failed: {error!r}"[:LONGEST_REASON]

    async def _handle_connection(self, jail: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=jail, limit=HEAD)
        try:
            await self._serve_request((reader, writer))
            await self._close_writer(writer)
        finally:
            writer.transport.abort()

    async def _close_writer(self, writer: asyncio.StreamWriter) -> None:
        """Close a stream when the other side has read all that was written. Until then it counts as
        a connection."""
        writer.close()
        with contextlib.suppress(OSError):
            async with asyncio.timeout(self._caps.patience):
                await writer.wait_closed()

    async def _serve_request(self, jail: Stream) -> None:
        request = ConnectRequest(host="?", port=0)
        try:
            async with asyncio.timeout(self._caps.patience):
                request = parse_request(await jail[0].readuntil(b"\r\n\r\n"))
                there = await self._connect_host(request)
            try:
                await self._relay_streams(request, jail, there)
                await self._close_writer(there[1])
            finally:
                there[1].transport.abort()
        except (HostDenied, ProtocolRejected) as denied:
            self._record_refusal(request, str(denied))
            answer = denied.answer if isinstance(denied, HostDenied) else None
            jail[1].write(
                _build_error_page(403, request, str(denied)) if answer is None else answer
            )
        except HostUnreachable as error:
            self._unreachable = f"{request.host}:{request.port}: {str(error)[:LONGEST_REASON]}"
            jail[1].write(_build_error_page(502, request, str(error)))
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return  # one side broke off, or took too long (a TimeoutError is an OSError)

    def _record_refusal(self, request: ConnectRequest, reason: str) -> None:
        what = (request.host, request.port, reason[:LONGEST_REASON])
        if what not in self._blocked and len(self._blocked) >= MOST_NAMES:
            what = OTHERS
        self._blocked[what] += 1

    # ── connecting to the host ────────────────────────────────────────────────────────────────────

    async def _connect_host(self, request: ConnectRequest) -> Stream:
        """Connect to the host of a request. Raises HostDenied or HostUnreachable."""
        rules = [rule for rule in self._allowed if rule.covers_target(request)]
        if not rules:
            raise HostDenied("it is not on the list of allowed hosts")
        trouble = "it has no address"
        for address in await self._resolve_addresses(request, own=any(rule.own for rule in rules)):
            try:
                return await asyncio.open_connection(address, request.port, limit=CHUNK)
            except OSError as error:
                trouble = error.strerror or str(error)
        raise HostUnreachable(trouble)

    async def _resolve_addresses(self, request: ConnectRequest, *, own: bool) -> list[str]:
        """Return the addresses of the host that may be reached. The name is not resolved again, so
        the proxy connects to an address that was checked."""
        try:
            found = await self._resolve(request.host, request.port)
        except OSError as error:
            if isinstance(error, socket.gaierror) and error.errno in (
                socket.EAI_NONAME,
                socket.EAI_NODATA,
            ):
                raise HostDenied("there is no host of that name") from None
            raise HostUnreachable(
                f"its name cannot be resolved: {error.strerror or error}"
            ) from None
        good = [address for address in found if may_reach(address, request.host, own=own)]
        if found and not good:
            raise HostDenied("its address is not a public one")
        return good

    # ── relaying ───────────────────────────────────────────────────────────────────────────

    async def _relay_streams(self, request: ConnectRequest, jail: Stream, there: Stream) -> None:
        """Pass bytes between the two until both have ended. Raises HostDenied."""
        first = request.plain or await self._read_tls_hello(request, jail)
        self._spend_quota("up", len(first))
        there[1].write(first)
        broken: list[Exception] = []
        try:
            async with asyncio.timeout(self._caps.silence) as silence, asyncio.TaskGroup() as both:
                both.create_task(self._copy_bytes("down", there[0], jail[1], silence))
                if not request.plain:
                    both.create_task(self._copy_bytes("up", jail[0], there[1], silence))
        except* (OSError, HostDenied) as group:
            # not raised here: before Python 3.11.4 it would be raised as a group
            broken += group.exceptions
        if broken:
            raise broken[0]

    async def _read_tls_hello(self, request: ConnectRequest, jail: Stream) -> bytes:
        """Read the first message of the jail to the host: it must be a TLS hello that names this
        host."""
        jail[1].write(ESTABLISHED)
        try:
            async with asyncio.timeout(self._caps.patience):
                raw, hello = await read_client_hello(jail[0])
            if (named := parse_server_name(hello)) != request.host:
                raise ProtocolRejected(f"its TLS hello names another host: {quote_name(named)}")
        except ProtocolRejected as error:
            raise HostDenied(str(error), ACCESS_DENIED) from None
        return raw

    async def _copy_bytes(
        self,
        direction: str,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        silence: asyncio.Timeout,
    ) -> None:
        """Copy bytes in one direction until the source ends.

        Only silence of both sides ends a connection: a client that downloads a large file sends
        nothing meanwhile.
        """
        while data := await source.read(CHUNK):
            self._spend_quota(direction, len(data))
            target.write(data)
            await target.drain()
            if not silence.expired():
                silence.reschedule(asyncio.get_running_loop().time() + self._caps.silence)
        with contextlib.suppress(OSError):
            target.write_eof()

    def _spend_quota(self, direction: str, size: int) -> None:
        self._quota_left[direction] -= size
        if self._quota_left[direction] < 0:
            most = self._caps.up if direction == "up" else self._caps.down
            raise HostDenied(f"more than {most >> 20} MiB went {direction}", b"")


def _build_error_page(status: int, request: ConnectRequest, reason: str) -> bytes:
    """Return an HTTP answer of the proxy itself: tools show its first line to people, and people
    read its body."""
    phrase = "Blocked by the sandbox" if status == 403 else "Bad Gateway"
    body = f"{request.host}:{request.port}: {reason}\n".encode("utf-8", "replace")
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    )
    return head.encode() + b"Connection: close\r\n\r\n" + body
