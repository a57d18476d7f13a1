"""Attacks on the proxy process of a session, and through it on the worker."""

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from osiris.core.work import Blocked
from osiris.tools.sandbox.network.proxy_process import LOST, PROXY_UID, SO_PASSRIGHTS
from tests.attacks.attack import quote_python
from tests.attacks.conftest import ORDINARY_UID, SMALL_LIMITS, WorkerUnderAttack, start_worker
from tests.attacks.proxy_workers import IN_THE_WORKER
from tests.attacks.test_network import (
    ALLOWED_TARGET,
    PUBLIC,
    OnlineWorker,
    build_connect_script,
    encode_name,
)
from tests.attacks.test_survivors import wait_until
from tests.conftest import create_test_folder

HOSTS = ("*.wild.example",)
REACHED = f"reached at {PUBLIC}"
WAIT_TIMEOUT = 20.0  # seconds; every limited wait of this file ends earlier


class ProxyWorker(OnlineWorker):
    """A worker whose next sessions can get other proxies; see `proxy_workers`."""

    stall = 0.0
    """Seconds for which the event loop stood still in the last call of a control, where that is not
    a failure."""
    is_control = False

    def _build_command(self, folder: Path, fd: int) -> list[str]:
        argv = super()._build_command(folder, fd)
        argv[argv.index("tests.attacks.worker")] = "tests.attacks.proxy_workers"
        return argv

    def receive_result(self) -> Any:
        if not self.is_control:
            return super().receive_result()
        error, value, (self.stall, _) = self._connection.recv()
        if error:
            raise error
        return value

    @contextlib.contextmanager
    def open_session(
        self,
        mode: str = "",
        *,
        child: str = "",
        hosts: tuple[str, ...] = HOSTS,
    ) -> Iterator[None]:
        """Open a session "s" with a proxy that `ProxyWorkerService.choose_proxy` describes."""
        self.is_control = mode in IN_THE_WORKER
        self.call("choose_proxy", mode, child=child)
        self.create_session("s", SMALL_LIMITS, hosts=hosts)
        yield
        self.destroy_session("s")
        self.is_control = False


@pytest.fixture(scope="module")
def proxy_worker(worker: WorkerUnderAttack) -> Iterator[ProxyWorker]:
    with (
        create_test_folder() as folder,
        contextlib.closing(ProxyWorker.start(worker, folder)) as started,
    ):
        yield started


def wait_for_proxies(worker: WorkerUnderAttack, count: int = 0) -> list[int]:
    """Wait until a worker has so many proxy processes, and return all of them. A process that has
    just been started does not have its name yet."""
    assert wait_until(lambda: len(find_proxies(worker)) >= count, WAIT_TIMEOUT)
    return find_proxies(worker)


def find_proxies(worker: WorkerUnderAttack) -> list[int]:
    """Return the proxy processes of a worker."""
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_child = f"\nPPid:\t{worker.pid}\n" in (process / "status").read_text()
            if is_child and b"proxy_child" in (process / "cmdline").read_bytes():
                pids.append(int(process.name))
    return pids


@contextlib.contextmanager
def open_pidfd(pid: int) -> Iterator[int]:
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def has_ended(pidfd: int, seconds: float = WAIT_TIMEOUT) -> bool:
    return bool(select.select([pidfd], [], [], seconds)[0])


# ── attacks from a jail ───────────────────────────────────────────────────────────────────────────

HAND_OVER_SOCKET = """
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
    if child == 0:  # a process that exits does not wait for the sockets that it closes
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
    # If the proxy answers, it closed the socket before the child exited. Then the child closed it
    # last, without waiting, so the attempt shows nothing.
    if not answers():
        break
for _ in range(3):  # writes that had already begun may come first
    if os.path.exists("word"):
        os.unlink("word")
    while not os.path.exists("word") and time.monotonic() < began + seconds:
        time.sleep(0.01)
print("won" if time.monotonic() >= began + seconds else "the worker went on")
"""
"""A program that hands a socket to the proxy that the kernel needs `seconds` to close. It prints
"won" if the worker wrote the file "word" only after that."""


def run_linger(worker: ProxyWorker, seconds: int) -> tuple[str, Any]:
    """Run `HAND_OVER_SOCKET` while the worker writes a file again and again. Return its output, and
    what the proxy blocked."""
    write_call = ("call_tool", ("s", "write_file", {"path": "word", "content": "x"}), {})
    argv = ["/bin/bash", "-c", quote_python(HAND_OVER_SOCKET, str(seconds))]
    linger_call = ("run_command", ("s", argv), {"timeout": 60})
    result, _ = worker.call("run_beside", linger_call, write_call)
    return result.output.decode(), result.blocked


@pytest.mark.long
def test_a_descriptor_that_takes_its_time_to_be_closed(proxy_worker, record_verdict):
    """On a kernel that cannot refuse descriptors, only the proxy stands still, until the command
    ends."""
    with proxy_worker.open_session("older kernel"):
        output, blocked = run_linger(proxy_worker, 50)
        assert output == "the worker went on\n"
        assert LOST not in blocked
        assert (
            REACHED in proxy_worker.run_script(build_connect_script(ALLOWED_TARGET)).output.decode()
        )
    with proxy_worker.open_session("in the worker"):
        assert run_linger(proxy_worker, 6)[0] == "won\n"
        assert proxy_worker.stall > 3
    record_verdict("the worker went on", "in the worker it stood still for as long")


def test_a_descriptor_for_the_proxy(proxy_worker, record_verdict):
    with socket.socket(socket.AF_UNIX) as any_socket:
        try:
            any_socket.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        except OSError:
            pytest.skip("this kernel has no SO_PASSRIGHTS")
    with proxy_worker.open_session():
        assert run_linger(proxy_worker, 3) == ("refused\n", ())
    with proxy_worker.open_session("in the worker"):
        assert run_linger(proxy_worker, 4)[0] != "refused\n"
    record_verdict("refused by the kernel", "without the option it is taken")


SEND_HELLOS = """
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


def test_a_hundred_hellos_with_names_of_60_kilobytes(proxy_worker, record_verdict):
    def send_hellos(times: int) -> str:
        command = quote_python(SEND_HELLOS, ALLOWED_TARGET, str(times))
        return proxy_worker.call_tool("run_command", command=command, timeout=100)

    with proxy_worker.open_session():
        answer = send_hellos(100)
        assert answer.endswith("over")
        assert len(answer) < 20_000
        assert "characters)\n" in answer
        assert "blocked: 80 more hosts, which are left out here" in answer
        assert max(map(len, answer.splitlines())) < 700
    with proxy_worker.open_session("without limits"):
        assert len(send_hellos(20)) > 6 << 20
    record_verdict(f"an answer of {len(answer)} characters", "twenty gave one of more than 6 MB")


OPEN_CONNECTIONS = """
import socket
for _ in range(10_000):
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.connect("/run/egress/egress.sock")
print("over")
"""


def test_a_flood_of_connections(proxy_worker, record_verdict):
    """The processor time of the worker meanwhile must be much less than with the proxy in it."""

    def measure_ticks() -> int:
        before = read_cpu_ticks(proxy_worker.pid)
        result = proxy_worker.run_script(quote_python(OPEN_CONNECTIONS), timeout=60)
        assert (result.output, result.blocked) == (b"over\n", ())
        return read_cpu_ticks(proxy_worker.pid) - before

    with proxy_worker.open_session():
        worker_ticks = measure_ticks()
        assert (
            REACHED in proxy_worker.run_script(build_connect_script(ALLOWED_TARGET)).output.decode()
        )
    with proxy_worker.open_session("in the worker"):
        control_ticks = measure_ticks()
    assert worker_ticks * 4 < control_ticks
    record_verdict(
        f"{worker_ticks * 10:.0f} ms of the worker", f"{control_ticks * 10:.0f} ms in the worker"
    )


def read_cpu_ticks(pid: int) -> int:
    """Return the processor time of a process in clock ticks; see proc_pid_stat(5), fields 14 and
    15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


LOOK_UP_SILENT_NAMES = """
import select, socket, sys
waiting = []
for number in range(4):
    proxy = socket.create_connection(("127.0.0.1", 3128), 5)
    proxy.sendall(f"CONNECT silent{number}.wild.example:443 HTTP/1.1\\r\\n\\r\\n".encode())
    waiting.append(proxy)
print("answered" if select.select(waiting, [], [], 4)[0] else "they wait")
"""


@pytest.mark.long
def test_names_that_nobody_answers(proxy_worker, record_verdict):
    """Meanwhile the names of another session are still looked up."""

    def connect_beside() -> list[bool]:
        proxy_worker.create_session("other", SMALL_LIMITS, hosts=HOSTS)
        silent_call = (
            "run_command",
            ("s", ["/bin/bash", "-c", quote_python(LOOK_UP_SILENT_NAMES)]),
            {},
        )
        connect_call = (
            "run_command",
            ("other", ["/bin/bash", "-c", build_connect_script(ALLOWED_TARGET)]),
            {},
        )
        silent_result, results = proxy_worker.call("run_beside", silent_call, connect_call)
        proxy_worker.destroy_session("other")
        assert silent_result.output == b"they wait\n"
        return [REACHED in result.output.decode() for result in results]

    with proxy_worker.open_session():
        assert all(connect_beside())
    with proxy_worker.open_session("in the worker"):
        assert not all(connect_beside())
    record_verdict("the other session went on", "with threads for all it found no host")


# ── a proxy that fails or lies ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGSTOP, id="frozen", marks=pytest.mark.long),
    ],
)
def test_a_proxy_that_ends_in_the_middle(number, proxy_worker, record_verdict):
    """The session continues without network access, because a new proxy would not know how much
    was sent already."""
    script = f"{ASK_AND_WAIT}{build_connect_script(ALLOWED_TARGET)}"
    with proxy_worker.open_session():
        assert (
            REACHED in proxy_worker.run_script(build_connect_script(ALLOWED_TARGET)).output.decode()
        )
        [pid] = wait_for_proxies(proxy_worker, 1)
        before = len(proxy_worker.read_received())
        with open_pidfd(pid) as pidfd:
            proxy_worker.send_call("run_command", "s", ["/bin/bash", "-c", script])
            assert wait_until(lambda: len(proxy_worker.read_received()) > before, WAIT_TIMEOUT)
            signal.pidfd_send_signal(pidfd, number)
            result = proxy_worker.receive_result()
            assert has_ended(pidfd)
        assert result.blocked == (LOST,)
        assert REACHED not in result.output.decode()
        for _ in range(2):
            again = proxy_worker.run_script(build_connect_script(ALLOWED_TARGET))
            assert again.blocked == (LOST,)
            assert REACHED not in again.output.decode()
        answer = proxy_worker.call_tool("run_command", command="echo alive")
        assert f"blocked: the proxy:0, times: 1: {LOST.reason}" in answer
        assert answer.endswith("alive")
        assert find_proxies(proxy_worker) == []
    record_verdict("no way out any more", "before, the same words went out")


ASK_AND_WAIT = f"""
python3 - <<'END'
import socket, ssl
with socket.create_connection(("127.0.0.1", 3128), 5) as proxy:
    proxy.sendall(b"CONNECT {ALLOWED_TARGET} HTTP/1.1\\r\\n\\r\\n")
    proxy.recv(4096)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(proxy, server_hostname="{encode_name(PUBLIC)}") as secure:
        secure.recv(4096)
        try:
            while True:
                secure.sendall(b"go on")
                secure.recv(4096)
        except OSError as error:
            print("cut off", error)
END
"""

REPORT_PRELUDE = """
import os, time
os.read(0, 1)
def say(text, size=None):
    os.write(1, (size or len(text)).to_bytes(4, 'big'))
    while text:
        text = text[os.write(1, text):]
"""
HOSTILE_PROXIES = {
    "nothing": "import time; time.sleep(1000)",
    "its end": "import os; os.read(0, 1)",
    "a length of 4 GiB": f"{REPORT_PRELUDE}say(b'x' * (1 << 20), 0xffffffff)",
    "a drip": f"{REPORT_PRELUDE}say(b' ', 9999)\nwhile True: os.write(1, b' '); time.sleep(0.1)",
    "noise": f"{REPORT_PRELUDE}while True: os.write(1, os.urandom(1 << 16))",
    "brackets": f"{REPORT_PRELUDE}say(b'[' * 100_000)",
    "a number without an end": f"{REPORT_PRELUDE}say(b'9' * 100_000)",
    "no text": f"{REPORT_PRELUDE}say(bytes(range(128, 256)))",
    "another report": f"{REPORT_PRELUDE}say(b'{{}}')",
}


def build_row(
    host: object = "a.example",
    port: object = 443,
    times: object = 1,
    reason: object = "no",
) -> list[object]:
    return [host, port, times, reason]


def build_report(*rows: object, unreachable: object = "") -> bytes:
    return json.dumps({"blocked": rows, "unreachable": unreachable}).encode()


REPORTS = {
    "many rows": build_report(*[build_row()] * 2000),
    "a host of 60 KB": build_report(build_row(host="a" * 60_000)),
    "a reason of 60 KB": build_report(build_row(reason="a" * 60_000)),
    "times below zero": build_report(build_row(times=-5)),
    "times without an end": build_report(build_row()).replace(b" 1,", b" 1e999,"),
    "a port that is true": build_report(build_row(port=True)),
    "a row of three": build_report(build_row()[:3]),
    "unreachable hosts of 60 KB": build_report(unreachable="a" * 60_000),
}
HOSTILE_PROXIES |= {name: f"{REPORT_PRELUDE}say({text!r})" for name, text in REPORTS.items()}


@pytest.mark.parametrize("name", HOSTILE_PROXIES)
def test_a_proxy_that_was_taken_over_says(name, proxy_worker, record_verdict):
    with proxy_worker.open_session():
        assert proxy_worker.run_script("echo over").blocked == ()
    with proxy_worker.open_session(child=HOSTILE_PROXIES[name]):
        [pid] = wait_for_proxies(proxy_worker, 1)
        with open_pidfd(pid) as pidfd:
            result, growth = proxy_worker.call("measure_growth", "s", ["/bin/echo", "over"])
            assert has_ended(pidfd)
        assert (result.output, result.blocked) == (b"over\n", (LOST,))
        assert growth < 8 << 20
        assert proxy_worker.run_script("echo over").blocked == (LOST,)
    record_verdict("ended, and nothing is believed", "one that answers as it should is kept")


def test_hidden_words_of_a_proxy_that_was_taken_over(proxy_worker, record_verdict):
    text = build_report(build_row("a\u202e\x1b[31mb\nblocked: c", 443, 2, "no\r\n\u200bway"))
    child = f"{REPORT_PRELUDE}say({text!r})\nos.read(0, 1)"
    with proxy_worker.open_session(child=child):
        [blocked] = proxy_worker.run_script("true").blocked
    assert blocked == Blocked(host="ab blocked: c", port=443, times=2, reason="no way")
    record_verdict("one clean line", "the report had others in it")


# ── the proxy process ─────────────────────────────────────────────────────────────────────────────


def test_sessions_without_hosts_have_no_proxy(proxy_worker, record_verdict):
    with proxy_worker.open_session(hosts=()):
        proxy_worker.run_script("true")
        assert find_proxies(proxy_worker) == []
    with proxy_worker.open_session():
        [pid] = wait_for_proxies(proxy_worker, 1)
        pidfd = os.pidfd_open(pid)
    assert has_ended(pidfd)
    os.close(pidfd)
    record_verdict("no process", "with hosts there is one, as long as the session")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into the process")
def test_what_a_proxy_that_was_taken_over_finds_in_itself(proxy_worker, record_verdict):
    with proxy_worker.open_session():
        proxy_worker.run_script("true")
        [pid] = wait_for_proxies(proxy_worker, 1)
        proxy = Path(f"/proc/{pid}")
        worker = Path(f"/proc/{proxy_worker.pid}")
        assert (proxy / "environ").read_bytes() == b""
        assert proxy_worker.canary.encode() in (worker / "environ").read_bytes()
        status = (proxy / "status").read_text()
        uid = PROXY_UID if proxy_worker.user == "root" else ORDINARY_UID
        assert f"\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n" in status
        assert "\nCapPrm:\t0000000000000000\n" in status
        assert "\nNoNewPrivs:\t1\n" in status
        assert "\nGroups:\t \n" in status
        files = [os.readlink(fd) for fd in (proxy / "fd").iterdir()]
        kinds = {name.partition(":")[0] for name in files}
        assert kinds <= {"pipe", "socket", "anon_inode", "/dev/null"}
        assert any(str(proxy_worker.folder) in os.readlink(fd) for fd in (worker / "fd").iterdir())
        assert (proxy / "fd").stat().st_uid == 0, "others of its user may trace it"
    record_verdict("no word, no file and no right of the worker's", "the worker has the canary")


BLOCK_IMPORTS = """
import sys
sys.path.append(sys.argv[1])
from osiris.tools.sandbox.network import proxy_child
sys.path.clear()
sys.path_importer_cache.clear()
sys.meta_path.clear()
proxy_child.main()
"""


def test_a_proxy_whose_user_cannot_read_its_code(proxy_worker):
    """The proxy imports all that it needs before it becomes that user."""
    targets = [
        (ALLOWED_TARGET,),
        ("evil.example:443",),
        ("none.wild.example:443",),
        (ALLOWED_TARGET, "evil.example"),
    ]
    with proxy_worker.open_session(child=BLOCK_IMPORTS):
        result = proxy_worker.run_script(
            "".join(build_connect_script(*target) for target in targets)
        )
        again = proxy_worker.run_script(build_connect_script(ALLOWED_TARGET))
    assert result.output.decode().count(REACHED) == 1
    assert [blocked.reason for blocked in result.blocked] == [
        "it is not on the list of allowed hosts",
        "there is no host of that name",
        "its TLS hello names another host: 'evil.example'",
    ]
    assert (REACHED in again.output.decode(), again.blocked) == (True, ())


def test_a_proxy_whose_worker_is_killed(worker, record_verdict):
    """A frozen proxy, which does not notice that its pipe is closed, ends too."""
    with create_test_folder() as folder:
        killed_worker = start_worker(worker.user, folder, worker.repo, worker.base)
        killed_worker.create_session("s", SMALL_LIMITS, hosts=HOSTS)
        killed_worker.create_session("t", SMALL_LIMITS, hosts=HOSTS)
        killed_worker.run_script("true")
        killed_worker.run_script("true", name="t")
        control_pid = int(killed_worker.run_unprotected("sleep 60 >/dev/null 2>&1 & echo $!"))
        frozen_pid, other_pid = wait_for_proxies(killed_worker, 2)
        with (
            open_pidfd(frozen_pid) as frozen,
            open_pidfd(other_pid) as other,
            open_pidfd(control_pid) as control,
        ):
            signal.pidfd_send_signal(frozen, signal.SIGSTOP)
            os.kill(killed_worker.pid, signal.SIGKILL)
            assert has_ended(frozen)
            assert has_ended(other)
            assert not has_ended(control, 0), "the attack itself is broken"
            signal.pidfd_send_signal(control, signal.SIGKILL)
        killed_worker.close()
        next_worker = start_worker(worker.user, folder, worker.repo, worker.base)
        for name in ("s", "t"):
            next_worker.call("remove_session", name)
        next_worker.close()
        assert list((folder / "own/sandboxes").glob("@out/[st]")) == []
    record_verdict("it dies with its worker", "another process lived on")
