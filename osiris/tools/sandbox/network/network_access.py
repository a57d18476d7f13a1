"""Which way out each session has: a folder in which its proxy listens, the hosts that lets through, and what package
tools inside have to be told."""

import asyncio
import contextlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from osiris.core.policy import REGISTRIES
from osiris.tools.sandbox.jail.bwrap_arguments import SYSTEM_PATH
from osiris.tools.sandbox.network import package_registries
from osiris.tools.sandbox.network.addresses import Allowed
from osiris.tools.sandbox.network.package_registries import Registries
from osiris.tools.sandbox.network.proxy_process import ProxyProcess
from osiris.tools.sandbox.options import Options

LIFE = 600.0  # seconds for which what the package tools said is believed


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """`folder` is shown to the jail, `environment` and `cargo` (a folder with a file of cargo's) are for its tools."""

    folder: Path
    egress: ProxyProcess
    environment: Mapping[str, str]
    cargo: Path | None


class Ways:
    """The ways out of the sessions that are open in this process."""

    def __init__(self, root: Path, options: Options) -> None:
        self._folder, self._options = root / "@out", options
        self._ways: dict[str, Way] = {}
        self._asking = asyncio.Lock()
        self._registries: Registries | None = None
        self._until = 0.0

    async def open(self, name: str, hosts: Sequence[str], *, for_setup: bool) -> Way | None:
        """The way of session `name`; None when it has none: the operator allows none, or nobody asked for one."""
        self.forget(name)
        if self._options.network == "none" or (not for_setup and (self._options.network != "agent" or not hosts)):
            return None
        found = Registries()
        if for_setup or REGISTRIES in hosts:
            found = await self._known()
        named = (_allowed(host) for host in hosts if host != REGISTRIES)
        folder = self._folder / name
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        egress = ProxyProcess(folder, [*found.allowed, *named])
        egress.shown.mkdir(mode=0o711, exist_ok=True)
        way = Way(
            folder=egress.shown,
            egress=egress,
            environment=found.environment,
            cargo=self._write_down(found.cargo),
        )
        self._ways[name] = way
        return way

    def egress(self, name: str) -> ProxyProcess | None:
        """Return the proxy of session `name`, which who uses it has to start; None without a way out."""
        way = self._ways.get(name)
        return way.egress if way else None

    def forget(self, name: str) -> None:
        if way := self._ways.pop(name, None):
            way.egress.end()
        shutil.rmtree(self._folder / name, ignore_errors=True)

    async def _known(self) -> Registries:
        """What this machine's tools are configured for: asked now and then, for it takes seconds, and one that gave no
        answer may give it later."""
        async with self._asking:
            if self._registries is None or time.monotonic() > self._until:
                inside = [*(str(chain / "bin") for chain in self._options.toolchains), SYSTEM_PATH]
                path = ":".join([*inside, self._options.environment.get("PATH", "")])
                self._registries = await asyncio.to_thread(package_registries.ask, path, self._options.environment)
                self._until = time.monotonic() + LIFE
            return self._registries

    def _write_down(self, cargo: str) -> Path | None:
        if not cargo:
            return None
        folder = self._folder / "@cargo"
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / "config.toml").write_text(cargo)
        return folder


def _allowed(host: str) -> Allowed:
    name, _, port = host.partition(":")
    return Allowed(host=name, port=int(port or 443))
