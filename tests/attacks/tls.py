"""TLS of a client that breaks the rules, and certificates for our own host."""

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

SERVER_NAME, ENCRYPTED_HELLO = 0, 0xFE0D  # types of an extension of the hello
VALID_FROM = datetime.datetime(2020, 1, 1)
VALID_UNTIL = datetime.datetime(2050, 1, 1)


def make_certificate(folder: Path, hosts: Sequence[str]) -> Path:
    """Create a self-signed certificate for hosts. Return a file with it and its key, for servers
    and clients."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of the tests")])
    serial = x509.random_serial_number()
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, VALID_FROM, VALID_UNTIL)
    certificate = (
        builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_format = (
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = folder / "both.pem"
    file.write_bytes(
        key.private_bytes(*key_format) + certificate.public_bytes(serialization.Encoding.PEM)
    )
    file.chmod(0o644)
    return file


def make_server_context(pem: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def make_client_context(pem: Path) -> ssl.SSLContext:
    return ssl.create_default_context(
        cadata=pem.read_text().partition("-----END PRIVATE KEY-----")[2]
    )


def make_hello(host: str | None) -> bytes:
    """Return the hello of a client, in one record. With None it names no host."""
    context = ssl.create_default_context()
    context.check_hostname = False
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=host)
    try:
        connection.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("the handshake was complete without a server")


def add_extension(record: bytes, kind: int, body: bytes) -> bytes:
    """Return a hello with one more extension."""
    message = record[9:]
    # version and random bytes; then session, cipher suites and compression, each with its length
    position = 2 + 32
    for size in (1, 2, 1):
        position += size + int.from_bytes(message[position : position + size], "big")
    extension = kind.to_bytes(2, "big") + len(body).to_bytes(2, "big") + body
    extensions = message[position + 2 :] + extension
    message = message[:position] + len(extensions).to_bytes(2, "big") + extensions
    return split_records(b"\x01" + len(message).to_bytes(3, "big") + message, 1 << 14)


def encode_server_names(*hosts: bytes) -> bytes:
    """Return the body of an extension that names these hosts."""
    rows = b"".join(b"\0" + len(host).to_bytes(2, "big") + host for host in hosts)
    return len(rows).to_bytes(2, "big") + rows


def split_records(message: bytes, record_size: int) -> bytes:
    """Return a message of the handshake in records of at most `record_size` bytes."""
    parts = [message[start : start + record_size] for start in range(0, len(message), record_size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


async def send_get(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    pem: Path,
    host: str,
    *,
    record_size: int = 1 << 14,
) -> bytes:
    """Send a GET to a host by TLS, and return its answer. The hello is sent in records of at most
    `record_size` bytes."""
    incoming = ssl.MemoryBIO()
    outgoing = ssl.MemoryBIO()
    connection = make_client_context(pem).wrap_bio(incoming, outgoing, server_hostname=host)

    async def complete_step(step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                data = outgoing.read()
                is_hello = data[:1] + data[5:6] == b"\x16\x01"
                writer.write(split_records(data[5:], record_size) if is_hello else data)
                if not (data := await reader.read(1 << 16)):
                    raise EOFError("the host closed the connection") from None
                incoming.write(data)

    await complete_step(connection.do_handshake)
    connection.write(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return bytes(await complete_step(lambda: connection.read(1 << 16)))
