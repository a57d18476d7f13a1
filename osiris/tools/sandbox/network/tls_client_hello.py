"""The first message of a TLS client, which names the host: RFC 8446, section 4.1.2; RFC 6066,
section 3."""

import asyncio
from collections.abc import Iterator
from typing import Final

HANDSHAKE, CLIENT_HELLO = 22, 1
SERVER_NAME = 0
HOST_NAME = 0
ENCRYPTED_HELLO = 0xFE0D
MOST: Final = 1 << 16  # bytes of a hello; with the largest keys known it is a few thousand
LONGEST_NAME: Final = 253  # characters of a host's name: RFC 1035; a hello has room for 65,530


class ProtocolRejected(Exception):
    """The error of a connection whose protocol the proxy rejects; the text is the reason."""


async def read_client_hello(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Return all bytes that were read, and the body of the client's hello. Raises
    ProtocolRejected, IncompleteReadError."""
    raw = bytearray()
    said = bytearray()
    while len(said) < 4 or len(said) < 4 + int.from_bytes(said[1:4], "big"):
        head = await reader.readexactly(5)
        if head[0] != HANDSHAKE or head[1] != 3:
            raise ProtocolRejected("it speaks no TLS")
        part = await reader.readexactly(int.from_bytes(head[3:5], "big"))
        raw += head
        raw += part
        said += part
        if said[:1] != bytes([CLIENT_HELLO]) or len(raw) > MOST:
            raise ProtocolRejected("its TLS begins with no client's hello")
    return bytes(raw), bytes(said[4 : 4 + int.from_bytes(said[1:4], "big")])


def parse_server_name(hello: bytes) -> str:
    """Return the host that a client's hello names, in lower case. Raises ProtocolRejected when it
    names none, or encrypts it."""
    try:
        found = list(_parse_extensions(hello))
    except IndexError:
        raise ProtocolRejected("its TLS hello is garbled") from None
    if any(kind == ENCRYPTED_HELLO for kind, _ in found):
        raise ProtocolRejected("its TLS hello hides the host")
    names = [body for kind, body in found if kind == SERVER_NAME]
    if len(names) != 1 or len(names[0]) < 6 or names[0][2] != HOST_NAME:
        raise ProtocolRejected("its TLS hello names no host")
    length = int.from_bytes(names[0][3:5], "big")
    if len(names[0]) != 5 + length:
        raise ProtocolRejected("its TLS hello names more than one host")
    return names[0][5:].decode("ascii", "replace").lower()


def quote_name(name: str) -> str:
    """Return a name in quotes, as printable ASCII: at most `LONGEST_NAME` characters of it."""
    quoted = ascii(name[:LONGEST_NAME])[1:-1]
    if len(name) <= LONGEST_NAME and len(quoted) <= LONGEST_NAME:
        return ascii(name)
    return f"'{quoted[:LONGEST_NAME]}' (cut: it has {len(name)} characters)"


def _parse_extensions(hello: bytes) -> Iterator[tuple[int, bytes]]:
    at = 2 + 32  # version and random bytes
    for size in (1, 2, 1):  # session, cipher suites, compression
        _, at = _read_field(hello, at, size)
    block, _ = _read_field(hello, at, 2)
    at = 0
    while at < len(block):
        kind = int.from_bytes(_slice_exactly(block, at, 2), "big")
        body, at = _read_field(block, at + 2, 2)
        yield kind, body


def _read_field(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    """Return the field at `at`, which begins with its length in `size` bytes, and its end."""
    length = int.from_bytes(_slice_exactly(data, at, size), "big")
    return _slice_exactly(data, at + size, length), at + size + length


def _slice_exactly(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise IndexError(at)
    return data[at : at + length]
