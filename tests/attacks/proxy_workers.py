"""A worker with other proxies: as they once were, as on an older kernel, or taken over."""

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

NO_OPTION = 9999  # of a socket: no kernel has it
IN_THE_WORKER = ("in the worker", "without limits")
LIMITS = [
    *((module, "LONGEST_REASON") for module in (egress_proxy, proxy_report, shell)),
    *((shell, name) for name in ("LONGEST_NAME", "MOST_BLOCKED")),
]


class ProxyInTheWorker(ProxyProcess):
    """The proxy in the worker's own event loop, for controls. One resolver serves all sessions."""

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


class ProxyWorker(worker.AttackedWorker):
    """A worker that can be told which proxies its next sessions have."""

    async def use(self, how: str = "", *, child: str = "") -> None:
        """Choose the proxy of the next sessions.

        `how`: "" as it is, "older kernel", "in the worker", "without limits" (and in the worker).
        `child`: code that runs in the process in the proxy's place.
        """
        for (module, name), value in WITH_LIMITS.items():
            setattr(module, name, 1 << 40 if how == "without limits" else value)
        egress_proxy.quote_name = ascii if how == "without limits" else QUOTE_NAME
        proxy_process.SO_PASSRIGHTS = NO_OPTION if how else SO_PASSRIGHTS
        proxy_process.CHILD = f"# proxy_child\n{child}" if child else CHILD
        proxy_process.START_TIMEOUT = proxy_process.REPORT_TIMEOUT if child else START_TIMEOUT
        network_access.ProxyProcess = ProxyInTheWorker if how in IN_THE_WORKER else ProxyProcess


WITH_LIMITS: dict[Any, int] = {(module, name): getattr(module, name) for module, name in LIMITS}
QUOTE_NAME, CHILD = egress_proxy.quote_name, proxy_process.CHILD
SO_PASSRIGHTS, START_TIMEOUT = proxy_process.SO_PASSRIGHTS, proxy_process.START_TIMEOUT

if __name__ == "__main__":
    worker.AttackedWorker = ProxyWorker
    worker.main()
    sys.stdout.flush()
    os._exit(0)  # threads that still look something up are not waited for
