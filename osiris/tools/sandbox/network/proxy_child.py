"""The entry point of a session's proxy process: it drops its privileges, and then serves one
session.

The worker starts it (`proxy_process.py`) with the socket that jails connect to, a memory file with
the list of hosts, and a pipe in each direction (its stdin and stdout). A byte from the worker
requests a report; the end of the pipe means that the worker has ended. Pipes carry no descriptors,
so even a proxy that a jail has taken over cannot pass a socket to the worker.

All modules are imported before the privileges are dropped: afterwards the process may not be able
to read this code or Python's library, which only root may be able to read.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final

from osiris.tools.sandbox.network.addresses import AllowedHost, Resolver
from osiris.tools.sandbox.network.egress_proxy import EgressProxy, ProxyLimits

MOST_SETTINGS: Final = 1 << 24  # bytes
MEMORY: Final = 1 << 30  # bytes of addresses; a proxy with 100 busy connections uses a tenth of it
DESCRIPTORS: Final = 1024  # each connection needs two
KILLED_EARLY: Final = 500  # when memory runs out: after the jails, before the worker
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Serve one session. Arguments: the folder of the code, the descriptors of the socket and of
    the settings."""
    listener = socket.socket(fileno=int(sys.argv[2]))
    settings = json.loads(os.pread(int(sys.argv[3]), MOST_SETTINGS, 0))
    os.close(int(sys.argv[3]))
    _drop_privileges(settings["uid"])
    asyncio.run(_serve_session(listener, settings))
    os._exit(0)  # without waiting for the threads that resolve names


def _drop_privileges(uid: int | None) -> None:
    """Change to user `uid` (None: keep the user), and set the limits. No process of that user may
    trace this one."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(KILLED_EARLY))
    _set_limit(resource.RLIMIT_AS, MEMORY)
    _set_limit(resource.RLIMIT_FSIZE, 0)
    _set_limit(resource.RLIMIT_CORE, 1)  # see `disable_core_dumps` in jail/process.py
    _set_limit(resource.RLIMIT_NOFILE, DESCRIPTORS)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _set_attribute(
        PR_SET_PDEATHSIG, signal.SIGKILL
    )  # set after the change of user, which resets it
    _set_attribute(PR_SET_DUMPABLE, 0)
    _set_attribute(PR_SET_NO_NEW_PRIVS, 1)


def _set_limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(kind, (most, most))


def _set_attribute(option: int, value: int) -> None:
    if ctypes.CDLL(None).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(f"prctl({option}) failed")


async def _serve_session(listener: socket.socket, settings: Mapping[str, Any]) -> None:
    allowed = [AllowedHost(**each) for each in settings["allowed"]]
    egress = EgressProxy(allowed, Resolver(), ProxyLimits(**settings["caps"]))
    control = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(control)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    async with egress.serve_listener(listener):
        while await control.read(1):
            await egress.close_connections(listener)
            _write_report(egress)
        os._exit(0)


def _write_report(egress: EgressProxy) -> None:
    """Write the length (4 bytes) and the report as JSON. This may block until the worker reads it;
    no jail waits for it."""
    text = json.dumps(egress.take_report()).encode()
    data = memoryview(len(text).to_bytes(4, "big") + text)
    while data:
        data = data[os.write(1, data) :]
