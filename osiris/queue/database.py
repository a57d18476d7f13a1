"""The connection to the database, and the migration of its schema."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from osiris.core.errors import Refused, Unavailable
from osiris.queue.sqlite_connection import OpenConnections, join_threads, open_connection

SCHEMA = "0004"
"""The newest migration. Alembic knows it too, but takes longer to load than most commands take to
run."""

_PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=5000")
_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}
_MIGRATION_LOCK = 0x0517  # an arbitrary number, the same for every instance of Osiris

# A hanging database must be detected: the webhook endpoint waits for it, and so does a lease.
_POSTGRESQL = {
    "connect_timeout": 3,  # seconds
    "tcp_user_timeout": 5000,  # milliseconds, like the following ones
    "options": (
        "-c statement_timeout=20000 -c lock_timeout=10000 -c"
        " idle_in_transaction_session_timeout=10000"
    ),
}


def connect(database: str) -> AsyncEngine:
    """Return an engine for the address `database` (SQLite or PostgreSQL).

    Connections are opened when first used. Raises Refused for an invalid address, an unsupported
    database, or a driver that is not installed.
    """
    url = _parse_address(database)
    try:
        if url.get_backend_name() == "sqlite":
            # a connection is a thread: expensive to open, cheap to keep
            opened: OpenConnections = []
            create = partial(open_connection, url.database or ":memory:", opened)
            engine = create_async_engine(url, pool_size=16, async_creator=create)
            _register_listeners(engine.sync_engine)
            event.listen(
                engine.sync_engine, "engine_disposed", lambda _engine: join_threads(opened)
            )
            return engine
        return create_async_engine(
            url, pool_size=10, max_overflow=20, pool_timeout=5, connect_args=_POSTGRESQL
        )
    except ModuleNotFoundError:
        raise Refused(
            "DATABASE_URL needs the driver for PostgreSQL: install osiris[machines]"
        ) from None


def _parse_address(database: str) -> URL:
    try:
        address = make_url(database)
        driver = _DRIVERS.get(address.get_backend_name())
    except (ArgumentError, NoSuchModuleError):
        raise Refused(
            "DATABASE_URL is not a database address; leave it out, or write"
            " postgresql://USER:PASSWORD@HOST/NAME"
        ) from None
    if driver is None:
        raise Refused(
            f"DATABASE_URL names {address.get_backend_name()}; Osiris works on PostgreSQL, and on"
            " SQLite without it"
        )
    return address.set(drivername=driver)


def as_read_only(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine for reads only, without transactions: each statement stands for itself."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(readonly=True)
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def create_sync_engine(engine: AsyncEngine) -> Engine:
    """Create a second engine on the same database, for a thread that runs whole transactions
    synchronously."""
    if engine.dialect.name != "sqlite":
        return create_engine(engine.url, pool_size=1, max_overflow=0, connect_args=_POSTGRESQL)
    second = create_engine(engine.url.set(drivername="sqlite"))
    _register_listeners(second)
    return second


def build_insert(engine: AsyncEngine, table: type[Any]) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT of the database's dialect.

    Both dialects have the same ON CONFLICT methods.
    """
    target: Table = table.__table__
    return sqlite.insert(target) if engine.dialect.name == "sqlite" else postgresql.insert(target)


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Raise Unavailable when the database is away or another transaction won: that is an outage and
    not a bug."""
    try:
        yield
    except IntegrityError:
        raise
    except SQLAlchemyError as error:
        raise Unavailable(
            f"the database does not answer ({type(error).__name__})", retry_in=1.0
        ) from error


def _register_listeners(engine: Engine) -> None:
    event.listen(engine, "connect", _set_pragmas)
    event.listen(engine, "begin", _begin_transaction)


def _set_pragmas(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # else sqlite3 begins transactions by itself, and too late
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_transaction(connection: Connection) -> None:
    """Begin a transaction.

    A write transaction takes the lock now, because a later upgrade would fail or silently lose an
    update. Reads need no transaction: each statement sees the database as it is then, as on
    PostgreSQL.
    """
    if not connection.get_execution_options().get("readonly"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


async def migrate_schema(engine: AsyncEngine) -> None:
    """Migrate the schema to this version. A second call, even a concurrent one, changes nothing."""
    from alembic import command  # slow to import, and only needed here
    from alembic.config import Config

    def run_upgrade(connection: Connection) -> None:
        if engine.dialect.name == "postgresql":
            # creating an index of a large table takes minutes
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async with engine.begin() as connection:
        await connection.run_sync(run_upgrade)


async def is_current(engine: AsyncEngine) -> bool:
    """Return whether the schema is that of this version.

    Raises Unavailable when the database does not answer.
    """
    try:
        async with as_read_only(engine).connect() as connection:
            if not await connection.run_sync(
                lambda sync_connection: inspect(sync_connection).has_table("alembic_version")
            ):
                return False
            return bool(
                await connection.scalar(text("SELECT version_num FROM alembic_version")) == SCHEMA
            )
    except SQLAlchemyError as error:
        raise Unavailable(str(getattr(error, "orig", error)).splitlines()[0]) from None
