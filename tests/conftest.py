"""What every test may use."""

import asyncio
import contextlib
import gc
import hashlib
import itertools
import json
import os
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

# attacks leave descriptors in flight, of which one user may have so many altogether: unix(7)
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


def _is_long(item: pytest.Item) -> bool:
    """Return whether a case is left to `make test-long`.

    Besides what is marked so, these are the second database where the database does not matter, and
    the second kind of user of attacks.
    """
    case = getattr(item, "callspec", None)
    params = case.params if case else {}
    return (
        item.get_closest_marker("long") is not None
        or (params.get("pair") == "servers" and item.get_closest_marker("both_pairs") is None)
        or (params.get("worker") == "ordinary" and os.geteuid() == 0)
    )


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def a_place() -> Iterator[Path]:
    """A folder that the sandbox's own user can reach too (pytest's tmp_path is closed to it)."""
    path = Path(tempfile.mkdtemp(prefix="osiris-test-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        _clear(path)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder for one test; see `a_place`."""
    with a_place() as path:
        yield path


def _clear(path: Path) -> None:
    unmount_below(path)  # workspaces that a test left under way
    for note in [*path.glob("*/@held/*"), *path.glob("*/*/@held/*")]:  # held for an ordinary user
        # it has ended, or is just noting itself
        with contextlib.suppress(ProcessLookupError, ValueError):
            os.kill(json.loads(note.read_text())[0], signal.SIGKILL)
    _remove_cgroups({*path.glob("*/sessions"), *path.glob("*/*/sessions"), path / "sessions"})
    subprocess.run(["chmod", "-R", "u+rwX", path], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


def disks_in(sessions: Path) -> list[Disk]:
    """The disks of the sessions in a folder; an ordinary user's are seen where a process holds
    them."""
    names = (
        [entry.name for entry in sessions.iterdir() if not entry.name.startswith("@")]
        if sessions.is_dir()
        else []
    )
    return [
        (ImageDisk if os.geteuid() == 0 else TmpfsDisk)(sessions, name, uid=None) for name in names
    ]


def _remove_cgroups(roots: set[Path]) -> None:
    """Those of sessions below `roots`. Jails that stood ready in a life of Osiris that is over are
    gone when nothing knows them any more, and dead processes leave a moment later."""
    begins = tuple(f"osiris-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}-" for root in roots)
    until = time.monotonic() + 2
    # not by glob, which falls over what others remove meanwhile
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
    """A PostgreSQL of this test process, started by the first test that asks; see also
    `database`."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis of this test process, started by the first test that asks; who wants it empty calls
    `flush`."""
    with running_redis() as server:
        yield server


@contextlib.contextmanager
def a_database(postgres: Postgres, template: str | None = None) -> Iterator[str]:
    """The address of a new PostgreSQL database; a server that the test stopped or froze runs again
    afterwards."""
    name = f"test_{next(NUMBERS)}"
    postgres.create(name, template)
    yield postgres.url(name)
    postgres.thaw()
    postgres.start()
    postgres.drop(name)


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    with a_database(postgres) as url:
        yield url


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """The name of a PostgreSQL database of this version, to make others from."""
    postgres.create("migrated")
    asyncio.run(_make_schema(postgres.url("migrated")))
    return "migrated"


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database of this version, to copy."""
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
    """The settings of a pair; a test that uses this runs on both."""
    if request.param == "embedded":
        yield {}
        return
    redis = request.getfixturevalue("redis_server")
    redis.flush()
    with a_database(
        request.getfixturevalue("postgres"), request.getfixturevalue("migrated")
    ) as url:
        yield {"database_url": url, "redis_url": redis.url}
