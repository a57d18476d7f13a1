"""The time to handle one delivery in a database with a long history, beside an empty database."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.row import BenchmarkRow, Threshold
from osiris.core.events import Actor, IssueRef, Role, TaskRequested
from osiris.core.policy import Policy
from osiris.queue.database import connect, migrate_schema
from osiris.queue.in_process import LocalLiveEvents, LocalWake
from osiris.queue.inbox import DatabaseInbox
from osiris.queue.leases import INBOX, Lease
from osiris.queue.locks import NamedLocks
from osiris.queue.outbox import Outbox
from osiris.queue.outbox_queries import REACTIONS, REPORTS, RUNS, STOPS, WRITES
from osiris.queue.task_store import Store
from tests.conftest import create_test_folder
from tests.servers import start_postgres

_LANES = ((STOPS,), (REACTIONS, REPORTS), (WRITES,), (RUNS,))

# SQL that creates a hundred thousand finished tasks, each with all rows that a task leaves.
_TASKS = """INSERT INTO tasks (repo, issue, pull, state, data, created, updated, version)
SELECT 'acme/old' || (n % 100), n, n, 'done', CAST(:task AS {json}), n, n, 5 FROM {series}"""
_INBOX = """INSERT INTO inbox (source, delivery, kind, body, received, handled, attempts)
SELECT 'github', 'old-' || n, 'issues', {bytes}, n, n, 0 FROM {series}"""
_OUTBOX = """INSERT INTO outbox (key, task_id, kind, about, lane, body, attempts, done)
SELECT 'old.' || n, 1 + n % :tasks, 'Report', 'acme/old#' || n, 4, CAST('{{}}' AS {json}), 0, n
FROM {series}"""
_JOURNAL = """INSERT INTO journal (task_id, seq, at, kind, what, detail, hash)
SELECT 1 + n % :tasks, 1 + n / :tasks, n, 'done', 'Report', CAST('{{"key": "1.1"}}' AS {json}),
 :hash
FROM {series}"""
_DIALECTS: dict[str, dict[str, str]] = {
    "postgresql": {
        "json": "json",
        "bytes": "convert_to(repeat('x', 2000), 'UTF8')",
        "series": "generate_series(1, :many) AS n",
    },
    "sqlite": {
        "json": "text",
        "bytes": "zeroblob(2000)",
        "series": (
            "(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < :many)"
            " SELECT n FROM s)"
        ),
    },
}


@dataclass(frozen=True)
class DatabaseSide:
    """The durable part of Osiris on one database. The benchmark performs the steps of a worker
    itself, to measure them."""

    store: Store
    inbox: DatabaseInbox
    outbox: Outbox

    @classmethod
    async def create(cls, url: str) -> "DatabaseSide":
        await migrate_schema(engine := connect(url))
        lease = Lease(engine, "bench")
        await lease.acquire()
        await NamedLocks(engine, lease).acquire(INBOX)
        store = Store(engine, lease, live_events := LocalLiveEvents())
        return cls(store, DatabaseInbox(store, LocalWake()), Outbox(engine, lease, live_events))

    async def handle_delivery(self, number: int) -> float:
        """Return the milliseconds from the arrival of a delivery until its orders are finished,
        without the work that the orders stand for."""
        request = TaskRequested(
            issue=IssueRef("acme/shop", number),
            actor=Actor("alice", Role.ADMIN),
            title="Look",
            body="Only look.",
        )
        began = time.perf_counter()
        await self.inbox.accept_fact(f"bench/{number}", request)
        for row in await self.store.list_due(16):
            await self.store.decide(row.id, request, Policy())
        for lanes in _LANES:
            for order in await self.outbox.claim_orders(10, lanes, ()):
                await self.outbox.get(order.id)
                await self.outbox.finish_order(order.id)
        await self.store.next_due()
        return (time.perf_counter() - began) * 1e3


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    divisor = 10 if quick else 1
    tasks = 100_000 // divisor
    lines = 5_000_000 // divisor
    rows = []
    with start_postgres() as postgres:
        for name in ("full", "empty"):
            postgres.create(name)
        rows.append(
            await _measure_database(
                "PostgreSQL", postgres.build_url("full"), postgres.build_url("empty"), tasks, lines
            )
        )
    with create_test_folder() as folder:
        urls = [f"sqlite+aiosqlite:///{folder / name}.db" for name in ("full", "empty")]
        rows.append(await _measure_database("SQLite", urls[0], urls[1], tasks, lines))
    return rows


async def _measure_database(
    database_name: str, full: str, empty: str, tasks: int, lines: int
) -> BenchmarkRow:
    long = await DatabaseSide.create(full)
    short = await DatabaseSide.create(empty)
    try:
        seconds = await _create_history(connect(full), tasks, lines)
        ours, theirs = await _measure_rounds(long, short)
    finally:
        await long.store.close()
        await short.store.close()
    return BenchmarkRow(
        name=f"history-{database_name.lower()}",
        what=(
            f"one delivery handled on {database_name} with {tasks:,} tasks and {lines:,} lines"
            " behind it"
        ),
        unit="ms",
        ours=ours,
        other="the same on an empty database",
        theirs=theirs,
        target=Threshold(most=1.3),
        note=(
            "received, decided, each order claimed and noted as done; the history was made in"
            f" {seconds:.0f} s"
        ),
    )


async def _measure_rounds(
    long: DatabaseSide, short: DatabaseSide
) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]:
    """Measure both sides in turn; the first round is a warm-up."""
    ours = []
    theirs = []
    for number in range(6):
        first = number * 100
        ours.append([await long.handle_delivery(first + n) for n in range(1, 101)])
        theirs.append([await short.handle_delivery(first + n) for n in range(1, 101)])
    return ours[1:], theirs[1:]


async def _create_history(engine: AsyncEngine, tasks: int, lines: int) -> float:
    """Create the history, and return the seconds that it took."""
    began = time.monotonic()
    dialect = _DIALECTS[engine.dialect.name]
    values: dict[str, Any] = {
        "tasks": tasks,
        "task": '{"title": "' + "x" * 1000 + '"}',
        "hash": "0" * 64,
    }
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SET LOCAL statement_timeout = 0"))
        for statement, count in (
            (_TASKS, tasks),
            (_INBOX, 4 * tasks),
            (_OUTBOX, 9 * tasks),
            (_JOURNAL, lines),
        ):
            parameters = {name: value for name, value in values.items() if f":{name}" in statement}
            await connection.execute(
                text(statement.format(**dialect)), {**parameters, "many": count}
            )
        await connection.execute(text("ANALYZE"))
    await engine.dispose()
    return time.monotonic() - began
