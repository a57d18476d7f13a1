"""The processes of Osiris: web, worker, or both in one, until they are told to end."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable

import uvicorn

from osiris.bootstrap import Osiris, background
from osiris.config.guest import listening
from osiris.config.settings import Settings
from osiris.errors import Refused


async def serve(osiris: Osiris, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """The web side, and the worker if `osiris` has one, until SIGINT or SIGTERM; `ready` is told the address."""
    config = uvicorn.Config(
        osiris.app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,  # the worker needs the rest of the ten seconds that it is given
    )
    server = uvicorn.Server(config)
    gc.collect()
    gc.freeze()  # what was imported stays: a collection that walks all of it would stop the web side for 0.1 s
    async with osiris.running(), background(_announce(server, ready)):
        serving = asyncio.create_task(server.serve(sockets=[_listener(osiris.settings)]))
        try:
            await asyncio.shield(serving)
        finally:
            server.should_exit = True  # whoever cancels us still gets every socket closed
            await serving


async def work(osiris: Osiris, *, ready: Callable[[str], None] = lambda name: None) -> None:
    """The worker alone, until SIGINT or SIGTERM."""
    if osiris.worker is None:
        raise Refused(f"a worker needs these settings, too: {', '.join(osiris.settings.missing())}")
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    async with osiris.running():
        ready(socket.gethostname())
        await end.wait()


@contextlib.asynccontextmanager
async def as_guest(osiris: Osiris) -> AsyncIterator[None]:
    """Web and worker inside somebody else's process, until the block ends."""
    async with osiris.running(), listening(osiris.app, _listener(osiris.settings), grace=5):
        yield


def _listener(settings: Settings) -> socket.socket:
    where = (settings.osiris_host, settings.osiris_port)
    try:
        return socket.create_server(where, family=socket.AF_INET6 if ":" in where[0] else socket.AF_INET, backlog=2048)
    except OSError as error:
        told = error.strerror or str(error)
        raise Refused(f"cannot listen on {where[0]}:{where[1]}: {told}; set OSIRIS_HOST or OSIRIS_PORT") from None


async def _announce(server: uvicorn.Server, ready: Callable[[str], None]) -> None:
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
