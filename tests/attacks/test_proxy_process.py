"""Attacks on the process that a session's proxy is, and through it on the worker."""

import contextlib
import json
import os
import select
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from osiris.core.work import Blocked
from osiris.tools.sandbox.network.proxy_process import LOST, PROXY_UID, SO_PASSRIGHTS
from tests.attacks import tls
from tests.attacks.attack import python
from tests.attacks.conftest import ORDINARY, SMALL, Attacked, start
from tests.attacks.proxy_workers import IN_THE_WORKER
from tests.attacks.test_network import PUBLIC, Online, asking, named
from tests.attacks.test_survivors import within
from tests.conftest import a_place

HOSTS = ("*.wild.example",)
GOOD = f"{named(PUBLIC)}:443"
REACHED = f"reached at {PUBLIC}"
SOON = 20.0  # seconds in which a bounded wait of this file is over


class Special(Online):
    """A worker that can be told which proxies its next sessions have; see `proxy_workers`."""

    stall = 0.0
    """Seconds for which its event loop stood still in the last call; for controls that is no
    failure."""
    is_control = False

    def _command(self, place: Path, fd: int) -> list[str]:
        words = super()._command(place, fd)
        words[words.index("tests.attacks.worker")] = "tests.attacks.proxy_workers"
        return words

    def _answer(self) -> Any:
        if not self.is_control:
            return super()._answer()
        error, value, (self.stall, _) = self._conn.recv()
        if error:
            raise error
        return value

    @contextlib.contextmanager
    def session(
        self,
        how: str = "",
        *,
        child: str = "",
        hosts: tuple[str, ...] = HOSTS,
    ) -> Iterator[None]:
        """A session "s" with such a proxy."""
        self.is_control = how in IN_THE_WORKER
        self.ask("use", how, child=child)
        self.create("s", SMALL, hosts=hosts)
        yield
        self.ask("destroy", "s")
        self.is_control = False


@pytest.fixture(scope="module")
def special(worker: Attacked) -> Iterator[Special]:
    with a_place() as place:
        for folder in ("own", "house", "packages", "internet"):
            (place / folder).mkdir()
        if worker.who == "ordinary" and os.geteuid() == 0:
            shutil.chown(place / "own", ORDINARY, ORDINARY)
        tls.certify(place, ["*.wild.example"])
        made = Special(worker.who, place, worker.repo, worker.base)
        yield made
        made.close()


def proxies(attacked: Attacked, many: int = 0) -> list[int]:
    """The processes of its proxies, once there are so many: one that begins has no name yet."""
    assert within(SOON, lambda: len(_proxies(attacked)) >= many)
    return _proxies(attacked)


def _proxies(attacked: Attacked) -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_child = f"\nPPid:\t{attacked.pid}\n" in (process / "status").read_text()
            if is_child and b"proxy_child" in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@contextlib.contextmanager
def watching(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def has_ended(pidfd: int, seconds: float = SOON) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


# ── what a jail can do to it ──────────────────────────────────────────────────────────────────────

LINGER = """
import os, socket, struct, sys, time
PROXY = "/run/egress/egress.sock"
seconds = int(sys.argv[1])
listening = socket.create_server(("127.0.0.1", 0))
receivers = []
def full():
    sender = socket.create_connection(listening.getsockname())
    receivers.append(listening.accept()[0])
    sender.setblocking(False)
    try:
        while True:
            sender.send(bytes(1 << 16))
    except BlockingIOError:
        pass
    sender.setblocking(True)
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
    return sender
def hand_over():
    sender, (read, write) = full(), os.pipe()
    child = os.fork()
    if child == 0:  # who ends does not wait for what it closes
        os.read(read, 1)
        with socket.socket(socket.AF_UNIX) as proxy:
            proxy.connect(PROXY)
            try:
                socket.send_fds(proxy, [b"GET "], [sender.fileno()])
            except PermissionError:
                os._exit(1)
            os._exit(0)
    sender.close()
    os.write(write, b"x")
    return os.waitpid(child, 0)[1] == 0
def answers():
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.settimeout(2)
        proxy.connect(PROXY)
        proxy.sendall(b"hello\\r\\n\\r\\n")
        try:
            return proxy.recv(1) == b"H"
        except TimeoutError:
            return False
while True:
    began = time.monotonic()
    if not hand_over():
        print("refused")
        sys.exit()
    if not answers():  # else it had closed it before the child ended: so did the child, without waiting
        break
for _ in range(3):  # what was under way before may come first
    if os.path.exists("word"):
        os.unlink("word")
    while not os.path.exists("word") and time.monotonic() < began + seconds:
        time.sleep(0.01)
print("won" if time.monotonic() >= began + seconds else "the worker went on")
"""
"""It "won" if the worker's word came only after the kernel had closed what was sent."""


def linger(special: Special, seconds: int) -> str:
    write = ("tool", ("s", "write_file", {"path": "word", "content": "x"}), {})
    bomb = ("run", ("s", ["/bin/bash", "-c", python(LINGER, str(seconds))]), {"timeout": 60})
    result, _ = special.ask("beside", bomb, write)
    return result.output.decode(), result.blocked


@pytest.mark.long
def test_a_descriptor_that_takes_its_time_to_be_closed(special, verdict):
    """On a kernel that cannot refuse descriptors only the proxy stands still, until the command
    ends."""
    with special.session("older kernel"):
        output, blocked = linger(special, 50)
        assert output == "the worker went on\n"
        assert LOST not in blocked
        assert REACHED in special.bash(asking(GOOD)).output.decode()
    with special.session("in the worker"):
        assert linger(special, 6)[0] == "won\n"
        assert special.stall > 3
    verdict("the worker went on", "in the worker it stood still for as long")


def test_a_descriptor_for_the_proxy(special, verdict):
    with socket.socket(socket.AF_UNIX) as any_socket:
        try:
            any_socket.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            pytest.skip("this kernel has no SO_PASSRIGHTS")
    with special.session():
        assert linger(special, 3) == ("refused\n", ())
    with special.session("in the worker"):
        assert linger(special, 4)[0] != "refused\n"
    verdict("refused by the kernel", "without the option it is taken")


HELLOS = """
import socket, sys
def sized(data, size): return len(data).to_bytes(size, "big") + data
def hello(name):
    named = b"\\0\\0" + sized(sized(b"\\0" + sized(name, 2), 2), 2)
    inner = b"\\3\\3" + bytes(32) + b"\\0" + b"\\0\\2\\x13\\1" + b"\\1\\0" + sized(named, 2)
    message = b"\\1" + sized(inner, 3)
    parts = [message[at : at + 16384] for at in range(0, len(message), 16384)]
    return b"".join(b"\\x16\\3\\1" + sized(part, 2) for part in parts)
for number in range(int(sys.argv[2])):
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.connect("/run/egress/egress.sock")
        proxy.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\\r\\n\\r\\n".encode())
        assert b" 200 " in proxy.recv(4096)
        proxy.sendall(hello(b"%d" % number + b"\\xff" * 60_000))
        while proxy.recv(4096):
            pass
print("over")
"""


def test_a_hundred_hellos_with_names_of_60_kilobytes(special, verdict):
    def answer(times: int) -> str:
        command = python(HELLOS, GOOD, str(times))
        return special.tool("run_command", command=command, timeout=100)

    with special.session():
        told = answer(100)
        assert told.endswith("over")
        assert len(told) < 20_000
        assert "characters)\n" in told
        assert "blocked: 80 more hosts, which are left out here" in told
        assert max(map(len, told.splitlines())) < 700
    with special.session("without limits"):
        assert len(answer(20)) > 6 << 20
    verdict(f"an answer of {len(told)} characters", "twenty gave one of more than 6 MB")


FLOOD = """
import socket
for _ in range(10_000):
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.connect("/run/egress/egress.sock")
print("over")
"""


def test_a_flood_of_connections(special, verdict):
    """What the worker computes meanwhile is compared with what it computes with the proxy in it."""

    def cost() -> float:
        before = ticks(special.pid)
        result = special.bash(python(FLOOD), timeout=60)
        assert (result.output, result.blocked) == (b"over\n", ())
        return ticks(special.pid) - before

    with special.session():
        apart = cost()
        assert REACHED in special.bash(asking(GOOD)).output.decode()
    with special.session("in the worker"):
        within_it = cost()
    assert apart * 4 < within_it
    verdict(f"{apart * 10:.0f} ms of the worker", f"{within_it * 10:.0f} ms in the worker")


def ticks(pid: int) -> int:
    """How long a process has computed; see proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


SILENT = """
import select, socket, sys
waiting = []
for number in range(4):
    proxy = socket.create_connection(("127.0.0.1", 3128), 5)
    proxy.sendall(f"CONNECT silent{number}.wild.example:443 HTTP/1.1\\r\\n\\r\\n".encode())
    waiting.append(proxy)
print("answered" if select.select(waiting, [], [], 4)[0] else "they wait")
"""


@pytest.mark.long
def test_names_that_nobody_answers(special, verdict):
    """Another session's names are looked up nevertheless."""

    def others() -> list[bool]:
        special.create("other", SMALL, hosts=HOSTS)
        bomb = ("run", ("s", ["/bin/bash", "-c", python(SILENT)]), {})
        other = ("run", ("other", ["/bin/bash", "-c", asking(GOOD)]), {})
        result, given = special.ask("beside", bomb, other)
        special.ask("destroy", "other")
        assert result.output == b"they wait\n"
        return [REACHED in each.output.decode() for each in given]

    with special.session():
        assert all(others())
    with special.session("in the worker"):
        assert not all(others())
    verdict("the other session went on", "with threads for all it found no host")


# ── when it fails ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="frozen", marks=pytest.mark.long),
    ],
)
def test_a_proxy_that_ends_in_the_middle(number, special, verdict):
    """The session goes on without a way out: a new proxy would not know how much was sent."""
    script = f"{ASK_AND_WAIT}{asking(GOOD)}"
    with special.session():
        assert REACHED in special.bash(asking(GOOD)).output.decode()
        [pid] = proxies(special, 1)
        before = len(special.told())
        with watching(pid) as pidfd:
            special.tell("run", "s", ["/bin/bash", "-c", script])
            assert within(SOON, lambda: len(special.told()) > before)
            signal.pidfd_send_signal(pidfd, number)
            result = special._answer()
            assert has_ended(pidfd)
        assert result.blocked == (LOST,)
        assert REACHED not in result.output.decode()
        for _ in range(2):
            again = special.bash(asking(GOOD))
            assert again.blocked == (LOST,)
            assert REACHED not in again.output.decode()
        told = special.tool("run_command", command="echo alive")
        assert f"blocked: the proxy:0, times: 1: {LOST.reason}" in told
        assert told.endswith("alive")
        assert proxies(special) == []
    verdict("no way out any more", "before, the same words went out")


ASK_AND_WAIT = f"""
python3 - <<'END'
import socket, ssl
with socket.create_connection(("127.0.0.1", 3128), 5) as proxy:
    proxy.sendall(b"CONNECT {GOOD} HTTP/1.1\\r\\n\\r\\n")
    proxy.recv(4096)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(proxy, server_hostname="{named(PUBLIC)}") as secure:
        secure.recv(4096)
        try:
            while True:
                secure.sendall(b"go on")
                secure.recv(4096)
        except OSError as error:
            print("cut off", error)
END
"""

SAY = """
import os, time
os.read(0, 1)
def say(text, size=None):
    os.write(1, (size or len(text)).to_bytes(4, 'big'))
    while text:
        text = text[os.write(1, text):]
"""
LIARS = {
    "nothing": "import time; time.sleep(1000)",
    "its end": "import os; os.read(0, 1)",
    "a length of 4 GiB": f"{SAY}say(b'x' * (1 << 20), 0xffffffff)",
    "a drip": f"{SAY}say(b' ', 9999)\nwhile True: os.write(1, b' '); time.sleep(0.1)",
    "noise": f"{SAY}while True: os.write(1, os.urandom(1 << 16))",
    "brackets": f"{SAY}say(b'[' * 100_000)",
    "a number without an end": f"{SAY}say(b'9' * 100_000)",
    "no text": f"{SAY}say(bytes(range(128, 256)))",
    "another report": f"{SAY}say(b'{{}}')",
}


def row(
    host: object = "a.example",
    port: object = 443,
    times: object = 1,
    reason: object = "no",
) -> list[object]:
    return [host, port, times, reason]


def report(*rows: object, unreachable: object = "") -> bytes:
    return json.dumps({"blocked": rows, "unreachable": unreachable}).encode()


REPORTS = {
    "many rows": report(*[row()] * 2000),
    "a host of 60 KB": report(row(host="a" * 60_000)),
    "a reason of 60 KB": report(row(reason="a" * 60_000)),
    "times below zero": report(row(times=-5)),
    "times without an end": report(row()).replace(b" 1,", b" 1e999,"),
    "a port that is true": report(row(port=True)),
    "a row of three": report(row()[:3]),
    "unreachable hosts of 60 KB": report(unreachable="a" * 60_000),
}
LIARS |= {name: f"{SAY}say({text!r})" for name, text in REPORTS.items()}


@pytest.mark.parametrize("name", LIARS)
def test_a_proxy_that_was_taken_over_says(name, special, verdict):
    with special.session():
        assert special.bash("echo over").blocked == ()
    with special.session(child=LIARS[name]):
        [pid] = proxies(special, 1)
        with watching(pid) as pidfd:
            result, grown = special.ask("growth", "s", ["/bin/echo", "over"])
            assert has_ended(pidfd)
        assert (result.output, result.blocked) == (b"over\n", (LOST,))
        assert grown < 8 << 20
        assert special.bash("echo over").blocked == (LOST,)
    verdict("ended, and nothing is believed", "one that answers as it should is kept")


def test_hidden_words_of_a_proxy_that_was_taken_over(special, verdict):
    text = report(row("a\u202e\x1b[31mb\nblocked: c", 443, 2, "no\r\n\u200bway"))
    child = f"{SAY}say({text!r})\nos.read(0, 1)"
    with special.session(child=child):
        [blocked] = special.bash("true").blocked
    assert blocked == Blocked(host="ab blocked: c", port=443, times=2, reason="no way")
    verdict("one clean line", "the report had others in it")


# ── what it is ────────────────────────────────────────────────────────────────────────────────────


def test_sessions_without_hosts_have_no_proxy(special, verdict):
    with special.session(hosts=()):
        special.bash("true")
        assert proxies(special) == []
    with special.session():
        [pid] = proxies(special, 1)
        pidfd = os.pidfd_open(pid)
    assert has_ended(pidfd)
    os.close(pidfd)
    verdict("no process", "with hosts there is one, as long as the session")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into it")
def test_what_a_proxy_that_was_taken_over_finds_in_itself(special, verdict):
    with special.session():
        special.bash("true")
        [pid] = proxies(special, 1)
        proxy = Path(f"/proc/{pid}")
        worker = Path(f"/proc/{special.pid}")
        assert (proxy / "environ").read_bytes() == b""
        assert special.canary.encode() in (worker / "environ").read_bytes()
        status = (proxy / "status").read_text()
        uid = PROXY_UID if special.who == "root" else ORDINARY
        assert f"\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status
        assert "\nCapPrm:\t0000000000000000\n" in status
        assert "\nNoNewPrivs:\t1\n" in status
        assert "\nGroups:\t \n" in status
        opened = [os.readlink(fd) for fd in (proxy / "fd").iterdir()]
        kinds = {name.partition(":")[0] for name in opened}
        assert kinds <= {"pipe", "socket", "anon_inode", "/dev/null"}
        assert any(str(special.place) in os.readlink(fd) for fd in (worker / "fd").iterdir())
        assert (proxy / "fd").stat().st_uid == 0, "others of its user may trace it"
    verdict("no word, no file and no right of the worker's", "the worker has the canary")


IMPORTS_NO_MORE = """
import sys
sys.path.append(sys.argv[1])
from osiris.tools.sandbox.network import proxy_child
sys.path.clear()
sys.path_importer_cache.clear()
sys.meta_path.clear()
proxy_child.main()
"""


def test_a_proxy_whose_user_cannot_read_its_code(special):
    """All that it needs was imported before it became that user."""
    asks = [(GOOD,), ("evil.example:443",), ("none.wild.example:443",), (GOOD, "evil.example")]
    with special.session(child=IMPORTS_NO_MORE):
        result = special.bash("".join(asking(*words) for words in asks))
        again = special.bash(asking(GOOD))
    assert result.output.decode().count(REACHED) == 1
    assert [blocked.reason for blocked in result.blocked] == [
        "it is not on the list of allowed hosts",
        "there is no host of that name",
        "its TLS hello names another host: 'evil.example'",
    ]
    assert (REACHED in again.output.decode(), again.blocked) == (True, ())


def test_a_proxy_whose_worker_is_killed(worker, verdict):
    """A frozen one too, which does not see the end of its pipe."""
    with a_place() as place:
        doomed = start(worker.who, place, worker.repo, worker.base)
        doomed.create("s", SMALL, hosts=HOSTS)
        doomed.create("t", SMALL, hosts=HOSTS)
        doomed.bash("true")
        doomed.bash("true", name="t")
        free = int(doomed.unprotected("sleep 60 >/dev/null 2>&1 & echo $!"))
        frozen, other = proxies(doomed, 2)
        with watching(frozen) as one, watching(other) as two, watching(free) as third:
            signal.pidfd_send_signal(one, signal.SIGSTOP)
            os.kill(doomed.pid, signal.SIGKILL)
            assert has_ended(one)
            assert has_ended(two)
            assert not has_ended(third, 0), "the attack itself is broken"
            signal.pidfd_send_signal(third, signal.SIGKILL)
        doomed.close()
        heir = start(worker.who, place, worker.repo, worker.base)
        for name in ("s", "t"):
            heir.ask("remove", name)
        heir.close()
        assert list((place / "own/sandboxes").glob("@out/[st]")) == []
    verdict("it dies with its worker", "another process lived on")
