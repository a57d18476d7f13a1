"""Hostile connections: what a jail says to its only way out, to get to where it may not."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from osiris.core.work import Blocked
from tests.attacks import tls
from tests.attacks.proxies import ProxyPair, opening, say, shut
from tests.attacks.worker import CANARY

SECRET = CANARY.encode()
NOT_LISTED = "it is not on the list of allowed hosts"
NO_HOST = "it names no host"
NO_ADDRESS = "it asks for no address"
GARBLED = "its request is garbled"
NO_HTTP = "it speaks no HTTP"
ONLY = "only CONNECT, and GET of a mirror, are let through"


@pytest.fixture
async def wire(place: Path) -> AsyncIterator[ProxyPair]:
    async with opening(place) as made:
        yield made


# ── requests ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class ProxyCase:
    """What is said, and what is noted of it. @T is the port with TLS, @P that without."""

    first: str
    reason: str
    host: str = "?"
    port: str = "0"


def connect(to: str, reason: str, host: str = "?", port: str = "0") -> ProxyCase:
    return ProxyCase(
        first=f"CONNECT {to} HTTP/1.1\r\nHost: localhost:@T\r\n\r\n",
        reason=reason,
        host=host,
        port=port,
    )


def other(host: str) -> ProxyCase:
    """A host that is none of the list."""
    return connect(f"{host}:@T", NOT_LISTED, host.lower(), "@T")


def nobody(host: str) -> ProxyCase:
    """Something that is no host at all."""
    return connect(f"{host}:@T", NO_HOST)


def get(
    url: str, *headers: str, reason: str, host: str = "?", port: str = "0", method: str = "GET"
) -> ProxyCase:
    first = "\r\n".join([f"{method} {url} HTTP/1.1", *headers, "", ""])
    return ProxyCase(first=first, reason=reason, host=host, port=port)


REQUESTS = {
    "another host": other("other.example"),
    "another port": connect("localhost:@P", NOT_LISTED, "localhost", "@P"),
    "plain http to a host of TLS": get(
        "http://localhost:@T/", reason=NOT_LISTED, host="localhost", port="@T"
    ),
    "an address": other("127.0.0.1"),
    "an address as one number": other("2130706433"),
    "an address in hex": other("0x7f000001"),
    "an address in octal": other("0177.0.0.1"),
    "an address of IPv6": nobody("[::1]"),
    "an address of IPv4 in IPv6": nobody("[::ffff:127.0.0.1]"),
    "an ending": other("localhost.evil.example"),
    "a beginning": other("evillocalhost"),
    "the name of a wildcard itself": other("wild.example"),
    "a wildcard without its dot": other("xwild.example"),
    "a wildcard in the middle": other("x.wild.example.evil.example"),
    "two dots at the end": nobody("localhost.."),
    "a dot at the beginning": nobody(".wild.example"),
    "a star": nobody("*.wild.example"),
    "punycode": other("xn--lcalhost-55g"),
    "another alphabet": nobody("l\u043ecalhost".encode().decode("latin-1")),
    "a user before the host": nobody("localhost@evil.example"),
    "a host as the user": nobody("localhost:@T@evil.example"),
    "a user before the host, without TLS": get("http://u@localhost:@P/", reason=NO_HOST),
    "a host as the user, without TLS": get(
        "http://localhost:@P@evil.example:@P/", reason="it names no port"
    ),
    "a NUL in the host": nobody("localhost\0.evil.example"),
    "a percent sign in the host": nobody("localhost%00.evil.example"),
    "a path in the host": nobody("evil.example/localhost"),
    "a backslash in the host": nobody("evil.example\\localhost"),
    "a line break in the host": connect("localhost\r\nX: .evil.example:@T", NO_HTTP),
    "a bare line feed in the host": connect("localhost\n.evil.example:@T", NO_HOST),
    "a tab in the address": get("http://local\thost:@P/", reason=NO_ADDRESS),
    "no host": nobody(""),
    "no port": connect("localhost", NO_HOST),
    "a port that is none": connect("localhost:@Tx", "it names no port", "?"),
    "a port in other digits": connect(
        "localhost:\u0664\u0664\u0663".encode().decode("latin-1"), "it names no port"
    ),
    "another method": get("http://localhost:@P/", reason=ONLY, method="POST"),
    "another scheme": get("ftp://localhost:@P/", reason=NO_ADDRESS),
    "no scheme": get("/", "Host: localhost:@P", reason=NO_ADDRESS),
    "another host than the header says": get(
        "http://evil.example:@P/",
        "Host: localhost:@P",
        reason=NOT_LISTED,
        host="evil.example",
        port="@P",
    ),
    "HTTP of another kind": ProxyCase(
        first="CONNECT localhost:@T HTTP/2.0\r\n\r\n", reason=NO_HTTP
    ),
    "a request in two halves": get(
        "http://localhost:@P/", "Content-Length: 5", "Transfer-Encoding: chunked", reason=GARBLED
    ),
    "a header with a space before its colon": get(
        "http://localhost:@P/", "Transfer-Encoding : x", reason=GARBLED
    ),
    "a header that goes on": get(
        "http://localhost:@P/", "X: 1", " Host: evil.example", reason=GARBLED
    ),
    "a header with a bare line feed": get(
        "http://localhost:@P/", "X: 1\nHost: evil.example", reason=GARBLED
    ),
    "a header with a bare return": get(
        "http://localhost:@P/", "X: 1\rHost: evil.example", reason=GARBLED
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_request_for_what_may_not_be_reached(name, wire, verdict):
    row = REQUESTS[name]
    first = wire.filled(row.first).encode("latin-1")
    answer = await say(wire.guarded, first, SECRET)
    noted = Blocked(host=row.host, port=int(wire.filled(row.port)), times=1, reason=row.reason)
    assert wire.take_blocked() == [noted]
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert (wire.target.heard, wire.target.callers) == (b"", 0)
    await say(wire.open, first, SECRET)
    assert SECRET in wire.target.heard
    verdict(row.reason, "an open proxy let it through")


# ── TLS ───────────────────────────────────────────────────────────────────────────────────────────

NO_TLS = "it speaks no TLS"
NO_NAME = "its TLS hello names no host"
HELLO = tls.hello("localhost")
STARTS: dict[str, tuple[bytes, str]] = {
    "a hello for another host": (
        tls.hello("evil.example"),
        "its TLS hello names another host: 'evil.example'",
    ),
    "a hello for nobody": (tls.hello(None), NO_NAME),
    "a hello that hides the host": (
        tls.extended(HELLO, tls.ENCRYPTED_HELLO, b"\0" * 40),
        "its TLS hello hides the host",
    ),
    "a hello that names two hosts": (
        tls.extended(tls.hello(None), tls.SERVER_NAME, tls.named(b"localhost", b"evil.example")),
        "its TLS hello names more than one host",
    ),
    "a hello that names hosts twice": (
        tls.extended(HELLO, tls.SERVER_NAME, tls.named(b"evil.example")),
        NO_NAME,
    ),
    "a hello that names a host with a NUL": (
        tls.extended(tls.hello(None), tls.SERVER_NAME, tls.named(b"localhost\0.evil.example")),
        "its TLS hello names another host: 'localhost\\x00.evil.example'",
    ),
    "a hello with an empty name": (
        tls.extended(tls.hello(None), tls.SERVER_NAME, tls.named(b"")),
        NO_NAME,
    ),
    "a hello whose lengths are wrong": (
        tls.in_records(b"\x01\0\0\x28" + HELLO[9:49], 64),
        "its TLS hello is garbled",
    ),
    "a hello in one-byte records for another host": (
        tls.in_records(tls.hello("evil.example")[5:], 1),
        "its TLS hello names another host: 'evil.example'",
    ),
    "a message that is no hello": (
        tls.in_records(b"\x02" + HELLO[6:], 1 << 14),
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


@pytest.mark.parametrize("name", STARTS)
async def test_a_tunnel_that_holds_something_else(name, wire, verdict):
    start, reason = STARTS[name]
    first = wire.filled("CONNECT localhost:@T HTTP/1.1\r\n\r\n").encode()
    answer = await say(wire.guarded, first, start + SECRET)
    noted = Blocked(host="localhost", port=wire.tls, times=1, reason=reason)
    assert wire.take_blocked() == [noted]
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\x15\x03\x01\0\2\2\x31")  # an alert: access denied
    assert wire.target.heard == b""
    await say(wire.open, first, start + SECRET)
    assert wire.target.heard == start + SECRET
    verdict(reason, "an open proxy let it through")


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tls.certify(tmp_path_factory.mktemp("tls"), ["localhost"])


@pytest.mark.parametrize("most", [1 << 14, 100, 1])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost."])
async def test_a_host_that_may_be_reached(host, most, pem, place):
    """However it is written, and in however many records its hello comes."""
    async with opening(place, secure=tls.server(pem)) as wire:
        reader, writer = await asyncio.open_unix_connection(wire.guarded)
        writer.write(wire.filled(f"CONNECT {host}:@T HTTP/1.1\r\n\r\n").encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert (await tls.ask(reader, writer, pem, "localhost", most=most)).endswith(b"reached")
        await shut(writer)
        assert wire.take_blocked() == []
