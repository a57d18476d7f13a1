"""An HTTP server that runs inside another process."""

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
    """Return a context with the machine's trusted certificates.

    They are read once in a process, because otherwise each HTTP client would read them again.
    """
    return ssl.create_default_context()


class EmbeddedServer(uvicorn.Server):
    """A uvicorn server that leaves signals to its host, reports when it is ready, and stops at once
    when requested, not at the next tick."""

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
        """Shut down like uvicorn, but without its pauses of tenths of a second: embedded servers
        start and stop within milliseconds."""
        loop = asyncio.get_running_loop()
        for listener in (listener for server in self.servers for listener in server.sockets):
            loop.remove_reader(listener.fileno())
        # Iterations of the loop in which a socket just accepted becomes a connection; if its
        # server were closed by then, asyncio would lose it.
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
    """Serve an ASGI app on a socket until the block ends.

    `grace` is the number of seconds that its last answers may take.
    """
    # Head and body of an answer are two writes, and the second must not wait until the other side
    # acknowledges the first (40 ms). Connections inherit the option; asyncio sets it only for
    # sockets created with IPPROTO_TCP.
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
