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
from tests.servers import Postgres, Redis, running_postgres, running_redis

NUMBERS = itertools.count(1)

# attacks leave descriptors in flight, whose number per user is limited: unix(7)
if os.geteuid() != 0:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        choices=("short", "long", "all"),
        default="all",
        help="of `make test`, and the rest",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (part := config.getoption("--part")) == "all":
        return
    left = [item for item in items if _is_long(item) != (part == "long")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if _is_long(item) == (part == "long")]


_SURROUNDINGS = ("pair", "worker")
"""Parameters that say where a case runs, and not what it tests."""


def _is_long(item: pytest.Item) -> bool:
    """Return whether a case belongs to `make test-long` only.

    These are the cases marked `long`, the cases of a `first_case` test after its first, the second
    database where the database does not matter, and attacks as the second kind of user.
    """
    case = getattr(item, "callspec", None)
    params = case.params if case else {}
    indices = case.indices if case else {}
    is_later_case = any(index for name, index in indices.items() if name not in _SURROUNDINGS)
    return (
        item.get_closest_marker("long") is not None
        or (is_later_case and item.get_closest_marker("first_case") is not None)
        or (params.get("pair") == "servers" and item.get_closest_marker("both_pairs") is None)
        or (params.get("worker") == "ordinary" and os.geteuid() == 0)
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Remove the cgroups of probes whose process a test has killed. A probe takes a second or two,
    and the kernel removes no cgroup with a process in it."""
    if hasattr(session.config, "workerinput"):  # a process of pytest-xdist: the first one does it
        return
    for top, names, _ in os.walk("/sys/fs/cgroup"):
        for name in names:
            if not (found := re.fullmatch(r"osiris-probe-(\d+)-[0-9a-f]+", name)):
                continue
            folder = Path(top, name)
            with contextlib.suppress(OSError):
                is_old = folder.stat().st_mtime < time.time() - 10
                if is_old or not Path("/proc", found[1]).exists():
                    folder.rmdir()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return ("asyncio", {"use_uvloop": True})


@contextlib.contextmanager
def a_place() -> Iterator[Path]:
    """Create a folder that the sandbox's user can access too (pytest's tmp_path is closed to
    it)."""
    path = Path(tempfile.mkdtemp(prefix="osiris-test-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        _clear(path)


@pytest.fixture
def place() -> Iterator[Path]:
    """Provide a folder for one test; see `a_place`."""
    with a_place() as path:
        yield path


def _clear(path: Path) -> None:
    unmount_below(path)  # workspaces that a test left mounted
    # processes that hold disks of an ordinary user
    for note in [*path.glob("*/@held/*"), *path.glob("*/*/@held/*")]:
        # it has ended, or is just writing its note
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(json.loads(note.read_text())[0], signal.SIGKILL)
    _remove_cgroups({*path.glob("*/sessions"), *path.glob("*/*/sessions"), path / "sessions"})
    subprocess.run(["chmod", "-R", "u+rwX", path], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


def disks_in(sessions: Path) -> list[Disk]:
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
    """Remove the cgroups of sessions below `roots`. Spare jails of an Osiris that has ended are
    removed when they are garbage-collected, and dead processes leave a moment later."""
    begins = tuple(f"osiris-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}-" for root in roots)
    until = time.monotonic() + 10  # seconds, of a busy machine
    # not by glob, which fails when others remove folders at the same time
    left = [
        Path(top, name)
        for top, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(begins)
    ]
    while left and time.monotonic() < until:
        for folder in left.copy():
            with contextlib.suppress(OSError):
                folder.rmdir()
        left = [folder for folder in left if folder.exists()]
        if left:
            gc.collect()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Provide a PostgreSQL for this test process, started on first use; see also `database`."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """Provide a Redis for this test process, started on first use; call `flush` to empty it."""
    with running_redis() as server:
        yield server


@contextlib.contextmanager
def a_database(postgres: Postgres, template: str | None = None) -> Iterator[str]:
    """Create a PostgreSQL database and yield its address. A server that the test stopped or froze
    is restarted afterwards."""
    name = f"test_{next(NUMBERS)}"
    postgres.create(name, template)
    yield postgres.url(name)
    postgres.thaw()
    postgres.start()
    postgres.drop(name)


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """Provide the address of an empty PostgreSQL database."""
    with a_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """Provide the name of a PostgreSQL database with the present schema, as a template."""
    postgres.create("migrated")
    asyncio.run(_make_schema(postgres.url("migrated")))
    return "migrated"


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a SQLite database with the present schema, to copy."""
    path = tmp_path_factory.mktemp("schema") / "osiris.db"
    path.touch(0o600)
    asyncio.run(_make_schema(f"sqlite:///{path}"))
    return path


async def _make_schema(address: str) -> None:
    await migrate_schema(engine := connect(address))
    await engine.dispose()


PAIRS = ("embedded", "servers")
"""The two ways to run Osiris: SQLite and one process, or PostgreSQL and Redis."""


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Provide the settings of a pair; a test that uses this fixture runs on both."""
    if request.param == "embedded":
        yield {}
        return
    redis = request.getfixturevalue("redis_server")
    redis.flush()
    with a_database(
        request.getfixturevalue("postgres"), request.getfixturevalue("migrated")
    ) as url:
        yield {"database_url": url, "redis_url": redis.url}
