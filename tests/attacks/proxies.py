"""A guarded proxy and an open one with a target behind both, and a client that breaks the rules."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from osiris.core.work import Blocked
from osiris.tools.sandbox.network.addresses import AllowedHost, ResolveHost
from osiris.tools.sandbox.network.egress_proxy import EgressProxy, ProxyLimits
from osiris.tools.sandbox.network.proxy_process import make_listener
from osiris.tools.sandbox.network.proxy_report import parse_report

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
ConnectionHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TargetServer:
    """A server of 127.0.0.1. `received` is what was sent to it, and `callers` how many connections
    it got."""

    def __init__(self) -> None:
        self.received = b""
        self.callers = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.callers += 1
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.received += data
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nreached"
                )
                if b"Connection: close" in data:
                    break
        await close_writer(writer)


async def close_writer(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def forward_anything(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Handle a connection as a proxy that forwards everything, and that resolves every name to this
    machine."""
    head = await reader.readuntil(b"\r\n\r\n")
    port = int(re.findall(rb":(\d{4,5})", head)[0])
    target = await asyncio.open_connection("127.0.0.1", port)
    try:
        await connect_streams(head, (reader, writer), target)
    finally:
        target[1].close()


async def connect_streams(head: bytes, client: Stream, target: Stream) -> None:
    """Answer or forward the head of a request, then copy both directions."""
    if head.startswith(b"CONNECT"):
        client[1].write(b"HTTP/1.1 200 OK\r\n\r\n")
    else:
        target[1].write(head)
    await asyncio.gather(copy_stream(client[0], target[1]), copy_stream(target[0], client[1]))


def track_tasks(handle: ConnectionHandler, running: set[asyncio.Task[None]]) -> ConnectionHandler:
    """Return a handler that adds its tasks to `running`, because closing a server does not end
    them."""

    async def handle_tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    return handle_tracked


async def copy_stream(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
        sink.write_eof()


@dataclass(frozen=True, kw_only=True)
class ProxyPair:
    """A guarded proxy and an open one, each on a socket, and the target behind both.

    The guarded one lets jails reach port `tls` of localhost with TLS, and port `plain` without.
    """

    target: TargetServer
    egress: EgressProxy
    listener: socket.socket
    guarded: Path
    open: Path
    tls: int
    plain: int

    def take_blocked(self) -> list[Blocked]:
        """Return what was blocked since the last call, as the worker reads it."""
        return list(parse_report(json.dumps(self.egress.take_report()).encode()).blocked)

    def fill_ports(self, text: str) -> str:
        """Return a text with the ports for @T (with TLS) and @P (without)."""
        return text.replace("@T", str(self.tls)).replace("@P", str(self.plain))


async def resolve_to_this_machine(_host: str, _port: int) -> Sequence[str]:
    return ["127.0.0.1"]


async def cancel_tasks(running: set[asyncio.Task[None]]) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@contextlib.asynccontextmanager
async def open_proxies(
    folder: Path,
    *,
    caps: ProxyLimits | None = None,
    resolve: ResolveHost = resolve_to_this_machine,
    handle: ConnectionHandler | None = None,
    tls_context: ssl.SSLContext | None = None,
) -> AsyncIterator[ProxyPair]:
    """Start the proxies with their sockets in `folder`, and the target. `handle` replaces what the
    target does, and `tls_context` makes it speak TLS on its port for TLS."""
    async with contextlib.AsyncExitStack() as stack:
        target = TargetServer()
        running = set()
        stack.push_async_callback(cancel_tasks, running)
        handle_tracked = track_tasks(handle or target.handle, running)
        servers = [
            await asyncio.start_server(handle_tracked, "127.0.0.1", 0, ssl=context)
            for context in (tls_context, None)
        ]
        open_proxy = await asyncio.start_unix_server(
            track_tasks(forward_anything, running), folder / "open"
        )
        for server in (*servers, open_proxy):
            stack.callback(server.close)
        tls, plain = (server.sockets[0].getsockname()[1] for server in servers)
        allowed = [
            AllowedHost(host="localhost", port=tls, own=True),
            AllowedHost(host="localhost", port=plain, own=True, plain=True),
            AllowedHost(host="*.wild.example", port=tls),
        ]
        egress = EgressProxy(allowed, resolve, caps)
        listener = stack.enter_context(make_listener(folder / "guarded", None))
        stack.callback((folder / "guarded").unlink)
        await stack.enter_async_context(egress.serve_listener(listener))
        yield ProxyPair(
            target=target,
            egress=egress,
            listener=listener,
            guarded=folder / "guarded",
            open=folder / "open",
            tls=tls,
            plain=plain,
        )


async def send_messages(path: Path, *messages: bytes) -> bytes:
    """Send messages to a proxy, each after the answer to the one before, and return all that it
    answers."""
    reader, writer = await asyncio.open_unix_connection(path)
    answer = b""
    with contextlib.suppress(OSError):
        async with asyncio.timeout(5):
            for message in messages[:-1]:
                writer.write(message)
                answer += await reader.read(1 << 16)
            writer.write(messages[-1])
            writer.write_eof()
            answer += await reader.read()
    await close_writer(writer)
    return answer
