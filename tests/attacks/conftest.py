"""Attacks on the sandbox. Each has a control: the same attack on an unprotected run succeeds, or
the attack is broken.

They go through a worker that runs as root and one that is an ordinary user's. A machine without a
jail turns them red.
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
from tests.attacks.worker import CANARY, STALL, Stall
from tests.conftest import a_place

MIB = 1 << 20
SMALL = SandboxLimits(
    memory=256 * MIB,
    disk=64 * MIB,
    file_size=48 * MIB,
    inodes=5000,
    processes=100,
    shared_memory=16 * MIB,
)
HOUSE = Path(__file__).parents[2]
ORDINARY = 2000
STALLS: list[Stall] = []
"""The longest stall of a worker's event loop in each call of the tests of this process."""
USERS = ["root", "ordinary"] if os.geteuid() == 0 else ["ordinary"]


class MachineClock(threading.Thread):
    """A thread that only sleeps. How late it wakes is the machine's doing: a virtual machine stands
    still now and then, which is no stall of the worker that is measured meanwhile."""

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
        """Return the seconds by which it was late at most since the last call."""
        longest = self._longest
        self._longest = 0.0
        return longest


CLOCK = MachineClock()
CLOCK.start()


class Attacked:
    """A worker of user `who` with one session, "s", of a small repository `repo` at `base`."""

    def __init__(self, who: str, place: Path, repo: Path, base: str) -> None:
        self.who = who
        self.place = place
        self.repo = repo
        self.base = base
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                self._command(place, theirs.fileno()),
                env={
                    "PATH": "/usr/bin:/bin",
                    "PYTHONPATH": self._path(place),
                    "OSIRIS_CANARY": CANARY,
                },
                pass_fds=[theirs.fileno()],
                cwd=place,
            )
        self._conn = Connection(ours.detach())
        self.canary, self.port, self.pid = self._answer()

    def _command(self, place: Path, fd: int) -> list[str]:
        """An ordinary user sees our code where it can read it, in a mount namespace of that process
        alone: a checkout may lie where only its owner can look."""
        argv = ["/usr/bin/python3", "-m", "tests.attacks.worker", str(fd), str(place / "own")]
        if self.who == "root" or os.geteuid() != 0:
            return argv
        binds = f"mount --bind {HOUSE} {place}/house && mount --bind {_packages()} {place}/packages"
        lower = (
            f'{binds} && exec setpriv --reuid={ORDINARY} --regid={ORDINARY} --clear-groups -- "$@"'
        )
        return ["unshare", "--mount", "--propagation=private", "bash", "-c", lower, "bash", *argv]

    def _path(self, place: Path) -> str:
        ordinary = self.who == "ordinary" and os.geteuid() == 0
        return f"{place}/house:{place}/packages" if ordinary else f"{HOUSE}:{_packages()}"

    def ask(self, method: str, *args: Any, **options: Any) -> Any:
        """Have the worker do something; see `worker.AttackedWorker`. What it raised is raised
        here."""
        self.tell(method, *args, **options)
        return self._answer()

    def tell(self, method: str, *args: Any, **options: Any) -> None:
        """The same, for a worker that will not answer any more."""
        CLOCK.take_longest()
        self._conn.send((method, args, options))

    def _answer(self) -> Any:
        error, value, stall = self._conn.recv()
        STALLS.append(stall)
        if error:
            raise error
        assert stall[0] <= STALL + CLOCK.take_longest(), (
            f"the worker's event loop stood still for {stall[0]:.2f} s in {stall[1]}"
        )
        return value

    def create(self, name: str, limits: SandboxLimits = SMALL, **more: Any) -> None:
        self.ask("create", name, str(self.repo), self.base, limits=limits, **more)

    def bash(self, script: str, *, name: str = "s", **options: Any) -> Result:
        """Run a script in the session."""
        return self.ask("run", name, ["/bin/bash", "-c", script], **options)

    def unprotected(self, script: str, **options: Any) -> str:
        """Run the same script with nothing around it, for the control."""
        return self.ask("plain", ["/bin/bash", "-c", script], **options).decode(errors="replace")

    def naive(self, script: str, **options: Any) -> str:
        """Run it in the jail of many a blog post, for the control: its own name spaces, and no more
        than that."""
        jail = (
            "bwrap --unshare-all --die-with-parent --bind / / --dev /dev --proc /proc --"
            " /bin/bash -c"
        )
        return self.unprotected(f"{jail} {shlex.quote(script)}", **options)

    def namespaced(self, script: str, **options: Any) -> str:
        """Run it as root of new name spaces, for the control: what somebody can do there whom no
        filter stops."""
        spaces = (
            "unshare --map-root-user --mount --pid --fork --kill-child --net --uts --ipc"
            " --mount-proc"
        )
        return self.unprotected(f"{spaces} /bin/bash -c {shlex.quote(script)}", **options)

    def tool(self, tool: str, *, name: str = "s", **args: Any) -> str:
        return self.ask("tool", name, tool, args)

    def close(self) -> None:
        self._conn.close()
        self._process.wait(30)


def _packages() -> str:
    return str(next(Path(sys.prefix).glob("lib/python3*/site-packages")))


def _git(*words: str | Path, cwd: Path) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@x", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *who, *map(str, words)], cwd=cwd, capture_output=True, check=True)
    return done.stdout.decode().strip()


def _repository(place: Path) -> tuple[Path, str]:
    seed = place / "seed"
    seed.mkdir()
    for name, text in {
        "README.md": "hello\n",
        "src/app.py": "print('one')\n",
        "run.sh": "#!/bin/sh\n",
    }.items():
        (seed / name).parent.mkdir(exist_ok=True)
        (seed / name).write_text(text)
    _git("init", "-q", cwd=seed)
    _git("add", "-A", cwd=seed)
    _git("commit", "-qm", "base", cwd=seed)
    _git("clone", "-q", "--bare", seed, place / "mirror.git", cwd=place)
    return place / "mirror.git", _git("rev-parse", "HEAD", cwd=seed)


def start(who: str, place: Path, repo: Path, base: str) -> Attacked:
    """A worker whose own folder is in `place`."""
    for folder in ("own", "house", "packages"):
        (place / folder).mkdir(exist_ok=True)
    if who == "ordinary" and os.geteuid() == 0:
        for folder in (place / "own", repo):
            subprocess.run(["chown", "-R", f"{ORDINARY}:{ORDINARY}", folder], check=True)
    return Attacked(who, place, repo, base)


@pytest.fixture(scope="session", params=USERS)
def worker(request: pytest.FixtureRequest) -> Iterator[Attacked]:
    """A worker of each kind of user, for all tests of this process; tests that break theirs make
    one of their own."""
    with a_place() as place:
        repo, base = _repository(place)
        attacked = start(request.param, place, repo, base)
        yield attacked
        attacked.close()


@pytest.fixture
def attacked(worker: Attacked) -> Iterator[Attacked]:
    """A worker with a fresh session "s"."""
    worker.create("s")
    yield worker
    worker.ask("destroy", "s")


@pytest.fixture(scope="session")
def lasting(worker: Attacked) -> Iterator[Attacked]:
    """A worker with a session "lasting", for attacks that leave nothing in it."""
    worker.create("lasting")
    yield worker
    worker.ask("destroy", "lasting")


@pytest.fixture
def verdict(record_property: Callable[[str, object], None]) -> Callable[[str, str], None]:
    """Notes for `make attack`, in a few words each: what happened to the attack, and what its
    control showed."""

    def note(held: str, control: str) -> None:
        record_property("held", str(held))
        record_property("control", str(control))

    return note


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
            said = dict(report.user_properties)
            file, _, name = report.nodeid.partition("::")
            suite = Path(file).stem.removeprefix("test_")
            mark = "held" if outcome == "passed" else "BROKEN"
            rows.append(
                (
                    suite,
                    name.removeprefix("test_"),
                    mark,
                    said.get("held", "-"),
                    said.get("control", "-"),
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
