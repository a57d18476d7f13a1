"""The connection to the database."""

import asyncio
import threading
from pathlib import Path

from sqlalchemy import event, text

from osiris.queue.database import connect


async def test_a_statement_that_is_cut_off_leaves_nothing_that_waits_for_ever(place: Path):
    """What is cancelled while its statement runs, and once more while its connection is closed, as at the end of a
    process: a task that never ends would keep the process from ending."""
    begun, go = threading.Event(), threading.Event()

    def hold() -> int:
        begun.set()
        go.wait(10)
        return 1

    engine = connect(f"sqlite:///{place / 'osiris.db'}")
    event.listen(engine.sync_engine, "connect", lambda connection, _: connection.create_function("hold", 0, hold))

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
