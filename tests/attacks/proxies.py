"""A guarded proxy and one that lets everybody through, with a target behind both, and a client of
bad manners."""

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
Meet = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class TargetServer:
    """A server of 127.0.0.1: what came to it, and how many came."""

    def __init__(self) -> None:
        self.heard = b""
        self.callers = 0
        self.port = 0

    async def meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.callers += 1
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.heard += data
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nreached"
                )
                if b"Connection: close" in data:
                    break
        await shut(writer)


async def shut(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def permit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A proxy that lets everybody through, and for which every name leads to this machine."""
    head = await reader.readuntil(b"\r\n\r\n")
    port = int(re.findall(rb":(\d{4,5})", head)[0])
    there = await asyncio.open_connection("127.0.0.1", port)
    try:
        await passing(head, (reader, writer), there)
    finally:
        there[1].close()


async def passing(head: bytes, here: Stream, there: Stream) -> None:
    if head.startswith(b"CONNECT"):
        here[1].write(b"HTTP/1.1 200 OK\r\n\r\n")
    else:
        there[1].write(head)
    await asyncio.gather(pump(here[0], there[1]), pump(there[0], here[1]))


def kept(meet: Meet, running: set[asyncio.Task[None]]) -> Meet:
    """The same, with its tasks in `running`: a server that is closed leaves them alone."""

    async def meet_(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())
        try:
            await meet(reader, writer)
        finally:
            writer.close()

    return meet_


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
        sink.write_eof()


@dataclass(frozen=True, kw_only=True)
class ProxyPair:
    """A guarded proxy and one that lets everybody through, each on a socket, and the target behind
    both.

    The guarded one lets jails to port `tls` of localhost, with TLS, and to its port `plain`,
    without.
    """

    target: TargetServer
    egress: EgressProxy
    listener: socket.socket
    guarded: Path
    open: Path
    tls: int
    plain: int

    def take_blocked(self) -> list[Blocked]:
        """What was not let through since this was asked last, as the worker reads it."""
        return list(parse_report(json.dumps(self.egress.take_report()).encode()).blocked)

    def filled(self, words: str) -> str:
        """With these ports in it."""
        return words.replace("@T", str(self.tls)).replace("@P", str(self.plain))


async def everywhere(_host: str, _port: int) -> Sequence[str]:
    return ["127.0.0.1"]


async def end(running: set[asyncio.Task[None]]) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


@contextlib.asynccontextmanager
async def opening(
    place: Path,
    *,
    caps: ProxyLimits | None = None,
    resolve: ResolveHost = everywhere,
    meet: Meet | None = None,
    secure: ssl.SSLContext | None = None,
) -> AsyncIterator[ProxyPair]:
    """A wire below `place`; `meet` is what the target does, `secure` makes it speak TLS where it
    should."""
    async with contextlib.AsyncExitStack() as stack:
        target = TargetServer()
        running = set()
        stack.push_async_callback(end, running)
        answer = kept(meet or target.meet, running)
        servers = [
            await asyncio.start_server(answer, "127.0.0.1", 0, ssl=s) for s in (secure, None)
        ]
        for server in (
            *servers,
            await asyncio.start_unix_server(kept(permit, running), place / "open"),
        ):
            stack.callback(server.close)
        at, plain = (server.sockets[0].getsockname()[1] for server in servers)
        listed = [
            AllowedHost(host="localhost", port=at, own=True),
            AllowedHost(host="localhost", port=plain, own=True, plain=True),
            AllowedHost(host="*.wild.example", port=at),
        ]
        egress = EgressProxy(listed, resolve, caps)
        listener = stack.enter_context(make_listener(place / "guarded", None))
        stack.callback((place / "guarded").unlink)
        await stack.enter_async_context(egress.serve_listener(listener))
        yield ProxyPair(
            target=target,
            egress=egress,
            listener=listener,
            guarded=place / "guarded",
            open=place / "open",
            tls=at,
            plain=plain,
        )


async def say(path: Path, *words: bytes) -> bytes:
    """Everything that a proxy answers; each of the words is said when there was an answer to the
    one before."""
    reader, writer = await asyncio.open_unix_connection(path)
    answer = b""
    with contextlib.suppress(OSError):
        async with asyncio.timeout(5):
            for word in words[:-1]:
                writer.write(word)
                answer += await reader.read(1 << 16)
            writer.write(words[-1])
            writer.write_eof()
            answer += await reader.read()
    await shut(writer)
    return answer
