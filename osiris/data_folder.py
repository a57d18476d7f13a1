"""The data folder of a process, and the database that it works on."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from osiris.config.settings import Settings
from osiris.core.errors import Refused, Unavailable
from osiris.queue.database import is_current, migrate_schema

_LOCK_TRIES = 10
"""A tenth of a second apart: of a process that was killed just now, the lock may still be held."""


async def prepare_storage(settings: Settings, engine: AsyncEngine) -> None:
    """Make the data folder and, on SQLite, the schema. Raises Refused when something does not allow
    it."""
    make_data_folder(settings)
    if settings.is_embedded:
        await migrate_database(settings, engine)
        return
    try:
        current = await is_current(engine)
    except Unavailable as outage:
        raise Refused(
            f"the database {settings.database_without_password} cannot be used: {outage}"
        ) from None
    if not current:
        raise Refused(
            f"the database {settings.database_without_password} is not of this version; run `osiris"
            " migrate` first"
        )


async def migrate_database(settings: Settings, engine: AsyncEngine) -> None:
    """Make the schema, or bring it to this version. Raises Refused when the disk or the database
    does not allow it."""
    try:
        if settings.is_embedded:
            os.close(os.open(engine.url.database or os.devnull, os.O_CREAT | os.O_RDWR, 0o600))
        if await is_current(engine):
            return
        # SQLite gives its other files the same mode: all hold words of private repositories
        await migrate_schema(engine)
    except (OSError, SQLAlchemyError, Unavailable) as error:
        told = (
            error.strerror
            if isinstance(error, OSError)
            else str(getattr(error, "orig", error)).splitlines()[0]
        )
        name = engine.url.database if settings.is_embedded else settings.database_without_password
        raise Refused(f"the database {name} cannot be used: {told}") from None


def make_data_folder(settings: Settings) -> None:
    """Raises Refused when the disk does not allow it."""
    try:
        settings.osiris_data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        make_passable(settings.osiris_data_dir)
    except OSError as error:
        raise Refused(
            f"the data folder {settings.osiris_data_dir} cannot be used: {error.strerror}"
        ) from None


def make_passable(folder: Path) -> None:
    """Let the sandbox's own user pass through a folder; what else it may or may not is its owner's
    choice."""
    folder.chmod(folder.stat().st_mode & 0o7777 | 0o011)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a data folder for one worker; the lock goes with the process. Raises Refused when
    another holds it."""
    with (folder / "serve.lock").open("w") as lock:
        for tries_left in reversed(range(_LOCK_TRIES)):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not tries_left:
                    raise Refused(
                        f"another `osiris serve` or `osiris worker` works in {folder}; end it, or"
                        " set OSIRIS_DATA_DIR"
                    ) from None
                time.sleep(0.1)
        yield


def identify_folder(folder: Path) -> str:
    """What a data folder is known by; it is made up once, and kept in the folder."""
    path = folder / "place"
    try:
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write(uuid4().hex)
        return path.read_text().strip()
    except OSError as error:
        raise Refused(f"the data folder {folder} cannot be used: {error.strerror}") from None
