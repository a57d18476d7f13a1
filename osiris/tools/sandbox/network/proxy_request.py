"""The requests that a jail may send to its egress proxy: CONNECT, or a plain GET to a mirror
without TLS. RFC 9110, section 9.3.6."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from osiris.tools.sandbox.network.tls_client_hello import ProtocolRejected

HOST: Final = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[^\x00-\x08\x0a-\x1f\x7f]*")
NOT_PASSED_ON: Final = re.compile(
    r"(?i)connection|content-length|expect|host|keep-alive|proxy-.*|te|trailer|upgrade"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectRequest:
    """A request for a connection to a host; `plain` is the HTTP request to send to a host without
    TLS."""

    host: str
    port: int
    plain: bytes = b""


def parse_request(head: bytes) -> ConnectRequest:
    """Parse the head of a request. Raises ProtocolRejected for one that the proxy does not
    accept."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, version = rest.partition(" ")
    if version not in ("HTTP/1.0", "HTTP/1.1"):
        raise ProtocolRejected("it speaks no HTTP")
    if method == "CONNECT":
        host, _, port = target.rpartition(":")
        return ConnectRequest(host=_parse_host(host), port=_parse_port(port))
    if method not in ("GET", "HEAD"):
        raise ProtocolRejected("only CONNECT, and GET of a mirror, are let through")
    return _parse_plain(method, target, lines)


def _parse_plain(method: str, target: str, lines: Sequence[str]) -> ConnectRequest:
    try:
        parts = urlsplit(target)
    except ValueError:
        raise ProtocolRejected("it asks for no address") from None
    if parts.scheme != "http" or not re.fullmatch(r"[!-~]+", target):
        raise ProtocolRejected("it asks for no address")
    host, _, port = parts.netloc.partition(":")
    asked = [
        f"{method} {_format_path(parts)} HTTP/1.1",
        f"Host: {parts.netloc}",
        *_filter_headers(lines),
        "Connection: close",
    ]
    return ConnectRequest(
        host=_parse_host(host),
        port=_parse_port(port or "80"),
        plain="\r\n".join([*asked, "\r\n"]).encode("latin-1"),
    )


def _format_path(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _filter_headers(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        found = HEADER.fullmatch(line)
        if not found or found[1].lower() == "transfer-encoding":
            raise ProtocolRejected("its request is garbled")
        if not NOT_PASSED_ON.fullmatch(found[1]):
            yield line


def _parse_host(text: str) -> str:
    host = text.lower().removesuffix(".")
    if not HOST.fullmatch(host):
        raise ProtocolRejected("it names no host")
    return host


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII):
        raise ProtocolRejected("it names no port")
    return int(text)
