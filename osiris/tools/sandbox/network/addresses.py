"""The hosts and addresses that a jail's egress proxy may reach."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from osiris.tools.sandbox.network.proxy_request import ConnectRequest

NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
INNER: Final = tuple(
    map(
        ipaddress.ip_network,
        ("168.63.129.16/32", "192.0.0.0/24", "::/96", "64:ff9b:1::/48", "fec0::/10"),
    )
)
"""Networks that some versions of Python call global: the metadata services of Azure and Oracle;
IPv4 in IPv6 in its old form and for local translation; and the private addresses of an older
IPv6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedHost:
    """A host that may be reached: its name, or `*.` and the end of its name. `own`: this machine's
    configuration names it, so its address may be a private one; `plain`: connections to it use no
    TLS."""

    host: str
    port: int = 443
    own: bool = False
    plain: bool = False

    def covers_target(self, request: ConnectRequest) -> bool:
        named = (
            request.host.endswith(self.host[1:])
            if self.host.startswith("*.")
            else request.host == self.host
        )
        return named and (request.port, bool(request.plain)) == (self.port, self.plain)


ResolveHost = Callable[[str, int], Awaitable[Sequence[str]]]
"""A function (host, port) -> the host's addresses. Raises OSError."""


class Resolver:
    """A resolver that uses this machine's name resolution, in separate threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4, "resolver")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, _resolve_host, host, port
        )


def _resolve_host(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a host. Raises OSError.

    The name is passed as bytes: for a str Python imports a codec, which the proxy's user may not be
    able to read.
    """
    found = socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def may_reach(address: str, host: str, *, own: bool) -> bool:
    """Return whether a host may be reached at an address: a public one, or a private one for a host
    of this machine's `own` configuration.

    Even such a host must not resolve to this machine, because names can change their addresses;
    only a configuration that names localhost or the loopback address itself allows it.
    """
    ip = _unwrap_ipv4(ipaddress.ip_address(address.partition("%")[0]))
    if ip.is_multicast or ip.is_link_local or ip.is_unspecified:
        return False
    if ip.is_loopback:
        return own and (host == "localhost" or host == address)
    return own or (ip.is_global and not any(ip in network for network in INNER))


def _unwrap_ipv4(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address that an IPv6 address contains; without one the address itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if ip in NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)
