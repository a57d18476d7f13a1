"""The connection to SQLite: aiosqlite's, with fewer changes of threads and a safe end.

It uses private names of aiosqlite, whose version `pyproject.toml` therefore bounds.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Thread
from typing import Any
from weakref import ref

import aiosqlite
from aiosqlite.core import _STOP_RUNNING_SENTINEL

# seconds that the threads may take to end after their engine: one may be waiting for the lock
_THREAD_TIMEOUT = 6.0


class SqliteConnection(aiosqlite.Connection):
    """A connection that ends its transaction and releases its lock however it is cancelled.

    aiosqlite's own connection can be stopped in the middle of being closed, and then does not
    close; and SQLite keeps a closed connection, with its lock, for as long as one of its cursors is
    referenced.
    """

    _queued = 0  # calls that the thread has not finished; only the event loop's thread adds to it
    _finished = 0  # calls that the thread has finished; only that thread adds to it

    def cursor(self) -> "EagerCursor":  # type: ignore[override]
        return EagerCursor(self)

    async def rollback(self) -> None:
        """Roll back. A visit of the thread is saved when no transaction can be open."""
        connection = self._connection
        is_idle = self._queued == self._finished
        if self._running and connection is not None and is_idle and not connection.in_transaction:
            return
        await super().rollback()

    async def run_in_thread(self, work: Callable[[], Any]) -> Any:
        """Return the result of `work`, which the connection's thread calls."""
        self._queued += 1
        return await self._execute(partial(self._finish_work, work))  # type: ignore[no-untyped-call]

    def _finish_work(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        finally:
            self._finished += 1

    def stop(self) -> None:
        """Stop the thread.

        Unlike aiosqlite's own, this creates no future: nothing awaits it, and its loop may be
        closed by now.
        """
        if self._running:
            self._running = False
            self._rollback_and_close()
            self._tx.put_nowait((None, lambda: _STOP_RUNNING_SENTINEL))

    async def close(self) -> None:
        if self._running:
            self._rollback_and_close()
        await super().close()

    def _rollback_and_close(self) -> None:
        if (connection := self._connection) is not None:
            for action in (connection.rollback, connection.close):
                self._tx.put_nowait((None, action))


class EagerCursor:
    """A cursor as SQLAlchemy uses it, which visits the connection's thread once for a statement and
    all of its rows.

    aiosqlite's own visits it four times: to be created, for the statement, for the rows, and to be
    closed.
    """

    arraysize = 1
    description: Any = None
    rowcount = -1
    lastrowid: int | None = None

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self._rows: list[Any] = []

    async def __aenter__(self) -> "EagerCursor":
        return self

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> None:
        await self._run(sqlite3.Cursor.execute, sql, parameters)

    async def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> None:
        await self._run(sqlite3.Cursor.executemany, sql, parameters)

    async def fetchall(self) -> Sequence[Any]:
        rows = self._rows
        self._rows = []
        return rows

    async def close(self) -> None:
        self._rows = []

    async def _run(self, method: Callable[..., Any], sql: str, parameters: Any) -> None:
        await self._connection.run_in_thread(partial(self._run_now, method, sql, parameters))

    def _run_now(self, method: Callable[..., Any], sql: str, parameters: Any) -> None:
        """Run a statement in the connection's thread. The real cursor is closed at once, so that
        nothing can keep it, and with it SQLite's lock."""
        cursor = self._connection._conn.cursor()
        try:
            method(cursor, sql, parameters)
            self.description = cursor.description
            self._rows = cursor.fetchall() if cursor.description else []
            self.rowcount = cursor.rowcount
            self.lastrowid = cursor.lastrowid
        finally:
            cursor.close()


OpenConnections = list[tuple[ref[SqliteConnection], Thread]]
"""The connections of an engine and their threads, which keep running when a connection is no longer
referenced."""


def open_connection(path: str, opened: OpenConnections) -> SqliteConnection:
    """Return a new connection to the file `path`, which is also added to `opened`."""
    connection = SqliteConnection(
        partial(sqlite3.connect, path, check_same_thread=False), iter_chunk_size=64
    )
    # as SQLAlchemy does: a statement that hangs does not keep the process from exiting
    connection._thread.daemon = True
    opened[:] = [one for one in opened if one[1].is_alive()]
    opened.append((ref(connection), connection._thread))
    return connection


def join_threads(opened: OpenConnections) -> None:
    """Wait for the threads that are stopping, or whose connection is gone: their results need the
    event loop."""
    until = time.monotonic() + _THREAD_TIMEOUT
    for known, thread in opened:
        connection = known()
        if thread.is_alive() and (connection is None or not connection._running):
            thread.join(timeout=max(0.0, until - time.monotonic()))
