"""Private servers for tests: PostgreSQL and Redis as an ordinary user, on a free port of this
machine.

Each has its data in a temporary folder, in memory where there is room: on a disk, making a database
takes ten times as long. Both server and folder are gone when the process that started them ends,
however it ends (`tests/server_reaper.py`). Everything here blocks: a start for half a second, the
rest for some hundredths.
"""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, LiteralString, TypeVar

from tests import server_reaper

PATIENCE = 30.0
"""Seconds in which a server has to be ready: much more than it needs, for a machine that is
busy."""

ROOM = 1 << 30
"""Bytes to be free in memory before a server's folder is made there: it takes some 70 MB, and 8 per
database."""

PORTS = random.SystemRandom()
"""Not the common one, which a test may have seeded: then every process would choose the same
ports."""

POSTGRES = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "16MB",
    "dynamic_shared_memory_type": "mmap",  # in the folder: nothing stays in /dev/shm after a kill
    "fsync": "off",  # but commits are synchronous: what was committed is there after a stop
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "autovacuum": "off",
    "jit": "off",
}


def _owner() -> dict[str, Any]:
    """Whom a server runs as, for Popen: never root."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _program(name: str) -> str:
    """Where a server program is: Debian keeps PostgreSQL's out of the PATH. The newest of
    several."""
    debian = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4])
    )
    if found := (str(debian[-1]) if debian else shutil.which(name)):
        return found
    raise RuntimeError(f"{name} is not installed: run `make setup`")


def _free_port() -> int:
    """A free port below those that the system gives to outgoing connections, so that it is still
    ours after a stop."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := PORTS.randrange(15000, 32000)))
            return port


def states(pids: set[int]) -> set[str]:
    """Return how the kernel describes processes, such as T for stopped; see proc_pid_stat(5)."""
    found = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            found.add(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return found


class Server:
    """A server that runs from a folder of its own; `stop`, `start`, `freeze` and `thaw` may be
    called at any time."""

    FAREWELL: ClassVar[signal.Signals]
    """What it ends by at once, without leaving anything outside of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make what it needs in its empty folder."""

    def start(self) -> None:
        """Run, on the same port and with the same data as before; returns when it answers. Nothing
        if it runs."""
        if self._process is not None:
            return
        self._process = self._run(self._command())
        until = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(
                    f"{self._command()[0]} does not start:\n{self._log.read_text()[-2000:]}"
                )
            time.sleep(0.01)

    def stop(self) -> None:
        """End at once: connections break off, and new ones are refused. Nothing if it does not
        run."""
        if self._process is None:
            return
        with self._process:  # which leaves no zombie
            server_reaper.end(self.folder, self.FAREWELL)
        self._process = None

    def freeze(self) -> None:
        """Let every process of the server stand still: connections stay, and nothing is
        answered."""
        server_reaper.signal_all(self.folder, signal.SIGSTOP)
        self._wait_for(lambda state: state in "TZ")

    def thaw(self) -> None:
        """Let them go on; nothing if they do."""
        server_reaper.signal_all(self.folder, signal.SIGCONT)
        self._wait_for(lambda state: state != "T")

    def _wait_for(self, is_reached: Callable[[str], bool]) -> None:
        """Wait until all processes are in such a state: the kernel delivers a signal when a process
        has its turn, on a busy machine much later."""
        until = time.monotonic() + PATIENCE
        while not all(is_reached(state) for state in states(self.processes)):
            if time.monotonic() > until:
                raise TimeoutError(f"the processes of {self.folder} are {states(self.processes)}")
            time.sleep(0.005)

    @property
    def processes(self) -> set[int]:
        """The process ids of the server and all it started."""
        return server_reaper.at_home(self.folder)

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _run(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """A process at home in the folder, as an ordinary user."""
        surroundings = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(self.folder)}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=surroundings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_owner(),
            )

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError


ServerT = TypeVar("ServerT", bound=Server)


class Postgres(Server):
    """A PostgreSQL without fear for its data: fast, and broken by a power cut."""

    FAREWELL = signal.SIGQUIT

    def prepare(self) -> None:
        """Make the empty cluster."""
        flags = ["--no-sync", "--auth=trust", "--username=bot", "--encoding=UTF8", "--locale=C"]
        if self._run([_program("initdb"), "-D", str(self._data), *flags]).wait():
            raise RuntimeError(f"initdb failed:\n{self._log.read_text()[-2000:]}")

    def url(self, database: str) -> str:
        """The address of a database; without a driver's name, as an operator would write it."""
        return f"postgresql://bot@127.0.0.1:{self.port}/{database}"

    def create(self, database: str, template: str | None = None) -> None:
        """Make a database: empty, or a copy of `template`, to which nobody may be connected
        meanwhile."""
        self._do(
            "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", database, template or "template0"
        )

    def drop(self, database: str) -> None:
        """Remove a database if it is there, whoever is connected to it."""
        self._do("DROP DATABASE IF EXISTS {} WITH (FORCE)", database)

    def _do(self, statement: LiteralString, *names: str) -> None:
        import psycopg  # here: all tests load this module, and few need it
        from psycopg import sql

        with psycopg.connect(
            self.url("postgres"), autocommit=True, connect_timeout=2
        ) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _command(self) -> list[str]:
        options = [
            f"--{name}={value}" for name, value in {**POSTGRES, "port": str(self.port)}.items()
        ]
        return [_program("postgres"), "-D", str(self._data), *options]

    def _answers(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError):
            self._do("SELECT 1")
            return True
        return False


class Redis(Server):
    """A Redis that keeps everything in memory: a stop loses it."""

    FAREWELL = signal.SIGKILL

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        """Forget everything."""
        if (answer := self._say("FLUSHALL")) != "+OK":
            raise RuntimeError(answer)

    def _say(self, command: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(1024).decode().strip()

    def _command(self) -> list[str]:
        where = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        return [_program("redis-server"), *where, "--save", "", "--appendonly", "no"]

    def _answers(self) -> bool:
        with suppress(OSError):
            return self._say("PING") == "+PONG"
        return False


def _make_folder() -> Path:
    """A folder of the server's user, in memory where there is room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free >= ROOM
    folder = Path(
        tempfile.mkdtemp(prefix="osiris-server-", dir=memory if roomy else None)
    ).resolve()
    if owner := _owner():
        os.chown(folder, owner["user"], owner["group"])
    return folder


@contextmanager
def _running(kind: type[ServerT]) -> Iterator[ServerT]:
    folder = _make_folder()
    program = [
        sys.executable,
        "-I",
        "-S",
        server_reaper.__file__,
        str(folder),
        str(kind.FAREWELL.value),
    ]
    # leaving closes the pipe and waits
    with subprocess.Popen(program, stdin=subprocess.PIPE, start_new_session=True):
        server = kind(folder)
        try:
            server.prepare()
            server.start()
            yield server
        finally:
            server.stop()


def running_postgres() -> AbstractContextManager[Postgres]:
    """A PostgreSQL with no database of ours in it yet."""
    return _running(Postgres)


def running_redis() -> AbstractContextManager[Redis]:
    """An empty Redis."""
    return _running(Redis)
