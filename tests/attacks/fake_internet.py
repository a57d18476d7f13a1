"""An internet of one machine, for a worker that must not meet the real one. Runs a program in it:

    python3 internet.py PEM FOLDER PROGRAM...

In a network of its own every address leads to the same server. Names are told by their first label,
which is an address in hex: a0a010203.wild.example is 10.1.2.3; with several of them, each question
is answered by the next. A name that begins with "silent" gets no answer.

The server speaks TLS on port 443 and answers at which address it was reached. What it is told
stands in FOLDER/told, and the names that were asked for in FOLDER/asked. On port 3128 is a proxy
that lets everybody through.
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
REQUEST = 1
CREATE = 0x400
ACK = 4
TABLE_LOCAL = 255
BY_HAND = 4
OF_THE_HOST = 254
LOCAL = 2
OUT = 4
A, AAAA = 1, 28
LIBC = ctypes.CDLL(None, use_errno=True)


# ── a network of its own ──────────────────────────────────────────────────────────────────────────


def enter(folder: Path) -> None:
    """Be in a network and in a mount namespace of our own, as the user that we are."""
    uid = os.geteuid()
    gid = os.getegid()
    called(LIBC.unshare(CLONE_NEWNS | CLONE_NEWNET | (CLONE_NEWUSER if uid else 0)))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    called(LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None))
    for name, text in {
        "resolv.conf": "nameserver 127.0.0.1\n",
        "nsswitch.conf": "hosts: files dns\n",
    }.items():
        (folder / name).write_text(text)
        target = os.path.realpath(f"/etc/{name}")
        called(LIBC.mount(os.fsencode(folder / name), os.fsencode(target), None, MS_BIND, None))
    start_loopback()
    for family in (socket.AF_INET, socket.AF_INET6):
        lead_everywhere_to_loopback(family)


def called(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def start_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        told = fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", told)[1] | IFF_UP
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))


def lead_everywhere_to_loopback(family: int) -> None:
    """As `ip route add local default dev lo` does; see rtnetlink(7)."""
    route = struct.pack("BBBBBBBBI", family, 0, 0, 0, TABLE_LOCAL, BY_HAND, OF_THE_HOST, LOCAL, 0)
    body = route + struct.pack("HHi", 8, OUT, socket.if_nametoindex("lo"))
    head = struct.pack("IHHII", 16 + len(body), RTM_NEWROUTE, REQUEST | CREATE | ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.sendall(head + body)
        error = struct.unpack("i", link.recv(4096)[16:20])[0]
    if error:
        raise OSError(-error, os.strerror(-error))


# ── who answers in it ─────────────────────────────────────────────────────────────────────────────


def answer_questions(listening: socket.socket, asked: Path) -> None:
    """A name server; see RFC 1035, section 4."""
    times = Counter[bytes]()
    while True:
        question, caller = listening.recvfrom(512)
        end = question.index(0, 12)
        labels = question[12:end]
        kind = question[end + 1 : end + 3]
        first = labels[1 : 1 + labels[0]]
        with asked.open("ab") as file:
            file.write(labels[1:] + b"\n")
        if first.startswith(b"silent"):
            continue
        found = addresses(first, int.from_bytes(kind, "big"))
        rows = [found[min(times[labels + kind], len(found) - 1)]] if found else []
        times[labels + kind] += 1
        head = question[:2] + b"\x81\x80\0\1" + len(rows).to_bytes(2, "big") + b"\0\0\0\0"
        body = [
            b"\xc0\x0c" + kind + b"\0\1\0\0\0\0" + len(row).to_bytes(2, "big") + row for row in rows
        ]
        listening.sendto(head + question[12 : end + 5] + b"".join(body), caller)


def addresses(label: bytes, kind: int) -> list[bytes]:
    with contextlib.suppress(ValueError):
        found = [bytes.fromhex(part) for part in label.decode()[1:].split("-")]
        return [address for address in found if len(address) == {A: 4, AAAA: 16}.get(kind)]
    return []


def answer_callers(listening: socket.socket, pem: Path, told: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    def meet(plain: socket.socket) -> None:
        with plain, context.wrap_socket(plain, server_side=True) as caller, told.open("ab") as file:
            at = ip_address(caller.getsockname()[0])
            caller.sendall(f"reached at {getattr(at, 'ipv4_mapped', None) or at}\n".encode())
            while data := caller.recv(1 << 16):
                file.write(data)
                file.flush()

    accept(listening, meet)


def let_through(listening: socket.socket) -> None:
    """A proxy as nobody should run one."""

    def meet(here: socket.socket) -> None:
        host, _, port = here.recv(4096).split()[1].decode().rpartition(":")
        with here, socket.create_connection((host, int(port)), 5) as there:
            here.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=pass_on, args=(here, there), daemon=True).start()
            pass_on(there, here)

    accept(listening, meet)


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def accept(listening: socket.socket, meet: Callable[[socket.socket], None]) -> None:
    def safely(caller: socket.socket) -> None:
        with contextlib.suppress(OSError, IndexError, ValueError):
            meet(caller)

    while True:
        threading.Thread(target=safely, args=(listening.accept()[0],), daemon=True).start()


def serve(pem: Path, folder: Path) -> Callable[[], None]:
    """Listen; what is returned answers."""
    names = socket.socket(type=socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    callers = socket.create_server(("::", 443), family=socket.AF_INET6, dualstack_ipv6=True)
    proxy = socket.create_server(("127.0.0.1", 3128))

    def answer() -> None:
        threading.Thread(
            target=answer_callers, args=(callers, pem, folder / "told"), daemon=True
        ).start()
        threading.Thread(target=let_through, args=(proxy,), daemon=True).start()
        answer_questions(names, folder / "asked")

    return answer


def end_with(process: int) -> None:
    """End when a process does. The kernel would not do it for one that has become another user:
    prctl(2)."""
    select.select([process], [], [])
    os._exit(0)


def main(pem: str, folder: str, *program: str) -> None:
    enter(Path(folder))
    answer = serve(Path(pem), Path(folder))
    worker = os.pidfd_open(os.getpid())
    if os.fork() == 0:
        threading.Thread(target=end_with, args=(worker,), daemon=True).start()
        answer()
    os.close(worker)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(*sys.argv[1:])
