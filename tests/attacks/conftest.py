"""Attacks on the sandbox. Each has a control: the same attack succeeds when it runs without
protection; otherwise the attack itself is broken.

The attacks run against a worker of root and a worker of an ordinary user. On a machine without a
working jail they fail.
"""

import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from osiris.core.ports.sandbox import Result, SandboxLimits
from tests.attacks.attack import RecordVerdict
from tests.attacks.worker import CANARY, STALL_LIMIT, Stall
from tests.conftest import create_test_folder

MIB = 1 << 20
SMALL_LIMITS = SandboxLimits(
    memory=256 * MIB,
    disk=64 * MIB,
    file_size=48 * MIB,
    inodes=5000,
    processes=100,
    shared_memory=16 * MIB,
)
CHECKOUT = Path(__file__).parents[2]
ORDINARY_UID = 2000
STALLS: list[Stall] = []
"""The longest stall of a worker's event loop in each call of the tests of this process."""
USERS = ["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"]


class MachineClock(threading.Thread):
    """A thread that only sleeps, and measures how late it wakes. A virtual machine pauses now and
    then; such a pause is not a stall of the worker that is measured at the same time."""

    _INTERVAL = 0.01  # seconds

    def __init__(self) -> None:
        super().__init__(name="machine clock", daemon=True)
        self._longest = 0.0

    def run(self) -> None:
        while True:
            began = time.monotonic()
            time.sleep(self._INTERVAL)
            self._longest = max(self._longest, time.monotonic() - began - self._INTERVAL)

    def take_longest(self) -> float:
        """Return the longest delay since the last call, in seconds."""
        longest = self._longest
        self._longest = 0.0
        return longest


CLOCK = MachineClock()
CLOCK.start()


class WorkerUnderAttack:
    """A worker process of a kind of user (see `USERS`), whose files are below `folder`. Its
    sessions are checkouts of the repository `repo` at commit `base`."""

    def __init__(self, user: str, folder: Path, repo: Path, base: str) -> None:
        self.user = user
        self.folder = folder
        self.repo = repo
        self.base = base
        our_end, worker_end = socket.socketpair()
        with worker_end:
            self._process = subprocess.Popen(
                self._build_command(folder, worker_end.fileno()),
                env={
                    "PATH": "/usr/bin:/bin",
                    "PYTHONPATH": self._build_python_path(folder),
                    "OSIRIS_CANARY": CANARY,
                },
                pass_fds=[worker_end.fileno()],
                cwd=folder,
            )
        self._connection = Connection(our_end.detach())
        self.canary, self.port, self.pid = self.receive_result()

    def _build_command(self, folder: Path, fd: int) -> list[str]:
        """Return the command that starts the worker. An ordinary user may not be allowed to read
        this checkout, so its process gets a mount namespace in which it can."""
        argv = ["/usr/bin/python3", "-m", "tests.attacks.worker", str(fd), str(folder / "own")]
        if self.user == "root" or os.geteuid() != 0:
            return argv
        mount_code = (
            f"mount --bind {CHECKOUT} {folder}/checkout"
            f" && mount --bind {_find_packages()} {folder}/packages"
        )
        become_user = f"setpriv --reuid={ORDINARY_UID} --regid={ORDINARY_UID} --clear-groups"
        script = f'{mount_code} && exec {become_user} -- "$@"'
        return ["unshare", "--mount", "--propagation=private", "bash", "-c", script, "bash", *argv]

    def _build_python_path(self, folder: Path) -> str:
        if self.user == "ordinary" and os.geteuid() == 0:
            return f"{folder}/checkout:{folder}/packages"
        return f"{CHECKOUT}:{_find_packages()}"

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of `worker.WorkerService` in the worker, and return its result or raise
        its exception."""
        self.send_call(method, *args, **options)
        return self.receive_result()

    def send_call(self, method: str, *args: Any, **options: Any) -> None:
        """Send a call without waiting for its result, which may never come."""
        CLOCK.take_longest()
        self._connection.send((method, args, options))

    def receive_result(self) -> Any:
        """Return the result of the call that was sent last, or raise its exception. Raise an
        AssertionError if the call blocked the event loop of the worker for too long."""
        error, value, stall = self._connection.recv()
        STALLS.append(stall)
        if error:
            raise error
        assert stall[0] <= STALL_LIMIT + CLOCK.take_longest(), (
            f"the worker's event loop stood still for {stall[0]:.2f} s in {stall[1]}"
        )
        return value

    def create_session(
        self, name: str, limits: SandboxLimits = SMALL_LIMITS, **options: Any
    ) -> None:
        self.call("create_session", name, str(self.repo), self.base, limits=limits, **options)

    def destroy_session(self, name: str) -> None:
        self.call("destroy_session", name)

    def run_script(self, script: str, *, name: str = "s", **options: Any) -> Result:
        """Run a shell script in session `name`."""
        return self.call("run_command", name, ["/bin/bash", "-c", script], **options)

    def call_tool(self, tool: str, *, name: str = "s", **args: Any) -> str:
        """Call a tool of the model in session `name`, and return its answer."""
        return self.call("call_tool", name, tool, args)

    def run_unprotected(self, script: str, **options: Any) -> str:
        """Run a shell script as a control, without any protection, and return its output."""
        output = self.call("run_unprotected", ["/bin/bash", "-c", script], **options)
        return output.decode(errors="replace")

    def run_in_naive_jail(self, script: str, **options: Any) -> str:
        """Run a shell script as a control in a jail as many blog posts describe it: it has
        namespaces of its own, and nothing more."""
        jail = (
            "bwrap --unshare-all --die-with-parent --bind / / --dev /dev --proc /proc --"
            " /bin/bash -c"
        )
        return self.run_unprotected(f"{jail} {shlex.quote(script)}", **options)

    def run_in_namespaces(self, script: str, **options: Any) -> str:
        """Run a shell script as a control, as root of new namespaces without a filter of system
        calls."""
        unshare = (
            "unshare --map-root-user --mount --pid --fork --kill-child --net --uts --ipc"
            " --mount-proc"
        )
        return self.run_unprotected(f"{unshare} /bin/bash -c {shlex.quote(script)}", **options)

    def close(self) -> None:
        self._connection.close()
        self._process.wait(30)


def _find_packages() -> str:
    return str(next(Path(sys.prefix).glob("lib/python3*/site-packages")))


def _run_git(*args: str | Path, cwd: Path) -> str:
    config = ["-c", "user.name=a", "-c", "user.email=a@x", "-c", "init.defaultBranch=main"]
    argv = ["git", *config, *map(str, args)]
    completed = subprocess.run(argv, cwd=cwd, capture_output=True, check=True)
    return completed.stdout.decode().strip()


def _make_repository(folder: Path) -> tuple[Path, str]:
    """Create a small repository, and return its path and its commit."""
    seed = folder / "seed"
    seed.mkdir()
    for name, text in {
        "README.md": "hello\n",
        "src/app.py": "print('one')\n",
        "run.sh": "#!/bin/sh\n",
    }.items():
        (seed / name).parent.mkdir(exist_ok=True)
        (seed / name).write_text(text)
    _run_git("init", "-q", cwd=seed)
    _run_git("add", "-A", cwd=seed)
    _run_git("commit", "-qm", "base", cwd=seed)
    _run_git("clone", "-q", "--bare", seed, folder / "mirror.git", cwd=folder)
    return folder / "mirror.git", _run_git("rev-parse", "HEAD", cwd=seed)


def start_worker(user: str, folder: Path, repo: Path, base: str) -> WorkerUnderAttack:
    """Start a worker whose files are below `folder`."""
    for name in ("own", "checkout", "packages"):
        (folder / name).mkdir(exist_ok=True)
    if user == "ordinary" and os.geteuid() == 0:
        for owned in (folder / "own", repo):
            subprocess.run(["chown", "-R", f"{ORDINARY_UID}:{ORDINARY_UID}", owned], check=True)
    return WorkerUnderAttack(user, folder, repo, base)


@pytest.fixture(scope="session", params=USERS)
def worker(request: pytest.FixtureRequest) -> Iterator[WorkerUnderAttack]:
    """Provide a worker of each kind of user to all tests of this process. A test that breaks its
    worker starts one of its own."""
    with create_test_folder() as folder:
        repo, base = _make_repository(folder)
        worker = start_worker(request.param, folder, repo, base)
        yield worker
        worker.close()


@pytest.fixture
def fresh_session(worker: WorkerUnderAttack) -> Iterator[str]:
    """Provide a new session "s", the one that methods of the worker use by default."""
    worker.create_session("s")
    yield "s"
    worker.destroy_session("s")


@pytest.fixture(scope="session")
def shared_session(worker: WorkerUnderAttack) -> Iterator[str]:
    """Provide a session "shared" to all attacks that leave nothing in it."""
    worker.create_session("shared")
    yield "shared"
    worker.destroy_session("shared")


@pytest.fixture
def record_verdict(record_property: Callable[[str, object], None]) -> RecordVerdict:
    """Provide a function that records for `make attack`, in a few words each, what happened to the
    attack and what its control showed."""

    def record(outcome: str, control_outcome: str) -> None:
        record_property("held", str(outcome))
        record_property("control", str(control_outcome))

    return record


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--verdicts", action="store_true", help="print each attack with its verdict and its control"
    )


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--verdicts", default=False):
        return
    rows = []
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, ()):
            properties = dict(report.user_properties)
            file, _, name = report.nodeid.partition("::")
            suite = Path(file).stem.removeprefix("test_")
            mark = "held" if outcome == "passed" else "BROKEN"
            rows.append(
                (
                    suite,
                    name.removeprefix("test_"),
                    mark,
                    properties.get("held", "-"),
                    properties.get("control", "-"),
                )
            )
    for row in sorted(rows):
        terminalreporter.write_line(
            f"{row[2]:6}  {row[0]:8}  {row[1]:70}  {row[3]:60}  control: {row[4]}"
        )
    broken = sum(row[2] != "held" for row in rows)
    terminalreporter.write_line(f"\n{len(rows)} attacks: {len(rows) - broken} held, {broken} broke")
    longest, place = max(STALLS, default=(0.0, ""))
    terminalreporter.write_line(
        f"the longest stall of a worker's event loop: {longest * 1000:.0f} ms {place}"
    )
