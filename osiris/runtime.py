"""The processes of Osiris: web server, worker, or both in one, until they are stopped."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable

from osiris.bootstrap import Osiris, run_in_background
from osiris.config.http_server import serve_app
from osiris.config.settings import Settings
from osiris.core.errors import Refused

log = logging.getLogger(__name__)


async def serve(osiris: Osiris, *, ready: Callable[[str], None] = lambda url: None) -> None:
    """Run the web server, and the worker if `osiris` has one, until SIGINT or SIGTERM.

    `ready` is called with the address.
    """
    end = _watch_signals()
    gc.collect()
    # imported objects stay; a collection that visits all of them stalls the web server for 0.1 s
    gc.freeze()
    async with osiris.start_services():
        listener = _open_listener(osiris.settings)
        async with (
            serve_app(osiris.app, listener, grace=2),
            run_in_background(_log_failed_probes(osiris)),
        ):
            ready(_format_url(listener))
            await end.wait()  # `grace` leaves the worker the rest of its ten seconds


async def run_worker(osiris: Osiris, *, ready: Callable[[str], None] = lambda name: None) -> None:
    """Run the worker alone, until SIGINT or SIGTERM."""
    if osiris.worker is None:
        raise Refused(
            f"a worker needs these settings, too: {', '.join(osiris.settings.list_missing())}"
        )
    end = _watch_signals()
    async with osiris.start_services(), run_in_background(_log_failed_probes(osiris)):
        ready(socket.gethostname())
        await end.wait()


async def _log_failed_probes(osiris: Osiris) -> None:
    """Log the failed checks of the sandbox, before the first run has to be refused."""
    for probe in await osiris.sandbox.probe() if osiris.worker and osiris.sandbox else ():
        if not probe.ok:
            effect = (
                "no run can start"
                if probe.needed
                else "the sandbox is a weak one, which pull requests will say"
            )
            log.warning("%s: %s: %s. %s", effect, probe.name, probe.detail, probe.fix)


def _watch_signals() -> asyncio.Event:
    """Return an event that SIGINT and SIGTERM set, so that the process can shut down in order."""
    end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    return end


@contextlib.asynccontextmanager
async def run_embedded(osiris: Osiris) -> AsyncIterator[None]:
    """Run the web server and the worker inside another process, until the block ends."""
    async with (
        osiris.start_services(),
        serve_app(osiris.app, _open_listener(osiris.settings), grace=5),
    ):
        yield


def _open_listener(settings: Settings) -> socket.socket:
    where = (settings.osiris_host, settings.osiris_port)
    try:
        return socket.create_server(
            where, family=socket.AF_INET6 if ":" in where[0] else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        told = error.strerror or str(error)
        raise Refused(
            f"cannot listen on {where[0]}:{where[1]}: {told}; set OSIRIS_HOST or OSIRIS_PORT"
        ) from None


def _format_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
