"""An HTTP server inside somebody else's process."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

import uvicorn


@cache
def create_tls_context() -> ssl.SSLContext:
    """The machine's trusted certificates, read once in a process: a client for each guest would
    read them anew."""
    return ssl.create_default_context()


class EmbeddedServer(uvicorn.Server):
    """uvicorn that leaves the signals to its host, says when it is ready, and ends when told, not
    at the next tick."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._stop_requested = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        await self._stop_requested.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's own, which rests for tenths of a second: guests come and go in
        milliseconds."""
        loop = asyncio.get_running_loop()
        for listener in (listener for server in self.servers for listener in server.sockets):
            loop.remove_reader(listener.fileno())
        # Turns in which what was just accepted becomes a connection: with its server closed by
        # then, asyncio loses it.
        for _ in range(3):
            await asyncio.sleep(0)
        for server in self.servers:
            server.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:
                    for connection in list(self.server_state.connections):
                        connection.shutdown()
                    await asyncio.sleep(0.002)
        for task in self.server_state.tasks:
            task.cancel()

    def request_stop(self) -> None:
        self.should_exit = True
        self._stop_requested.set()


@contextlib.asynccontextmanager
async def serve_app(app: Any, listener: socket.socket, *, grace: int) -> AsyncIterator[None]:
    """Serve an ASGI app on a socket until the block ends; `grace` are the seconds its last answers
    may take."""
    # Head and body of an answer are two writes, and the second must not wait for the other side to
    # acknowledge the first (40 ms). Connections inherit it; asyncio sees to it only for sockets
    # that were made with IPPROTO_TCP.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(
        app,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=grace,
    )
    server = EmbeddedServer(config)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await server.ready.wait()
    try:
        yield
    finally:
        server.request_stop()
        await running
        listener.close()
