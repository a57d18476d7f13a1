"""Hostile connections: what a jail sends to the proxy, its only network access, to reach hosts that
it may not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from osiris.core.work import Blocked
from tests.attacks import tls
from tests.attacks.proxies import ProxyPair, close_writer, open_proxies, send_messages
from tests.attacks.worker import CANARY

SECRET = CANARY.encode()
NOT_LISTED = "it is not on the list of allowed hosts"
NO_HOST = "it names no host"
NO_ADDRESS = "it asks for no address"
GARBLED = "its request is garbled"
NO_HTTP = "it speaks no HTTP"
ONLY = "only CONNECT, and GET of a mirror, are let through"


@pytest.fixture
async def proxies(folder: Path) -> AsyncIterator[ProxyPair]:
    async with open_proxies(folder) as proxies:
        yield proxies


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class ProxyCase:
    """A request, and what the proxy reports of it. @T is the port with TLS, @P the one without."""

    request: str
    reason: str
    host: str = "?"
    port: str = "0"


def build_connect(target: str, reason: str, host: str = "?", port: str = "0") -> ProxyCase:
    return ProxyCase(
        request=f"CONNECT {target} HTTP/1.1\r\nHost: localhost:@T\r\n\r\n",
        reason=reason,
        host=host,
        port=port,
    )


def build_unlisted(host: str) -> ProxyCase:
    """Build a request for a host that is not on the list."""
    return build_connect(f"{host}:@T", NOT_LISTED, host.lower(), "@T")


def build_non_host(host: str) -> ProxyCase:
    """Build a request for something that is not a host."""
    return build_connect(f"{host}:@T", NO_HOST)


def build_get(
    url: str, *headers: str, reason: str, host: str = "?", port: str = "0", method: str = "GET"
) -> ProxyCase:
    request = "\r\n".join([f"{method} {url} HTTP/1.1", *headers, "", ""])
    return ProxyCase(request=request, reason=reason, host=host, port=port)


REQUESTS = {
    "another host": build_unlisted("other.example"),
    "another port": build_connect("localhost:@P", NOT_LISTED, "localhost", "@P"),
    "plain http to a host of TLS": build_get(
        "http://localhost:@T/", reason=NOT_LISTED, host="localhost", port="@T"
    ),
    "an address": build_unlisted("127.0.0.1"),
    "an address as one number": build_unlisted("2130706433"),
    "an address in hex": build_unlisted("0x7f000001"),
    "an address in octal": build_unlisted("0177.0.0.1"),
    "an address of IPv6": build_non_host("[::1]"),
    "an address of IPv4 in IPv6": build_non_host("[::ffff:127.0.0.1]"),
    "an ending": build_unlisted("localhost.evil.example"),
    "a beginning": build_unlisted("evillocalhost"),
    "the name of a wildcard itself": build_unlisted("wild.example"),
    "a wildcard without its dot": build_unlisted("xwild.example"),
    "a wildcard in the middle": build_unlisted("x.wild.example.evil.example"),
    "two dots at the end": build_non_host("localhost.."),
    "a dot at the beginning": build_non_host(".wild.example"),
    "a star": build_non_host("*.wild.example"),
    "punycode": build_unlisted("xn--lcalhost-55g"),
    "another alphabet": build_non_host("l\u043ecalhost".encode().decode("latin-1")),
    "a user before the host": build_non_host("localhost@evil.example"),
    "a host as the user": build_non_host("localhost:@T@evil.example"),
    "a user before the host, without TLS": build_get("http://u@localhost:@P/", reason=NO_HOST),
    "a host as the user, without TLS": build_get(
        "http://localhost:@P@evil.example:@P/", reason="it names no port"
    ),
    "a NUL in the host": build_non_host("localhost\0.evil.example"),
    "a percent sign in the host": build_non_host("localhost%00.evil.example"),
    "a path in the host": build_non_host("evil.example/localhost"),
    "a backslash in the host": build_non_host("evil.example\\localhost"),
    "a line break in the host": build_connect("localhost\r\nX: .evil.example:@T", NO_HTTP),
    "a bare line feed in the host": build_connect("localhost\n.evil.example:@T", NO_HOST),
    "a tab in the address": build_get("http://local\thost:@P/", reason=NO_ADDRESS),
    "no host": build_non_host(""),
    "no port": build_connect("localhost", NO_HOST),
    "a port that is none": build_connect("localhost:@Tx", "it names no port", "?"),
    "a port in other digits": build_connect(
        "localhost:\u0664\u0664\u0663".encode().decode("latin-1"), "it names no port"
    ),
    "another method": build_get("http://localhost:@P/", reason=ONLY, method="POST"),
    "another scheme": build_get("ftp://localhost:@P/", reason=NO_ADDRESS),
    "no scheme": build_get("/", "Host: localhost:@P", reason=NO_ADDRESS),
    "another host than the header says": build_get(
        "http://evil.example:@P/",
        "Host: localhost:@P",
        reason=NOT_LISTED,
        host="evil.example",
        port="@P",
    ),
    "HTTP of another kind": ProxyCase(
        request="CONNECT localhost:@T HTTP/2.0\r\n\r\n", reason=NO_HTTP
    ),
    "a request in two halves": build_get(
        "http://localhost:@P/", "Content-Length: 5", "Transfer-Encoding: chunked", reason=GARBLED
    ),
    "a header with a space before its colon": build_get(
        "http://localhost:@P/", "Transfer-Encoding : x", reason=GARBLED
    ),
    "a header that goes on": build_get(
        "http://localhost:@P/", "X: 1", " Host: evil.example", reason=GARBLED
    ),
    "a header with a bare line feed": build_get(
        "http://localhost:@P/", "X: 1\nHost: evil.example", reason=GARBLED
    ),
    "a header with a bare return": build_get(
        "http://localhost:@P/", "X: 1\rHost: evil.example", reason=GARBLED
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_for_what_may_not_be_reached(name, proxies, record_verdict):
    case = REQUESTS[name]
    request = proxies.fill_ports(case.request).encode("latin-1")
    answer = await send_messages(proxies.guarded, request, SECRET)
    port = int(proxies.fill_ports(case.port))
    blocked = Blocked(host=case.host, port=port, times=1, reason=case.reason)
    assert proxies.take_blocked() == [blocked]
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert (proxies.target.received, proxies.target.callers) == (b"", 0)
    await send_messages(proxies.open, request, SECRET)
    assert SECRET in proxies.target.received
    record_verdict(case.reason, "an open proxy let it through")


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────

NO_TLS = "it speaks no TLS"
NO_NAME = "its TLS hello names no host"
HELLO = tls.make_hello("localhost")
TUNNEL_STARTS: dict[str, tuple[bytes, str]] = {
    "a hello for another host": (
        tls.make_hello("evil.example"),
        "its TLS hello names another host: 'evil.example'",
    ),
    "a hello for nobody": (tls.make_hello(None), NO_NAME),
    "a hello that hides the host": (
        tls.add_extension(HELLO, tls.ENCRYPTED_HELLO, b"\0" * 40),
        "its TLS hello hides the host",
    ),
    "a hello that names two hosts": (
        tls.add_extension(
            tls.make_hello(None),
            tls.SERVER_NAME,
            tls.encode_server_names(b"localhost", b"evil.example"),
        ),
        "its TLS hello names more than one host",
    ),
    "a hello that names hosts twice": (
        tls.add_extension(HELLO, tls.SERVER_NAME, tls.encode_server_names(b"evil.example")),
        NO_NAME,
    ),
    "a hello that names a host with a NUL": (
        tls.add_extension(
            tls.make_hello(None),
            tls.SERVER_NAME,
            tls.encode_server_names(b"localhost\0.evil.example"),
        ),
        "its TLS hello names another host: 'localhost\\x00.evil.example'",
    ),
    "a hello with an empty name": (
        tls.add_extension(tls.make_hello(None), tls.SERVER_NAME, tls.encode_server_names(b"")),
        NO_NAME,
    ),
    "a hello whose lengths are wrong": (
        tls.split_records(b"\x01\0\0\x28" + HELLO[9:49], 64),
        "its TLS hello is garbled",
    ),
    "a hello in one-byte records for another host": (
        tls.split_records(tls.make_hello("evil.example")[5:], 1),
        "its TLS hello names another host: 'evil.example'",
    ),
    "a message that is no hello": (
        tls.split_records(b"\x02" + HELLO[6:], 1 << 14),
        "its TLS begins with no client's hello",
    ),
    "a record that is empty": (
        b"\x16\x03\x01\0\0" + HELLO,
        "its TLS begins with no client's hello",
    ),
    "an alert before the hello": (b"\x15\x03\x01\0\2\2\x31" + HELLO, NO_TLS),
    "HTTP in the tunnel": (b"GET /steal HTTP/1.1\r\nHost: localhost\r\n\r\n", NO_TLS),
    "ssh in the tunnel": (b"SSH-2.0-OpenSSH_9.2\r\n", NO_TLS),
    "the secret itself": (SECRET, NO_TLS),
}


@pytest.mark.parametrize("name", TUNNEL_STARTS)
async def test_a_tunnel_that_holds_something_else(name, proxies, record_verdict):
    start, reason = TUNNEL_STARTS[name]
    request = proxies.fill_ports("CONNECT localhost:@T HTTP/1.1\r\n\r\n").encode()
    answer = await send_messages(proxies.guarded, request, start + SECRET)
    blocked = Blocked(host="localhost", port=proxies.tls, times=1, reason=reason)
    assert proxies.take_blocked() == [blocked]
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\x15\x03\x01\0\2\2\x31")  # an alert: access denied
    assert proxies.target.received == b""
    await send_messages(proxies.open, request, start + SECRET)
    assert proxies.target.received == start + SECRET
    record_verdict(reason, "an open proxy let it through")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.make_certificate(tmp_path_factory.mktemp("tls"), ["localhost"])


@pytest.mark.parametrize("record_size", [1 << 14, 100, 1])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost."])
async def test_a_host_that_may_be_reached(host, record_size, pem, folder):
    """The spelling of the host does not matter, nor the number of records of the hello."""
    async with open_proxies(folder, tls_context=tls.make_server_context(pem)) as proxies:
        reader, writer = await asyncio.open_unix_connection(proxies.guarded)
        writer.write(proxies.fill_ports(f"CONNECT {host}:@T HTTP/1.1\r\n\r\n").encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        answer = await tls.send_get(reader, writer, pem, "localhost", record_size=record_size)
        assert answer.endswith(b"reached")
        await close_writer(writer)
        assert proxies.take_blocked() == []
