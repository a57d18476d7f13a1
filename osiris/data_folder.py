"""The data folder of a process, and its database."""

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
"""Attempts a tenth of a second apart: the lock of a process that was just killed may still be
held."""


async def prepare_storage(settings: Settings, engine: AsyncEngine) -> None:
    """Create the data folder and, on SQLite, the schema; on other databases, check the schema.
    Raises Refused when this is not possible."""
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
    """Create the schema or migrate it to this version. Raises Refused when the disk or the database
    does not allow it."""
    try:
        if settings.is_embedded:
            os.close(os.open(engine.url.database or os.devnull, os.O_CREAT | os.O_RDWR, 0o600))
        if await is_current(engine):
            return
        # SQLite gives its other files the same mode; all contain text of private repositories
        await migrate_schema(engine)
    except (OSError, SQLAlchemyError, Unavailable) as error:
        reason = (
            error.strerror
            if isinstance(error, OSError)
            else str(getattr(error, "orig", error)).splitlines()[0]
        )
        name = engine.url.database if settings.is_embedded else settings.database_without_password
        raise Refused(f"the database {name} cannot be used: {reason}") from None


def make_data_folder(settings: Settings) -> None:
    """Create the data folder. Raises Refused when the disk does not allow it."""
    try:
        settings.osiris_data_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        make_passable(settings.osiris_data_dir)
    except OSError as error:
        raise Refused(
            f"the data folder {settings.osiris_data_dir} cannot be used: {error.strerror}"
        ) from None


def make_passable(folder: Path) -> None:
    """Let the sandbox's user pass through a folder; all other permissions stay as the owner set
    them."""
    folder.chmod(folder.stat().st_mode & 0o7777 | 0o011)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a data folder for one worker until the block or the process ends. Raises Refused when
    another process holds it."""
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
    """Return the identifier of a data folder; it is generated once and stored in the folder."""
    path = folder / "place"
    try:
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write(uuid4().hex)
        return path.read_text().strip()
    except OSError as error:
        raise Refused(f"the data folder {folder} cannot be used: {error.strerror}") from None
