"""Hostile use of a way out that is allowed: too much, too slowly, too many at once, or more than
was asked for."""

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
from tests.attacks.proxies import ProxyPair, opening, say, shut
from tests.attacks.test_network import INNER

HELLO = tls.hello("localhost")
SOON = 5.0  # seconds in which a bounded wait of this file is over
MANY = 150


def tunnel(wire: ProxyPair) -> bytes:
    return wire.filled("CONNECT localhost:@T HTTP/1.1\r\n\r\n").encode()


async def ends(path: Path, first: bytes, drop: bytes = b"", within: float = SOON) -> bool:
    """Say something, and then a drop now and then; whether the other side ends it in so many
    seconds."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(first)
    until = time.monotonic() + within
    ended = False
    while not ended and time.monotonic() < until:
        try:
            async with asyncio.timeout(0.02):
                ended = await reader.read(1 << 16) == b""
        except TimeoutError:
            writer.write(drop)
        except OSError:
            ended = True
    await shut(writer)
    return ended


SLOW = {
    "a request that never ends": ("GET http://localhost:@P/ HTTP/1.1\r\nX: ", b"x"),
    "a request that never begins": ("", b""),
    "a hello that never comes": ("CONNECT localhost:@T HTTP/1.1\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", SLOW)
async def test_one_who_takes_its_time(name, place, verdict):
    first, drop = SLOW[name]
    async with opening(place, caps=ProxyLimits(patience=0.2)) as wire:
        words = wire.filled(first).encode()
        assert await ends(wire.guarded, words, drop)
        assert wire.target.heard == b""
        assert not await ends(wire.open, words, drop, within=0.6)
    verdict("ended after its time", "an open proxy waits on")


async def test_silence_in_a_tunnel(place, verdict):
    async with opening(place, caps=ProxyLimits(silence=0.2)) as wire:
        assert await ends(wire.guarded, tunnel(wire) + HELLO)
        assert not await ends(wire.open, tunnel(wire) + HELLO, within=0.6)
    verdict("ended after its time", "an open proxy waits on")


async def test_a_long_answer_to_a_short_question_comes_whole(place):
    """Only silence of both sides ends a connection: who downloads something large says nothing
    meanwhile."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(10):
            writer.write(b"x")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await asyncio.Event().wait()
        await shut(writer)

    async with opening(place, caps=ProxyLimits(silence=0.4), meet=drip) as wire:
        reader, writer = await asyncio.open_unix_connection(wire.guarded)
        writer.write(tunnel(wire) + HELLO)
        answer = await reader.read()
        await shut(writer)
    assert answer.endswith(b"\r\n\r\n" + b"x" * 10)


@pytest.mark.parametrize("times", [1, 4], ids=["in one connection", "in four connections"])
async def test_an_upload_that_is_too_large(times, place, verdict):
    part = b"x" * (1 << 20)
    async with opening(place, caps=ProxyLimits(up=(3 << 20))) as wire:
        for _ in range(times):
            await say(wire.guarded, tunnel(wire), HELLO + part * (4 // times))
        assert len(wire.target.heard) <= 3 << 20
        [noted] = wire.take_blocked()
        assert (noted.host, noted.port, noted.reason) == (
            "localhost",
            wire.tls,
            "more than 3 MiB went up",
        )
        await say(wire.open, tunnel(wire), HELLO + part * 4)
        assert len(wire.target.heard) > 4 << 20
    verdict(noted.reason, "an open proxy took 4 MiB")


async def test_a_download_that_is_too_large(place, verdict):
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(1 << 16)
            for _ in range(64):
                writer.write(b"x" * (1 << 16))
                await writer.drain()
        await shut(writer)

    async with opening(place, caps=ProxyLimits(down=(2 << 20)), meet=pour) as wire:
        assert len(await say(wire.guarded, tunnel(wire), HELLO)) < (2 << 20) + 100
        assert [blocked.reason for blocked in wire.take_blocked()] == ["more than 2 MiB went down"]
        assert len(await say(wire.open, tunnel(wire), HELLO)) >= 4 << 20
    verdict("cut off at its cap", "an open proxy gave 4 MiB")


async def test_a_head_without_an_end(place, verdict):
    async with opening(place) as wire:
        flood = (
            wire.filled("GET http://localhost:@P/ HTTP/1.1\r\n").encode()
            + b"X: y\r\n" * 10_000
            + b"\r\n"
        )
        assert await say(wire.guarded, flood) == b""
        assert wire.target.callers == 0
        await say(wire.open, flood[:60_000] + b"\r\n\r\n")
        assert len(wire.target.heard) >= 60_000
    verdict("not read to its end", "an open proxy passed it on")


async def test_a_second_request_in_the_first(place, verdict):
    async with opening(place) as wire:
        first = wire.filled(
            "GET http://localhost:@P/one HTTP/1.1\r\nContent-Length: 40\r\nTE: x\r\n\r\n"
        ).encode()
        second = wire.filled("POST /two HTTP/1.1\r\nHost: evil.example\r\n\r\n").encode()
        assert (await say(wire.guarded, first + second)).endswith(b"reached")
        heard = wire.target.heard
        assert (
            heard
            == wire.filled(
                "GET /one HTTP/1.1\r\nHost: localhost:@P\r\nConnection: close\r\n\r\n"
            ).encode()
        )
        await say(wire.open, first, second)
        assert second in wire.target.heard
    verdict("only the first went on", "an open proxy passed both on")


async def test_many_connections_at_once(place, verdict):
    """Those that are too many are not heard, and when the others have gone all is as before."""
    async with opening(place, caps=ProxyLimits(connections=20)) as wire:
        for path, most in ((wire.guarded, 20), (wire.open, MANY)):
            before = wire.target.callers
            held = [await asyncio.open_unix_connection(path) for _ in range(MANY)]
            for _, writer in held:
                writer.write(tunnel(wire))
            answers = await asyncio.gather(
                *(reader.read(4) for reader, _ in held), return_exceptions=True
            )
            assert sum(answer == b"HTTP" for answer in answers) == most
            async with asyncio.timeout(10):  # the target accepts after the proxy has answered
                while wire.target.callers - before < most:
                    await asyncio.sleep(0.05)
            assert wire.target.callers - before == most
            await asyncio.gather(*(shut(writer) for _, writer in held))
        again = await say(
            wire.guarded, wire.filled("GET http://localhost:@P/ HTTP/1.1\r\n\r\n").encode()
        )
        assert again.endswith(b"reached")
    verdict("20 were heard", f"an open proxy heard {MANY}")


async def test_more_refused_hosts_than_can_be_told_apart(place, verdict):
    async with opening(place) as wire:
        for number in range(MOST_NAMES + 20):
            await say(wire.guarded, f"CONNECT host-{number}.example:443 HTTP/1.1\r\n\r\n".encode())
        blocked = wire.take_blocked()
    assert len(blocked) == MOST_NAMES + 1
    assert blocked[-1] == Blocked(host=OTHERS[0], port=OTHERS[1], times=20, reason=OTHERS[2])
    verdict("a list of a hundred", "none: nothing is kept of an open proxy's")


async def test_the_way_out_outside_of_a_command(place, verdict):
    async with opening(place) as wire:
        reader, writer = await asyncio.open_unix_connection(wire.guarded)
        writer.write(tunnel(wire))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        still = wire.guarded
        assert await say(wire.open, tunnel(wire), b"x") != b""
    assert await reader.read() == b""  # it is hung up on
    await shut(writer)
    with pytest.raises(OSError, match="No such file"):
        await asyncio.open_unix_connection(still)
    verdict("hung up on, and the socket is gone", "while it listens it answers")


async def test_connections_that_are_not_accepted_yet_end_with_the_command(place, verdict):
    """They came in the last moment: the proxy's loop has not seen them."""
    async with opening(place) as wire:
        callers = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for caller in callers:
            caller.connect(str(wire.guarded))
            caller.send(tunnel(wire))
        await wire.egress.close_connections(wire.listener)
        for caller in callers:
            caller.settimeout(SOON)
            with caller, contextlib.suppress(ConnectionResetError):
                assert caller.recv(1) == b""
        assert wire.target.callers == 0
        await say(wire.open, tunnel(wire), b"x")
        assert wire.target.callers == 1
    verdict("hung up on", "an open proxy let it through")


NAMES = {
    "a long one": b"a" * 60_000,
    "one of other bytes": b"\xff" * 60_000,
    "one that grows when it is written": b"\0" * 200,
    "one with quotes": b"'" * 60_000,
}


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_is_not_shown_whole(name, place, verdict):
    record = tls.extended(tls.hello(None), tls.SERVER_NAME, tls.named(NAMES[name]))
    async with opening(place) as wire:
        await say(wire.guarded, tunnel(wire), record)
        [noted] = wire.take_blocked()
        assert f"(cut: it has {len(NAMES[name])} characters)" in noted.reason
        assert noted.reason.isprintable()
        assert len(noted.reason) <= LONGEST_REASON
        await say(wire.open, tunnel(wire), record)
        assert wire.target.heard == record
    verdict(f"{len(noted.reason)} characters of it", "an open proxy passed it on")


def test_a_report_has_room_for_what_the_longest_names_make():
    rows = [["h" * LONGEST_NAME, 65535, 10**9, "\\" * LONGEST_REASON]] * (MOST_NAMES + 1)
    report = json.dumps({"blocked": rows, "unreachable": "\\" * LONGEST_UNREACHABLE}).encode()
    assert len(report) <= MOST_REPORT
    assert len(parse_report(report).blocked) == MOST_NAMES + 1


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1", "0.0.0.0", "::1", "::", "::1%lo"]
)
async def test_a_name_that_leads_to_this_machine(address, place, verdict):
    """The rest of the addresses that are nobody's business stands in test_network."""

    async def here(_host: str, _port: int) -> Sequence[str]:
        return [address]

    async with opening(place, resolve=here) as wire:
        first = wire.filled("CONNECT a.wild.example:@T HTTP/1.1\r\n\r\n").encode()
        assert (await say(wire.guarded, first, b"x")).startswith(b"HTTP/1.1 403 ")
        reason = "its address is not a public one"
        noted = Blocked(host="a.wild.example", port=wire.tls, times=1, reason=reason)
        assert wire.take_blocked() == [noted]
        assert wire.target.callers == 0
        await say(wire.open, first, b"x")
        assert wire.target.callers == 1
    verdict(reason, "an open proxy went there")


@pytest.mark.parametrize("address", INNER)
def test_an_address_that_is_nobodys_business(address, verdict):
    """By whatever python: which addresses are global is another list in each."""
    assert may_reach("8.8.8.8", "a.example", own=False)
    assert may_reach("2001:4860:4860::8888", "a.example", own=False)
    assert not may_reach(address, "a.example", own=False)
    verdict("no public address", "test_network goes there")
