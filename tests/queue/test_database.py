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


async def test_a_statement_that_is_cut_off_leaves_nothing_that_waits_for_ever(place: Path):
    """What is cancelled while its statement runs, and once more while its connection is closed, as
    at the end of a process: a task that never ends would keep the process from ending."""
    begun = threading.Event()
    go = threading.Event()

    def hold() -> int:
        begun.set()
        go.wait(10)
        return 1

    engine = connect(f"sqlite:///{place / 'osiris.db'}")
    event.listen(
        engine.sync_engine,
        "connect",
        lambda connection, _: connection.create_function("hold", 0, hold),
    )

    async def ask() -> None:
        async with engine.connect() as connection:
            await connection.execute(text("select hold()"))

    before = asyncio.all_tasks()
    asking = asyncio.create_task(ask())
    await asyncio.to_thread(begun.wait)
    for _ in range(3):
        asking.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    left = asyncio.all_tasks() - before
    for task in left:
        task.cancel()
    go.set()
    _, waiting = await asyncio.wait(left, timeout=5)
    assert waiting == set()
    await engine.dispose()


async def test_a_transaction_that_is_cut_off_at_any_moment_keeps_no_lock(place: Path):
    """Cut off twice, at every pair of moments, while somebody still holds what was raised, with all
    it refers to."""
    engine = connect(f"sqlite:///{place / 'osiris.db'}")
    async with engine.begin() as connection:
        await connection.execute(text("create table t (n)"))
    other = sqlite3.connect(
        place / "osiris.db", timeout=2, isolation_level=None, check_same_thread=False
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
        writing = asyncio.create_task(write())
        for steps, pause in ((first, 0.0002), (second, 0)):
            for _ in range(steps):
                await asyncio.sleep(pause)
            writing.cancel()
        await asyncio.wait([writing])

    for first in range(20):
        for second in range(6):
            await cut_off(first, second)
            await asyncio.to_thread(other.executescript, "begin immediate; rollback")
    other.close()
    await engine.dispose()
    # one that outlives the loop could not say that it has ended
    assert not any("connection_worker" in thread.name for thread in threading.enumerate())


@pytest.mark.filterwarnings("ignore:.* was deleted before being closed:ResourceWarning")
async def test_a_connection_that_nobody_holds_any_more_ends_before_its_engine_is_gone(place: Path):
    """Its thread is still at a statement when the last who knew of it has let go."""
    engine = connect(f"sqlite:///{place / 'osiris.db'}")
    connection = await engine.connect()
    raw = await connection.get_raw_connection()
    thread = raw.driver_connection._thread
    raw.driver_connection._tx.put_nowait((None, partial(time.sleep, 0.3)))
    raw.dbapi_connection.terminate()  # as SQLAlchemy does with what was cut off
    connection.sync_connection.detach()
    del connection, raw
    gc.collect()
    await engine.dispose()
    assert not thread.is_alive()
