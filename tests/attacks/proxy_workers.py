"""A worker with other proxies: with earlier versions of them, on an older kernel, or with a
compromised one."""

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from osiris.tools import shell
from osiris.tools.sandbox.network import egress_proxy, network_access, proxy_process, proxy_report
from osiris.tools.sandbox.network.addresses import Resolver
from osiris.tools.sandbox.network.egress_proxy import EgressProxy
from osiris.tools.sandbox.network.proxy_process import ProxyProcess, make_listener
from tests.attacks import worker

UNKNOWN_OPTION = 9999  # a socket option that no kernel has
IN_THE_WORKER = ("in the worker", "without limits")
"""The modes in which the proxy runs in the worker's event loop."""
LIMITS = [
    *((module, "LONGEST_REASON") for module in (egress_proxy, proxy_report, shell)),
    *((shell, name) for name in ("LONGEST_NAME", "MOST_BLOCKED")),
]


class ProxyInTheWorker(ProxyProcess):
    """A proxy in the worker's own event loop, for controls. One resolver serves all sessions."""

    resolve = Resolver()

    def start(self, uid: int | None) -> None:
        self._listener = make_listener(self._socket, uid)
        self._egress = EgressProxy(self._allowed, self.resolve, self._caps)

    def stop(self) -> None:
        self._listener.close()

    @contextlib.asynccontextmanager
    async def listen_for_jails(self) -> AsyncIterator[Path]:
        path = self.jail_folder / self._socket.name
        os.link(self._socket, path)
        async with self._egress.serve_listener(self._listener):
            yield path
        path.unlink()
        self._record_report(
            proxy_report.parse_report(json.dumps(self._egress.take_report()).encode())
        )


class ProxyWorkerService(worker.WorkerService):
    """The methods of a worker whose next sessions can get other proxies."""

    async def choose_proxy(self, mode: str = "", *, child: str = "") -> None:
        """Choose the proxy of the next sessions.

        `mode` is "" for the proxy of Osiris, "older kernel", "in the worker", or "without limits",
        which is also in the worker. `child` is code that runs in the proxy's process instead of the
        proxy.
        """
        for (module, name), value in ORIGINAL_LIMITS.items():
            setattr(module, name, 1 << 40 if mode == "without limits" else value)
        egress_proxy.quote_name = ascii if mode == "without limits" else QUOTE_NAME
        proxy_process.SO_PASSRIGHTS = UNKNOWN_OPTION if mode else SO_PASSRIGHTS
        proxy_process.CHILD = f"# proxy_child\n{child}" if child else CHILD
        proxy_process.START_TIMEOUT = proxy_process.REPORT_TIMEOUT if child else START_TIMEOUT
        network_access.ProxyProcess = ProxyInTheWorker if mode in IN_THE_WORKER else ProxyProcess


ORIGINAL_LIMITS: dict[Any, int] = {(module, name): getattr(module, name) for module, name in LIMITS}
QUOTE_NAME, CHILD = egress_proxy.quote_name, proxy_process.CHILD
SO_PASSRIGHTS, START_TIMEOUT = proxy_process.SO_PASSRIGHTS, proxy_process.START_TIMEOUT

if __name__ == "__main__":
    worker.WorkerService = ProxyWorkerService
    worker.main()
    sys.stdout.flush()
    os._exit(0)  # do not wait for threads that still look up a name
