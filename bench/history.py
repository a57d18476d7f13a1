"""Row: handling one delivery in a database with a long history behind it, beside an empty one."""

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
from tests.conftest import a_place
from tests.servers import running_postgres

_LANES = ((STOPS,), (REACTIONS, REPORTS), (WRITES,), (RUNS,))

# A hundred thousand tasks that are over, each with what a whole life leaves; made by the database
# itself.
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
_WORDS: dict[str, dict[str, str]] = {
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
    """The durable part of Osiris on one database; a worker's look is done by hand, so that it can
    be timed."""

    store: Store
    intake: DatabaseInbox
    orders: Outbox

    @classmethod
    async def at(cls, url: str) -> "DatabaseSide":
        await migrate_schema(engine := connect(url))
        lease = Lease(engine, "bench")
        await lease.acquire()
        await NamedLocks(engine, lease).acquire(INBOX)
        store = Store(engine, lease, journal := LocalLiveEvents())
        return cls(store, DatabaseInbox(store, LocalWake()), Outbox(engine, lease, journal))

    async def handle(self, number: int) -> float:
        """From a delivery at the door until all that it ordered is done, but for the doing; in
        ms."""
        asked = TaskRequested(
            issue=IssueRef("acme/shop", number),
            actor=Actor("alice", Role.ADMIN),
            title="Look",
            body="Only look.",
        )
        began = time.perf_counter()
        await self.intake.accept_fact(f"bench/{number}", asked)
        for row in await self.store.list_due(16):
            await self.store.decide(row.id, asked, Policy())
        for lanes in _LANES:
            for due in await self.orders.claim_orders(10, lanes, ()):
                await self.orders.get(due.id)
                await self.orders.finish_order(due.id)
        await self.store.next_due()
        return (time.perf_counter() - began) * 1e3


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    share = 10 if quick else 1
    tasks = 100_000 // share
    lines = 5_000_000 // share
    rows = []
    with running_postgres() as postgres:
        for name in ("full", "empty"):
            postgres.create(name)
        rows.append(
            await _row("PostgreSQL", postgres.url("full"), postgres.url("empty"), tasks, lines)
        )
    with a_place() as place:
        urls = [f"sqlite+aiosqlite:///{place / name}.db" for name in ("full", "empty")]
        rows.append(await _row("SQLite", urls[0], urls[1], tasks, lines))
    return rows


async def _row(what: str, full: str, empty: str, tasks: int, lines: int) -> BenchmarkRow:
    long = await DatabaseSide.at(full)
    short = await DatabaseSide.at(empty)
    try:
        took = await _fill(connect(full), tasks, lines)
        ours, theirs = await _rounds(long, short)
    finally:
        await long.store.close()
        await short.store.close()
    return BenchmarkRow(
        name=f"history-{what.lower()}",
        what=f"one delivery handled on {what} with {tasks:,} tasks and {lines:,} lines behind it",
        unit="ms",
        ours=ours,
        other="the same on an empty database",
        theirs=theirs,
        target=Threshold(most=1.3),
        note=(
            "received, decided, each order claimed and noted as done; the history was made in"
            f" {took:.0f} s"
        ),
    )


async def _rounds(
    long: DatabaseSide, short: DatabaseSide
) -> tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]:
    """Both sides by turns; the first round warms up."""
    ours = []
    theirs = []
    for number in range(6):
        first = number * 100
        ours.append([await long.handle(first + n) for n in range(1, 101)])
        theirs.append([await short.handle(first + n) for n in range(1, 101)])
    return ours[1:], theirs[1:]


async def _fill(engine: AsyncEngine, tasks: int, lines: int) -> float:
    """Make the history; the seconds it took."""
    began = time.monotonic()
    words = _WORDS[engine.dialect.name]
    values: dict[str, Any] = {
        "tasks": tasks,
        "task": '{"title": "' + "x" * 1000 + '"}',
        "hash": "0" * 64,
    }
    async with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            await connection.execute(text("SET LOCAL statement_timeout = 0"))
        for statement, many in (
            (_TASKS, tasks),
            (_INBOX, 4 * tasks),
            (_OUTBOX, 9 * tasks),
            (_JOURNAL, lines),
        ):
            wanted = {name: value for name, value in values.items() if f":{name}" in statement}
            await connection.execute(text(statement.format(**words)), {**wanted, "many": many})
        await connection.execute(text("ANALYZE"))
    await engine.dispose()
    return time.monotonic() - began
