"""The network access of each session: its egress proxy with the allowed hosts, and the
configuration of the package tools inside."""

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
from osiris.tools.sandbox.network.addresses import AllowedHost
from osiris.tools.sandbox.network.package_registries import PackageRegistries
from osiris.tools.sandbox.network.proxy_process import ProxyProcess
from osiris.tools.sandbox.options import SandboxOptions

LIFE = 600.0  # seconds for which the answers of the package tools are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionNetwork:
    """The network access of one session. `folder` is mounted in the jail; `environment` and `cargo`
    (a folder with a configuration file of cargo) are for the tools inside."""

    folder: Path
    proxy: ProxyProcess
    environment: Mapping[str, str]
    cargo: Path | None


class NetworkAccess:
    """The network access of the sessions that are open in this process."""

    def __init__(self, root: Path, options: SandboxOptions) -> None:
        self._folder = root / "@out"
        self._options = options
        self._networks: dict[str, SessionNetwork] = {}
        self._asking = asyncio.Lock()
        self._registries: PackageRegistries | None = None
        self._until = 0.0

    async def open_network(
        self, name: str, hosts: Sequence[str], *, for_setup: bool
    ) -> SessionNetwork | None:
        """Create the network access of session `name`. Return None when the operator allows none,
        or the plan asks for none."""
        self.close_network(name)
        if self._options.network == "none" or (
            not for_setup and (self._options.network != "agent" or not hosts)
        ):
            return None
        found = PackageRegistries()
        if for_setup or REGISTRIES in hosts:
            found = await self._load_registries()
        named = (_parse_allowed_host(host) for host in hosts if host != REGISTRIES)
        folder = self._folder / name
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        egress = ProxyProcess(folder, [*found.allowed, *named])
        egress.jail_folder.mkdir(mode=0o711, exist_ok=True)
        network = SessionNetwork(
            folder=egress.jail_folder,
            proxy=egress,
            environment=found.environment,
            cargo=self._write_cargo_config(found.cargo),
        )
        self._networks[name] = network
        return network

    def get_proxy(self, name: str) -> ProxyProcess | None:
        """Return the proxy of session `name`, which the caller must start; None without network
        access."""
        network = self._networks.get(name)
        return network.proxy if network else None

    def close_network(self, name: str) -> None:
        if network := self._networks.pop(name, None):
            network.proxy.stop()
        shutil.rmtree(self._folder / name, ignore_errors=True)

    async def _load_registries(self) -> PackageRegistries:
        """Return the registries that this machine's tools are configured for.

        The answers are kept for a while, because asking takes seconds; then the tools are asked
        again, because one that failed may answer later.
        """
        async with self._asking:
            if self._registries is None or time.monotonic() > self._until:
                inside = [*(str(chain / "bin") for chain in self._options.toolchains), SYSTEM_PATH]
                path = ":".join([*inside, self._options.environment.get("PATH", "")])
                self._registries = await asyncio.to_thread(
                    package_registries.detect_registries, path, self._options.environment
                )
                self._until = time.monotonic() + LIFE
            return self._registries

    def _write_cargo_config(self, cargo: str) -> Path | None:
        if not cargo:
            return None
        folder = self._folder / "@cargo"
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / "config.toml").write_text(cargo)
        return folder


def _parse_allowed_host(host: str) -> AllowedHost:
    name, _, port = host.partition(":")
    return AllowedHost(host=name, port=int(port or 443))
