"""Fixtures for all tests."""

import asyncio
import contextlib
import gc
import hashlib
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from osiris.queue.database import connect, migrate_schema
from osiris.tools.sandbox.disks.disk import Disk
from osiris.tools.sandbox.disks.image_disk import ImageDisk
from osiris.tools.sandbox.disks.mounts import unmount_below
from osiris.tools.sandbox.disks.tmpfs_disk import TmpfsDisk
from tests.servers import Postgres, Redis, start_postgres, start_redis

DATABASE_NUMBERS = itertools.count(1)

# attacks leave descriptors in flight; the limit of an ordinary user for them is low, see unix(7)
if os.geteuid() != 0:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        choices=("short", "long", "all"),
        default="all",
        help="which tests to run: those of `make test` (short) or of `make test-long` (long)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (part := config.getoption("--part")) == "all":
        return
    deselected = [item for item in items if _is_long(item) != (part == "long")]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if _is_long(item) == (part == "long")]


_ENVIRONMENT_PARAMETERS = ("pair", "worker")
"""Parameters that select where a case runs, not what it tests."""


def _is_long(item: pytest.Item) -> bool:
    """Return whether a case belongs to `make test-long` only.

    These are the cases marked `long`, all cases but the first of a test marked `first_case`, the
    cases on PostgreSQL and Redis of a test not marked `both_pairs`, and attacks as the second kind
    of user.
    """
    case = getattr(item, "callspec", None)
    params = case.params if case else {}
    indices = case.indices if case else {}
    is_later_case = any(
        index for name, index in indices.items() if name not in _ENVIRONMENT_PARAMETERS
    )
    return (
        item.get_closest_marker("long") is not None
        or (is_later_case and item.get_closest_marker("first_case") is not None)
        or (params.get("pair") == "servers" and item.get_closest_marker("both_pairs") is None)
        or (params.get("worker") == "ordinary" and os.geteuid() == 0)
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the cgroups of probes whose process a test has killed. A probe takes a second or two,
    and the kernel does not remove a cgroup that contains a process."""
    if hasattr(session.config, "workerinput"):  # the main process does it
        return
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            if not (match := re.fullmatch(r"osiris-probe-(\d+)-[0-9a-f]+", name)):
                continue
            folder = Path(top, name)
            with contextlib.suppress(OSError):
                is_old = folder.stat().st_mtime < time.time() - 10
                if is_old or not Path("/proc", match[1]).exists():
                    folder.rmdir()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@contextlib.contextmanager
def create_test_folder() -> Iterator[Path]:
    """Create a folder that the sandbox's user can access too; pytest's tmp_path is closed to it."""
    folder = Path(tempfile.mkdtemp(prefix="osiris-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        _remove_test_folder(folder)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Provide a folder for one test; see `create_test_folder`."""
    with create_test_folder() as test_folder:
        yield test_folder


def _remove_test_folder(folder: Path) -> None:
    unmount_below(folder)  # workspaces that a test left mounted
    # an ordinary user's disks belong to processes
    for pid_file in [*folder.glob("*/@held/*"), *folder.glob("*/*/@held/*")]:
        # the process has ended, or is writing its file
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(json.loads(pid_file.read_text())[0], signal.SIGKILL)
    _remove_cgroups({*folder.glob("*/sessions"), *folder.glob("*/*/sessions"), folder / "sessions"})
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True)


def list_disks(sessions: Path) -> list[Disk]:
    """Return the disks of the sessions in a folder. Those of an ordinary user are visible only
    through the process that holds them."""
    names = (
        [entry.name for entry in sessions.iterdir() if not entry.name.startswith("@")]
        if sessions.is_dir()
        else []
    )
    return [
        (ImageDisk if os.geteuid() == 0 else TmpfsDisk)(sessions, name, uid=None) for name in names
    ]


def _remove_cgroups(roots: set[Path]) -> None:
    """Remove the cgroups of sessions below `roots`. The spare jails of an Osiris that has ended are
    removed when they are garbage-collected, and their processes end a moment later."""
    prefixes = tuple(
        f"osiris-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}-" for root in roots
    )
    deadline = time.monotonic() + 10  # seconds; enough for a busy machine
    # not glob, which fails when other processes remove folders at the same time
    cgroups = [
        Path(top, name)
        for top, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(prefixes)
    ]
    while cgroups and time.monotonic() < deadline:
        for folder in cgroups.copy():
            with contextlib.suppress(OSError):
                folder.rmdir()
        cgroups = [folder for folder in cgroups if folder.exists()]
        if cgroups:
            gc.collect()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Provide a PostgreSQL for this test process, started on first use; see also `database`."""
    with start_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """Provide a Redis for this test process, started on first use. Call `flush` to empty it."""
    with start_redis() as server:
        yield server


@contextlib.contextmanager
def create_test_database(postgres: Postgres, template: str | None = None) -> Iterator[str]:
    """Create a PostgreSQL database and yield its address. A server that the test stopped or froze
    is restarted afterwards."""
    name = f"test_{next(DATABASE_NUMBERS)}"
    postgres.create(name, template)
    yield postgres.build_url(name)
    postgres.thaw()
    postgres.start()
    postgres.drop(name)


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """Provide the address of an empty PostgreSQL database."""
    with create_test_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_database(postgres: Postgres) -> str:
    """Provide the name of a PostgreSQL database with the current schema, as a template."""
    postgres.create("migrated")
    asyncio.run(_create_schema(postgres.build_url("migrated")))
    return "migrated"


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a SQLite database with the current schema; tests copy it."""
    path = tmp_path_factory.mktemp("schema") / "osiris.db"
    path.touch(0o600)
    asyncio.run(_create_schema(f"sqlite:///{path}"))
    return path


async def _create_schema(address: str) -> None:
    await migrate_schema(engine := connect(address))
    await engine.dispose()


PAIRS = ("embedded", "servers")
"""The two ways to run Osiris: SQLite and one process, or PostgreSQL and Redis."""


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Provide the settings of a pair. A test that uses this fixture runs on both."""
    if request.param == "embedded":
        yield {}
        return
    redis = request.getfixturevalue("redis_server")
    redis.flush()
    with create_test_database(
        request.getfixturevalue("postgres"), request.getfixturevalue("migrated_database")
    ) as url:
        yield {"database_url": url, "redis_url": redis.url}
