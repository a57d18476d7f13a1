"""TLS as a client of bad manners speaks it, and certificates for a host that is ours."""

import asyncio
import datetime
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SERVER_NAME, ENCRYPTED_HELLO = 0, 0xFE0D
FROM = datetime.datetime(2020, 1, 1)
UNTIL = datetime.datetime(2050, 1, 1)


def certify(place: Path, hosts: Sequence[str]) -> Path:
    """A certificate for some hosts, signed by itself, with its key; one file for both sides."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of the tests")])
    made = (
        x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), FROM, UNTIL
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = place / "both.pem"
    file.write_bytes(key.private_bytes(*form) + made.public_bytes(serialization.Encoding.PEM))
    file.chmod(0o644)
    return file


def server(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def client(pem: Path) -> ssl.SSLContext:
    return ssl.create_default_context(
        cadata=pem.read_text().partition("-----END PRIVATE KEY-----")[2]
    )


def hello(host: str | None) -> bytes:
    """The first record of a client that wants `host`; None: it does not say whom."""
    context = ssl.create_default_context()
    context.check_hostname = False
    out = ssl.MemoryBIO()
    talk = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=host)
    try:
        talk.do_handshake()
    except ssl.SSLWantReadError:
        return out.read()
    raise AssertionError("it was answered by nobody")


def extended(record: bytes, kind: int, body: bytes) -> bytes:
    """A hello with one extension more."""
    inner = record[9:]
    # version and random bytes; session, cipher suites and compression have a length each
    at = 2 + 32
    for size in (1, 2, 1):
        at += size + int.from_bytes(inner[at : at + size], "big")
    more = kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body
    block = inner[at + 2 :] + more
    inner = inner[:at] + len(block).to_bytes(2, "big") + block
    return in_records(b"\x01" + len(inner).to_bytes(3, "big") + inner, 1 << 14)


def named(*hosts: bytes) -> bytes:
    """The body of an extension that names these hosts."""
    rows = b"".join(b"\0" + len(host).to_bytes(2, "big") + host for host in hosts)
    return len(rows).to_bytes(2, "big") + rows


def in_records(message: bytes, most: int) -> bytes:
    """A message of the handshake in records of at most so many bytes."""
    parts = [message[at : at + most] for at in range(0, len(message), most)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


async def ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    pem: Path,
    host: str,
    *,
    most: int = 1 << 14,
) -> bytes:
    """What a host answers to a GET; the hello comes in records of at most so many bytes."""
    came = ssl.MemoryBIO()
    goes = ssl.MemoryBIO()
    talk = client(pem).wrap_bio(came, goes, server_hostname=host)

    async def until_done(step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                data = goes.read()
                writer.write(
                    in_records(data[5:], most) if data[:1] + data[5:6] == b"\x16\x01" else data
                )
                if not (data := await reader.read(1 << 16)):
                    raise EOFError("the host said nothing more") from None
                came.write(data)

    await until_done(talk.do_handshake)
    talk.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return bytes(await until_done(lambda: talk.read(1 << 16)))
