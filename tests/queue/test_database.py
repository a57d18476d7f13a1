"""The connection to the database."""

import asyncio
import gc
import sqlite3
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import event, text

from osiris.queue.database import connect


async def test_a_statement_that_is_cut_off_leaves_nothing_that_waits_for_ever(folder: Path):
    """A statement is cancelled while it runs, and again while its connection is closed, as at the
    end of a process. A task that never ends would keep the process from ending."""
    has_started = threading.Event()
    may_finish = threading.Event()

    def wait_in_sql() -> int:
        has_started.set()
        may_finish.wait(10)
        return 1

    engine = connect(f"sqlite:///{folder / 'osiris.db'}")
    event.listen(
        engine.sync_engine,
        "connect",
        lambda connection, _: connection.create_function("hold", 0, wait_in_sql),
    )

    async def run_statement() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select hold()"))

    before = asyncio.all_tasks()
    statement_task = asyncio.create_task(run_statement())
    await asyncio.to_thread(has_started.wait)
    for _ in range(3):
        statement_task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    unfinished = asyncio.all_tasks() - before
    for task in unfinished:
        task.cancel()
    may_finish.set()
    _, still_running = await asyncio.wait(unfinished, timeout=30)
    assert still_running == set()
    await engine.dispose()


async def test_a_transaction_that_is_cut_off_at_any_moment_keeps_no_lock(folder: Path):
    """A transaction is cancelled twice, at every pair of moments, while the test holds the raised
    exception and everything that it refers to."""
    engine = connect(f"sqlite:///{folder / 'osiris.db'}")
    async with engine.begin() as connection:
        await connection.execute(text("create table t (n)"))
    other = sqlite3.connect(
        folder / "osiris.db", timeout=2, isolation_level=None, check_same_thread=False
    )
    raised: list[BaseException] = []

    async def write() -> None:
        try:
            async with engine.begin() as connection:
                rows = await connection.execute(
                    text("insert into t values (1), (2), (3) returning n")
                )
                raised.append(KeyError(rows))
                await connection.execute(text("select * from t"))
        except BaseException as error:
            raised.append(error)
            raise

    async def cut_off(first: int, second: int) -> None:
        write_task = asyncio.create_task(write())
        for steps, pause in ((first, 0.0002), (second, 0)):
            for _ in range(steps):
                await asyncio.sleep(pause)
            write_task.cancel()
        await asyncio.wait([write_task])

    for first in range(20):
        for second in range(6):
            await cut_off(first, second)
            await asyncio.to_thread(other.executescript, "begin immediate; rollback")
    other.close()
    await engine.dispose()
    # a thread that outlives the loop could not report its end
    assert not any("connection_worker" in thread.name for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore:.* was deleted before being closed:ResourceWarning")
async def test_a_connection_that_nobody_holds_any_more_ends_before_its_engine_is_gone(folder: Path):
    """Its thread still runs a statement when the last reference to the connection is removed."""
    engine = connect(f"sqlite:///{folder / 'osiris.db'}")
    connection = await engine.connect()
    raw = await connection.get_raw_connection()
    thread = raw.driver_connection._thread
    raw.driver_connection._tx.put_nowait((None, partial(time.sleep, 0.3)))
    raw.dbapi_connection.terminate()  # as SQLAlchemy does with a cancelled statement
    connection.sync_connection.detach()
    del connection, raw
    gc.collect()
    await engine.dispose()
    assert not thread.is_alive()
