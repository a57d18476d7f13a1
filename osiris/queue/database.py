"""The connection to the database, and its schema brought up to date."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from osiris.errors import Refused

_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000")


def connect(database: str) -> AsyncEngine:
    """An engine for the address `database` (SQLite through aiosqlite). Connections are opened when first used.

    Raises Refused for an address that is none, or of another database.
    """
    try:
        address = make_url(database)
    except ArgumentError:
        raise Refused(
            "DATABASE_URL is no database address; leave it out, or write sqlite:////path/to/file.db"
        ) from None
    if address.get_backend_name() != "sqlite":
        raise Refused(f"DATABASE_URL names {address.get_backend_name()}; this version of Osiris works on SQLite")
    url = address.set(drivername="sqlite+aiosqlite")
    engine = create_async_engine(url, pool_size=16)  # a connection is a thread: dear to open, cheap to keep
    _prepare_all(engine.sync_engine)
    return engine


def blocking(engine: AsyncEngine) -> Engine:
    """A second engine on the same database, for a thread that does a whole transaction in one go."""
    twin = create_engine(engine.url.set(drivername="sqlite"))
    _prepare_all(twin)
    return twin


def _prepare_all(engine: Engine) -> None:
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # else sqlite3 itself begins transactions, and too late
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """Write transactions take the lock at their begin: a later upgrade would fail or lose an update silently."""
    readonly = connection.get_execution_options().get("readonly")
    connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")


async def migrate(engine: AsyncEngine) -> None:
    """Bring the schema to this version; a second call changes nothing."""
    from alembic import command  # heavy, and only needed here
    from alembic.config import Config

    def upgrade(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
