"""What every test may use."""

import asyncio
import contextlib
import gc
import hashlib
import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from osiris.queue.database import connect, migrate
from osiris.tools.mounts import unmount_below
from tests.servers import Postgres, Redis, running_postgres, running_redis

NUMBERS = itertools.count(1)


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
        with contextlib.suppress(ProcessLookupError):
            os.kill(json.loads(note.read_text())[0], signal.SIGKILL)
    roots = {hashlib.sha256(str(root).encode()).hexdigest()[:8] for root in (path, *path.glob("*"), *path.glob("*/*"))}
    for folder, names, _ in os.walk("/sys/fs/cgroup"):  # not by glob, which falls over what others remove meanwhile
        for name in names:
            if name.startswith("osiris-") and name.split("-")[1] in roots:
                _remove(Path(folder, name))
    subprocess.run(["chmod", "-R", "u+rwX", path], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)


def _remove(group: Path) -> None:
    """Dead processes leave a cgroup a moment after they are gone; jails that stood ready in a life of Osiris that is
    over are gone when nothing knows them any more."""
    for _ in range(100):
        try:
            return group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            gc.collect()
            time.sleep(0.02)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL of this test process, started by the first test that asks; see also `database`."""
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis of this test process, started by the first test that asks; who wants it empty calls `flush`."""
    with running_redis() as server:
        yield server


@contextlib.contextmanager
def a_database(postgres: Postgres, template: str | None = None) -> Iterator[str]:
    """The address of a new PostgreSQL database; a server that the test stopped or froze runs again afterwards."""
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

    async def make() -> None:
        await migrate(engine := connect(postgres.url("migrated")))
        await engine.dispose()

    asyncio.run(make())
    return "migrated"


PAIRS = ("embedded", "servers")
"""What Osiris may stand on: SQLite and one process, or PostgreSQL and Redis."""


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """The settings of a pair; a test that uses this runs on both. A module whose tests are not about what Osiris
    stands on overrides it (`EMBEDDED`)."""
    if request.param == "embedded":
        yield {}
        return
    redis = request.getfixturevalue("redis_server")
    redis.flush()
    with a_database(request.getfixturevalue("postgres"), request.getfixturevalue("migrated")) as url:
        yield {"database_url": url, "redis_url": redis.url}
