"""Hostile use of the proxy for hosts that are allowed: too much data, too slowly, too many
connections, or more than was requested."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from osiris.core.work import Blocked
from osiris.tools.sandbox.network.addresses import may_reach
from osiris.tools.sandbox.network.egress_proxy import (
    LONGEST_REASON,
    MOST_NAMES,
    OTHERS,
    ProxyLimits,
)
from osiris.tools.sandbox.network.proxy_report import LONGEST_UNREACHABLE, MOST_REPORT, parse_report
from osiris.tools.sandbox.network.tls_client_hello import LONGEST_NAME
from tests.attacks import tls
from tests.attacks.proxies import ProxyPair, close_writer, open_proxies, send_messages
from tests.attacks.test_network import INTERNAL_ADDRESSES

HELLO = tls.make_hello("localhost")
CLOSE_TIMEOUT = 5.0  # seconds; every limited wait of this file ends earlier
CONNECTION_COUNT = 150


def build_tunnel_request(proxies: ProxyPair) -> bytes:
    return proxies.fill_ports("CONNECT localhost:@T HTTP/1.1\r\n\r\n").encode()


async def wait_for_close(
    path: Path, first: bytes, drop: bytes = b"", seconds: float = CLOSE_TIMEOUT
) -> bool:
    """Send something, then `drop` again and again. Return whether the other side closes the
    connection within so many seconds."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(first)
    until = time.monotonic() + seconds
    is_closed = False
    while not is_closed and time.monotonic() < until:
        try:
            async with asyncio.timeout(0.02):
                is_closed = await reader.read(1 << 16) == b""
        except TimeoutError:
            writer.write(drop)
        except OSError:
            is_closed = True
    await close_writer(writer)
    return is_closed


SLOW_CLIENTS = {
    "a request that never ends": ("GET http://localhost:@P/ HTTP/1.1\r\nX: ", b"x"),
    "a request that never begins": ("", b""),
    "a hello that never comes": ("CONNECT localhost:@T HTTP/1.1\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", SLOW_CLIENTS)
async def test_one_who_takes_its_time(name, folder, record_verdict):
    first, drop = SLOW_CLIENTS[name]
    async with open_proxies(folder, caps=ProxyLimits(patience=0.2)) as proxies:
        request = proxies.fill_ports(first).encode()
        assert await wait_for_close(proxies.guarded, request, drop)
        assert proxies.target.received == b""
        assert not await wait_for_close(proxies.open, request, drop, seconds=0.6)
    record_verdict("ended after its time", "an open proxy waits on")


async def test_silence_in_a_tunnel(folder, record_verdict):
    async with open_proxies(folder, caps=ProxyLimits(silence=0.2)) as proxies:
        assert await wait_for_close(proxies.guarded, build_tunnel_request(proxies) + HELLO)
        assert not await wait_for_close(
            proxies.open, build_tunnel_request(proxies) + HELLO, seconds=0.6
        )
    record_verdict("ended after its time", "an open proxy waits on")


async def test_a_long_answer_to_a_short_question_comes_whole(folder):
    """Only silence of both sides ends a connection: a client that downloads something large sends
    nothing meanwhile."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(10):
            writer.write(b"x")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await asyncio.Event().wait()
        await close_writer(writer)

    async with open_proxies(folder, caps=ProxyLimits(silence=0.4), handle=drip) as proxies:
        reader, writer = await asyncio.open_unix_connection(proxies.guarded)
        writer.write(build_tunnel_request(proxies) + HELLO)
        answer = await reader.read()
        await close_writer(writer)
    assert answer.endswith(b"\r\n\r\n" + b"x" * 10)


@pytest.mark.parametrize("times", [1, 4], ids=["in one connection", "in four connections"])
async def test_an_upload_that_is_too_large(times, folder, record_verdict):
    part = b"x" * (1 << 20)
    async with open_proxies(folder, caps=ProxyLimits(up=(3 << 20))) as proxies:
        for _ in range(times):
            await send_messages(
                proxies.guarded, build_tunnel_request(proxies), HELLO + part * (4 // times)
            )
        assert len(proxies.target.received) <= 3 << 20
        [blocked] = proxies.take_blocked()
        assert (blocked.host, blocked.port, blocked.reason) == (
            "localhost",
            proxies.tls,
            "more than 3 MiB went up",
        )
        await send_messages(proxies.open, build_tunnel_request(proxies), HELLO + part * 4)
        assert len(proxies.target.received) > 4 << 20
    record_verdict(blocked.reason, "an open proxy took 4 MiB")


async def test_a_download_that_is_too_large(folder, record_verdict):
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(1 << 16)
            for _ in range(64):
                writer.write(b"x" * (1 << 16))
                await writer.drain()
        await close_writer(writer)

    async with open_proxies(folder, caps=ProxyLimits(down=(2 << 20)), handle=pour) as proxies:
        assert (
            len(await send_messages(proxies.guarded, build_tunnel_request(proxies), HELLO))
            < (2 << 20) + 100
        )
        assert [blocked.reason for blocked in proxies.take_blocked()] == [
            "more than 2 MiB went down"
        ]
        assert (
            len(await send_messages(proxies.open, build_tunnel_request(proxies), HELLO)) >= 4 << 20
        )
    record_verdict("cut off at its cap", "an open proxy gave 4 MiB")


async def test_a_head_without_an_end(folder, record_verdict):
    async with open_proxies(folder) as proxies:
        flood = (
            proxies.fill_ports("GET http://localhost:@P/ HTTP/1.1\r\n").encode()
            + b"X: y\r\n" * 10_000
            + b"\r\n"
        )
        assert await send_messages(proxies.guarded, flood) == b""
        assert proxies.target.callers == 0
        await send_messages(proxies.open, flood[:60_000] + b"\r\n\r\n")
        assert len(proxies.target.received) >= 60_000
    record_verdict("not read to its end", "an open proxy passed it on")


async def test_a_second_request_in_the_first(folder, record_verdict):
    async with open_proxies(folder) as proxies:
        first = proxies.fill_ports(
            "GET http://localhost:@P/one HTTP/1.1\r\nContent-Length: 40\r\nTE: x\r\n\r\n"
        ).encode()
        second = proxies.fill_ports("POST /two HTTP/1.1\r\nHost: evil.example\r\n\r\n").encode()
        assert (await send_messages(proxies.guarded, first + second)).endswith(b"reached")
        expected = "GET /one HTTP/1.1\r\nHost: localhost:@P\r\nConnection: close\r\n\r\n"
        assert proxies.target.received == proxies.fill_ports(expected).encode()
        await send_messages(proxies.open, first, second)
        assert second in proxies.target.received
    record_verdict("only the first went on", "an open proxy passed both on")


async def test_many_connections_at_once(folder, record_verdict):
    """The proxy does not answer more than its limit, and works as before when they have gone."""
    async with open_proxies(folder, caps=ProxyLimits(connections=20)) as proxies:
        for path, expected in ((proxies.guarded, 20), (proxies.open, CONNECTION_COUNT)):
            before = proxies.target.callers
            streams = [await asyncio.open_unix_connection(path) for _ in range(CONNECTION_COUNT)]
            for _, writer in streams:
                writer.write(build_tunnel_request(proxies))
            answers = await asyncio.gather(
                *(reader.read(4) for reader, _ in streams), return_exceptions=True
            )
            assert sum(answer == b"HTTP" for answer in answers) == expected
            async with asyncio.timeout(10):  # the target accepts after the proxy has answered
                while proxies.target.callers - before < expected:
                    await asyncio.sleep(0.05)
            assert proxies.target.callers - before == expected
            await asyncio.gather(*(close_writer(writer) for _, writer in streams))
        again = await send_messages(
            proxies.guarded,
            proxies.fill_ports("GET http://localhost:@P/ HTTP/1.1\r\n\r\n").encode(),
        )
        assert again.endswith(b"reached")
    record_verdict("20 were heard", f"an open proxy heard {CONNECTION_COUNT}")


async def test_more_refused_hosts_than_can_be_told_apart(folder, record_verdict):
    async with open_proxies(folder) as proxies:
        for number in range(MOST_NAMES + 20):
            await send_messages(
                proxies.guarded, f"CONNECT host-{number}.example:443 HTTP/1.1\r\n\r\n".encode()
            )
        blocked = proxies.take_blocked()
    assert len(blocked) == MOST_NAMES + 1
    assert blocked[-1] == Blocked(host=OTHERS[0], port=OTHERS[1], times=20, reason=OTHERS[2])
    record_verdict("a list of a hundred", "none: nothing is kept of an open proxy's")


async def test_the_way_out_outside_of_a_command(folder, record_verdict):
    async with open_proxies(folder) as proxies:
        reader, writer = await asyncio.open_unix_connection(proxies.guarded)
        writer.write(build_tunnel_request(proxies))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        socket_path = proxies.guarded
        assert await send_messages(proxies.open, build_tunnel_request(proxies), b"x") != b""
    assert await reader.read() == b""  # the proxy has closed the connection
    await close_writer(writer)
    with pytest.raises(OSError, match="No such file"):
        await asyncio.open_unix_connection(socket_path)
    record_verdict("hung up on, and the socket is gone", "while it listens it answers")


async def test_connections_that_are_not_accepted_yet_end_with_the_command(folder, record_verdict):
    """The proxy's loop has not yet seen the connections, which were made at the last moment."""
    async with open_proxies(folder) as proxies:
        callers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for caller in callers:
            caller.connect(str(proxies.guarded))
            caller.send(build_tunnel_request(proxies))
        await proxies.egress.close_connections(proxies.listener)
        for caller in callers:
            caller.settimeout(CLOSE_TIMEOUT)
            with caller, contextlib.suppress(ConnectionResetError):
                assert caller.recv(1) == b""
        assert proxies.target.callers == 0
        await send_messages(proxies.open, build_tunnel_request(proxies), b"x")
        assert proxies.target.callers == 1
    record_verdict("hung up on", "an open proxy let it through")


LONG_NAMES = {
    "a long one": b"a" * 60_000,
    "one of other bytes": b"\xff" * 60_000,
    "one that grows when it is written": b"\0" * 200,
    "one with quotes": b"'" * 60_000,
}


@pytest.mark.parametrize("name", LONG_NAMES)
async def test_a_name_is_not_shown_whole(name, folder, record_verdict):
    record = tls.add_extension(
        tls.make_hello(None), tls.SERVER_NAME, tls.encode_server_names(LONG_NAMES[name])
    )
    async with open_proxies(folder) as proxies:
        await send_messages(proxies.guarded, build_tunnel_request(proxies), record)
        [blocked] = proxies.take_blocked()
        assert f"(cut: it has {len(LONG_NAMES[name])} characters)" in blocked.reason
        assert blocked.reason.isprintable()
        assert len(blocked.reason) <= LONGEST_REASON
        await send_messages(proxies.open, build_tunnel_request(proxies), record)
        assert proxies.target.received == record
    record_verdict(f"{len(blocked.reason)} characters of it", "an open proxy passed it on")


def test_a_report_has_room_for_what_the_longest_names_make():
    rows = [["h" * LONGEST_NAME, 65535, 10**9, "\\" * LONGEST_REASON]] * (MOST_NAMES + 1)
    report = json.dumps({"blocked": rows, "unreachable": "\\" * LONGEST_UNREACHABLE}).encode()
    assert len(report) <= MOST_REPORT
    assert len(parse_report(report).blocked) == MOST_NAMES + 1


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1", "0.0.0.0", "::1", "::", "::1%lo"]
)
async def test_a_name_that_leads_to_this_machine(address, folder, record_verdict):
    """The other internal addresses are tested in test_network."""

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return [address]

    async with open_proxies(folder, resolve=resolve) as proxies:
        request = proxies.fill_ports("CONNECT a.wild.example:@T HTTP/1.1\r\n\r\n").encode()
        assert (await send_messages(proxies.guarded, request, b"x")).startswith(b"HTTP/1.1 403 ")
        reason = "its address is not a public one"
        blocked = Blocked(host="a.wild.example", port=proxies.tls, times=1, reason=reason)
        assert proxies.take_blocked() == [blocked]
        assert proxies.target.callers == 0
        await send_messages(proxies.open, request, b"x")
        assert proxies.target.callers == 1
    record_verdict(reason, "an open proxy went there")


@pytest.mark.parametrize("address", INTERNAL_ADDRESSES)
def test_an_address_that_is_nobodys_business(address, record_verdict):
    """The result must not depend on the version of Python, though each has another list of global
    addresses."""
    assert may_reach("8.8.8.8", "a.example", own=False)
    assert may_reach("2001:4860:4860::8888", "a.example", own=False)
    assert not may_reach(address, "a.example", own=False)
    record_verdict("no public address", "test_network goes there")
