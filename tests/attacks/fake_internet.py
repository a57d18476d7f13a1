"""Run a program in an internet of one machine, for a worker that must not reach the real one:

    python3 fake_internet.py PEM FOLDER PROGRAM...

The program gets a network namespace in which every address leads to the same server. The first
label of a name holds its address in hex: a0a010203.wild.example is 10.1.2.3. If the label holds
several addresses, each lookup returns the next one. A name that begins with "silent" gets no
answer.

The server speaks TLS on port 443 and tells each caller at which address it was reached. It appends
what it receives to FOLDER/received, and the names that were looked up to FOLDER/lookups. An open
proxy listens on port 3128.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import socket
import ssl
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
SIOCGIFFLAGS = 0x8913
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
RTM_NEWROUTE = 24
NLM_F_REQUEST = 1
NLM_F_CREATE = 0x400
NLM_F_ACK = 4
RT_TABLE_LOCAL = 255
RTPROT_STATIC = 4
RT_SCOPE_HOST = 254
RTN_LOCAL = 2
RTA_OIF = 4
A, AAAA = 1, 28  # types of a DNS record
LIBC = ctypes.CDLL(None, use_errno=True)


# ── the network namespace ─────────────────────────────────────────────────────────────────────────


def enter_namespaces(folder: Path) -> None:
    """Enter a new network namespace and a new mount namespace, and stay the same user."""
    uid = os.geteuid()
    gid = os.getegid()
    check_result(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET | (CLONE_NEWUSER if uid else 0)))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    check_result(LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    for name, text in {
        "resolv.conf": "nameserver 127.0.0.1\n",
        "nsswitch.conf": "hosts: files dns\n",
    }.items():
        (folder / name).write_text(text)
        target = os.path.realpath(f"/etc/{name}")
        result = LIBC.mount(os.fsencode(folder / name), os.fsencode(target), None, MS_BIND, None)
        check_result(result)
    start_loopback()
    for family in (socket.AF_INET, socket.AF_INET6):
        route_everything_to_loopback(family)


def check_result(result: int) -> None:
    """Raise the error of the last call of the C library if its result is not 0."""
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def start_loopback() -> None:
    """Bring the interface `lo` up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", request)[1] | IFF_UP
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


def route_everything_to_loopback(family: int) -> None:
    """Add the route that `ip route add local default dev lo` adds; see rtnetlink(7)."""
    route = struct.pack(
        "BBBBBBBBI", family, 0, 0, 0, RT_TABLE_LOCAL, RTPROT_STATIC, RT_SCOPE_HOST, RTN_LOCAL, 0
    )
    body = route + struct.pack("HHi", 8, RTA_OIF, socket.if_nametoindex("lo"))
    flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK
    head = struct.pack("IHHII", 16 + len(body), RTM_NEWROUTE, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.sendall(head + body)
        error = struct.unpack("i", link.recv(4096)[16:20])[0]
    if error:
        raise OSError(-error, os.strerror(-error))


# ── the servers ───────────────────────────────────────────────────────────────────────────────────


def serve_names(server: socket.socket, lookups: Path) -> None:
    """Answer DNS questions, and append the names to the file `lookups`; see RFC 1035, section
    4."""
    counts = Counter[bytes]()
    while True:
        question, caller = server.recvfrom(512)
        end = question.index(0, 12)
        labels = question[12:end]
        kind = question[end + 1 : end + 3]
        first = labels[1 : 1 + labels[0]]
        with lookups.open("ab") as file:
            file.write(labels[1:] + b"\n")
        if first.startswith(b"silent"):
            continue
        addresses = decode_addresses(first, int.from_bytes(kind, "big"))
        records = [addresses[min(counts[labels + kind], len(addresses) - 1)]] if addresses else []
        counts[labels + kind] += 1
        head = question[:2] + b"\x81\x80\0\1" + len(records).to_bytes(2, "big") + b"\0\0\0\0"
        body = [
            b"\xc0\x0c" + kind + b"\0\1\0\0\0\0" + len(record).to_bytes(2, "big") + record
            for record in records
        ]
        server.sendto(head + question[12 : end + 5] + b"".join(body), caller)


def decode_addresses(label: bytes, kind: int) -> list[bytes]:
    """Return the addresses in a label that fit a DNS record of this type."""
    with contextlib.suppress(ValueError):
        addresses = [bytes.fromhex(part) for part in label.decode()[1:].split("-")]
        size = {A: 4, AAAA: 16}.get(kind)
        return [address for address in addresses if len(address) == size]
    return []


def serve_tls(server: socket.socket, pem: Path, received: Path) -> None:
    """Tell each caller at which address it reached this server, and append what it sends to the
    file `received`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def handle(plain: socket.socket) -> None:
        with (
            plain,
            context.wrap_socket(plain, server_side=True) as caller,
            received.open("ab") as file,
        ):
            address = ip_address(caller.getsockname()[0])
            address = getattr(address, "ipv4_mapped", None) or address
            caller.sendall(f"reached at {address}\n".encode())
            while data := caller.recv(1 << 16):
                file.write(data)
                file.flush()

    accept_callers(server, handle)


def serve_open_proxy(server: socket.socket) -> None:
    """Serve as a proxy without any rules."""

    def handle(caller: socket.socket) -> None:
        host, _, port = caller.recv(4096).split()[1].decode().rpartition(":")
        with caller, socket.create_connection((host, int(port)), 5) as target:
            caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=copy_stream, args=(caller, target), daemon=True).start()
            copy_stream(target, caller)

    accept_callers(server, handle)


def copy_stream(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def accept_callers(server: socket.socket, handle: Callable[[socket.socket], None]) -> None:
    """Handle each caller in a thread, for ever."""

    def handle_safely(caller: socket.socket) -> None:
        with contextlib.suppress(OSError, IndexError, ValueError):
            handle(caller)

    while True:
        threading.Thread(target=handle_safely, args=(server.accept()[0],), daemon=True).start()


def listen(pem: Path, folder: Path) -> Callable[[], None]:
    """Open the servers' sockets, and return the function that serves them for ever."""
    names = socket.socket(type=socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    callers = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
    proxy = socket.create_server(("127.0.0.1", 3128))

    def serve() -> None:
        threading.Thread(
            target=serve_tls, args=(callers, pem, folder / "received"), daemon=True
        ).start()
        threading.Thread(target=serve_open_proxy, args=(proxy,), daemon=True).start()
        serve_names(names, folder / "lookups")

    return serve


def exit_with_process(pidfd: int) -> None:
    """Wait for the end of a process, then exit. The parent-death signal would not do: the kernel
    clears it when the process changes its user (prctl(2))."""
    select.select([pidfd], [], [])
    os._exit(0)


def main(pem: str, folder: str, *program: str) -> None:
    enter_namespaces(Path(folder))
    serve = listen(Path(pem), Path(folder))
    pidfd = os.pidfd_open(os.getpid())
    if os.fork() == 0:
        threading.Thread(target=exit_with_process, args=(pidfd,), daemon=True).start()
        serve()
    os.close(pidfd)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(*sys.argv[1:])
