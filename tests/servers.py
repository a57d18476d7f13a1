"""Private servers for tests: PostgreSQL and Redis, as an ordinary user, on a free port of this
machine.

Each has its data in a temporary folder, in memory if enough is free: on a disk, creating a database
takes ten times as long. The server and its folder are removed when the process that started them
ends, even by `kill -9` (see `tests/server_reaper.py`). All functions block: a start takes half a
second, the others some hundredths.
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

START_TIMEOUT = 30.0
"""Seconds until a server must be ready: much more than it needs, because the machine may be
busy."""

MIN_FREE_MEMORY = 1 << 30
"""Bytes that must be free in memory before a server's folder is created there. A server needs about
70 MB, and 8 MB for each database."""

PORT_RANDOM = random.SystemRandom()
"""A separate random generator: a test may have seeded the common one, and then all processes would
choose the same ports."""

POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "16MB",
    "dynamic_shared_memory_type": "mmap",  # in the folder: a kill leaves nothing in /dev/shm
    "fsync": "off",  # commits are synchronous all the same, so a stop loses none
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "autovacuum": "off",
    "jit": "off",
}


def _build_user_options() -> dict[str, Any]:
    """Return the options with which Popen runs a server as an ordinary user, never as root."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _find_program(name: str) -> str:
    """Return the path of a server program. Debian keeps those of PostgreSQL outside of the PATH; of
    several versions, the newest is used."""
    debian_paths = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4])
    )
    if path := (str(debian_paths[-1]) if debian_paths else shutil.which(name)):
        return path
    raise RuntimeError(f"{name} is not installed: run `make setup`")


def _choose_port() -> int:
    """Return a free port below the range that the system uses for outgoing connections, so that it
    stays free while the server is stopped."""
    while True:
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port := PORT_RANDOM.randrange(15000, 32000)))
            return port


def read_process_states(pids: set[int]) -> set[str]:
    """Return the states of processes as the kernel names them, such as T for stopped; see
    proc_pid_stat(5)."""
    states = set()
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has just ended
            states.add(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
    return states


class Server:
    """A server that runs in its own folder. `stop`, `start`, `freeze` and `thaw` may be called at
    any time."""

    STOP_SIGNAL: ClassVar[signal.Signals]
    """The signal that ends the server at once and leaves nothing outside of its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = _choose_port()
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Create what the server needs in its empty folder."""

    def start(self) -> None:
        """Start the server on the same port and with the same data as before, and wait until it is
        ready. Do nothing if it runs."""
        if self._process is not None:
            return
        self._process = self._start_process(self._build_command())
        deadline = time.monotonic() + START_TIMEOUT
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                log = self._log_file.read_text()[-2000:]
                raise RuntimeError(f"{self._build_command()[0]} does not start:\n{log}")
            time.sleep(0.01)

    def stop(self) -> None:
        """End the server at once. Connections break, and new ones are refused. Do nothing if it
        does not run."""
        if self._process is None:
            return
        with self._process:  # waits for the process, so that no zombie is left
            server_reaper.end_processes(self.folder, self.STOP_SIGNAL)
        self._process = None

    def freeze(self) -> None:
        """Stop every process of the server with SIGSTOP: connections stay open, and requests get no
        answer."""
        server_reaper.signal_processes(self.folder, signal.SIGSTOP)
        self._wait_for_states(lambda state: state in "TZ")

    def thaw(self) -> None:
        """Continue the processes of the server. Do nothing if they are not frozen."""
        server_reaper.signal_processes(self.folder, signal.SIGCONT)
        self._wait_for_states(lambda state: state != "T")

    def _wait_for_states(self, is_reached: Callable[[str], bool]) -> None:
        """Wait until all processes are in such a state. The kernel delivers a signal when a process
        is scheduled, which takes long on a busy machine."""
        deadline = time.monotonic() + START_TIMEOUT
        while not all(is_reached(state) for state in read_process_states(self.processes)):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the processes of {self.folder} are {read_process_states(self.processes)}"
                )
            time.sleep(0.005)

    @property
    def processes(self) -> set[int]:
        """The ids of the server's process and of all processes that it started."""
        return server_reaper.find_processes(self.folder)

    @property
    def _log_file(self) -> Path:
        return self.folder / "log"

    def _start_process(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a process with the folder as its working directory, as an ordinary user."""
        environ = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "HOME": str(self.folder)}
        with self._log_file.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **_build_user_options(),
            )

    def _build_command(self) -> list[str]:
        raise NotImplementedError

    def _is_ready(self) -> bool:
        raise NotImplementedError


ServerT = TypeVar("ServerT", bound=Server)


class Postgres(Server):
    """A PostgreSQL that is fast and loses data in a power failure."""

    STOP_SIGNAL = signal.SIGQUIT

    def prepare(self) -> None:
        """Create the empty cluster."""
        flags = ["--no-sync", "--auth=trust", "--username=bot", "--encoding=UTF8", "--locale=C"]
        if self._start_process(
            [_find_program("initdb"), "-D", str(self._data_folder), *flags]
        ).wait():
            raise RuntimeError(f"initdb failed:\n{self._log_file.read_text()[-2000:]}")

    def build_url(self, database: str) -> str:
        """Return the URL of a database, without the name of a driver, as an operator writes it."""
        return f"postgresql://bot@127.0.0.1:{self.port}/{database}"

    def create(self, database: str, template: str | None = None) -> None:
        """Create a database: empty, or a copy of `template`, which must have no connections
        meanwhile."""
        self._execute(
            "CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", database, template or "template0"
        )

    def drop(self, database: str) -> None:
        """Remove a database if it exists, and close the connections to it."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", database)

    def _execute(self, statement: LiteralString, *names: str) -> None:
        import psycopg  # imported here: all tests load this module, few need psycopg
        from psycopg import sql

        with psycopg.connect(
            self.build_url("postgres"), autocommit=True, connect_timeout=2
        ) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    @property
    def _data_folder(self) -> Path:
        return self.folder / "data"

    def _build_command(self) -> list[str]:
        options = [
            f"--{name}={value}"
            for name, value in {**POSTGRES_SETTINGS, "port": str(self.port)}.items()
        ]
        return [_find_program("postgres"), "-D", str(self._data_folder), *options]

    def _is_ready(self) -> bool:
        import psycopg

        with suppress(psycopg.OperationalError):
            self._execute("SELECT 1")
            return True
        return False


class Redis(Server):
    """A Redis that keeps everything in memory; a stop loses it."""

    STOP_SIGNAL = signal.SIGKILL

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def flush(self) -> None:
        """Delete all keys."""
        if (reply := self._send_command("FLUSHALL")) != "+OK":
            raise RuntimeError(reply)

    def _send_command(self, command: str) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(1024).decode().strip()

    def _build_command(self) -> list[str]:
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        return [_find_program("redis-server"), *options, "--save", "", "--appendonly", "no"]

    def _is_ready(self) -> bool:
        with suppress(OSError):
            return self._send_command("PING") == "+PONG"
        return False


def _create_folder() -> Path:
    """Create a folder of the server's user, in memory if enough is free."""
    memory_folder = Path("/dev/shm")
    has_room = memory_folder.is_dir() and shutil.disk_usage(memory_folder).free >= MIN_FREE_MEMORY
    folder = Path(
        tempfile.mkdtemp(prefix="osiris-server-", dir=memory_folder if has_room else None)
    ).resolve()
    if user_options := _build_user_options():
        os.chown(folder, user_options["user"], user_options["group"])
    return folder


@contextmanager
def _run_server(kind: type[ServerT]) -> Iterator[ServerT]:
    folder = _create_folder()
    command = [
        sys.executable,
        "-I",
        "-S",
        server_reaper.__file__,
        str(folder),
        str(kind.STOP_SIGNAL.value),
    ]
    # at the end of the block the pipe is closed, and the reaper is waited for
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True):
        server = kind(folder)
        try:
            server.prepare()
            server.start()
            yield server
        finally:
            server.stop()


def start_postgres() -> AbstractContextManager[Postgres]:
    """Run a PostgreSQL without databases until the block ends."""
    return _run_server(Postgres)


def start_redis() -> AbstractContextManager[Redis]:
    """Run an empty Redis until the block ends."""
    return _run_server(Redis)
