"""Rows of several processes: lives a minute, how soon another worker takes over, what a run holds
in memory."""

import asyncio
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from bench.row import BenchmarkRow, Threshold
from osiris.core.errors import Refused
from osiris.queue.database import connect, migrate_schema
from osiris.queue.outbox_queries import RUNS
from osiris.queue.tables import InboxRow, OutboxRow, RunRow, StepRow
from tests.conftest import a_place
from tests.flow.conftest import run, step, submit
from tests.flow.support.cluster import DEFAULT_TIMEOUTS, Cluster, Machine, start_cluster, wait_until
from tests.flow.support.consistency_audit import TaskAuditor, name_of, run_tasks, story
from tests.servers import Postgres, Redis, running_postgres, running_redis

_MANY = 50
_LONG_STORY = {"runs": [run(step("run_command", command="sleep 100"), submit())]}


@asynccontextmanager
async def _start_empty_cluster(
    postgres: Postgres, redis: Redis, name: str, script: dict[str, Any], **how: Any
) -> AsyncIterator[Cluster]:
    """A web process and workers on an empty database, with the patience of operators."""
    postgres.create(name)
    await migrate_schema(engine := connect(postgres.url(name)))
    await engine.dispose()
    redis.flush()
    more = {"database_url": postgres.url(name), "redis_url": redis.url, **how.pop("more", {})}
    with a_place() as place:
        async with start_cluster(place, more, script, timeouts=DEFAULT_TIMEOUTS, **how) as env:
            env.playground.hub.rates.limit = 10**9
            yield env
    postgres.drop(name)


# ── whole lives ───────────────────────────────────────────────────────────────────────────────────


async def tasks_per_minute(*, quick: bool) -> list[BenchmarkRow]:
    """Rounds of one worker and of two take turns."""
    tasks = 6 if quick else 24
    rates = dict[int, list[list[float]]]()
    durations = dict[str, list[float]]()
    with running_postgres() as postgres, running_redis() as redis:
        for number in range(1 if quick else 3):
            for workers in (1, 2):
                rate, times = await _measure_rate(
                    postgres, redis, f"lives_{number}_{workers}", tasks, workers
                )
                rates.setdefault(workers, []).append([rate])
                for what, seconds in times.items():
                    durations.setdefault(what, []).extend(seconds)
    where = ", ".join(
        f"{what} {statistics.median(some) * 1e3:.0f}" for what, some in sorted(durations.items())
    )
    return [
        BenchmarkRow(
            name="lives",
            what="whole lives (issue to merge, one review) a minute, two workers",
            unit="/min",
            ours=rates[2],
            other="one worker",
            theirs=rates[1],
            note=(
                "hub, people, PostgreSQL and Redis are on the same cores; median ms from order to"
                f" done: {where}"
            ),
        )
    ]


async def _measure_rate(
    postgres: Postgres, redis: Redis, database: str, tasks: int, workers: int
) -> tuple[float, Mapping[str, Sequence[float]]]:
    names = [name_of(number) for number in range(tasks)]
    async with _start_empty_cluster(
        postgres, redis, database, story(tasks), workers=workers
    ) as env:
        began = time.monotonic()
        unfinished = await run_tasks(env, names, at_once=8)
        await env.wait_until_settled()
        rate = tasks / (time.monotonic() - began) * 60
        audit = await TaskAuditor(env, names, reviewed=True).count()
        if wrong := [*unfinished, *audit.doubles, *audit.losses]:
            raise Refused(f"the lives did not end well: {wrong[:3]}")
        return rate, await _measure_durations(env)


async def _measure_durations(env: Cluster) -> Mapping[str, Sequence[float]]:
    """The seconds that each kind of order took from its decision to its end, that a decision
    waited, and a run took."""
    durations = defaultdict[str, list[float]](list)
    async with env.engine.connect() as connection:
        handled = dict(
            (await connection.execute(select(InboxRow.id, InboxRow.handled))).tuples().all()
        )
        for key, kind, done in await connection.execute(
            select(OutboxRow.key, OutboxRow.kind, OutboxRow.done)
        ):
            if done and (decided := handled.get(int(key.partition(".")[0]))):
                durations[kind].append(done - decided)
        waits = await connection.execute(
            select(InboxRow.handled - InboxRow.received).where(InboxRow.handled.is_not(None))
        )
        durations["decide"].extend(wait for (wait,) in waits)
        runs = await connection.execute(
            select(RunRow.ended - RunRow.started).where(RunRow.ended.is_not(None))
        )
        durations["run"].extend(took for (took,) in runs)
    return durations


# ── taking over ───────────────────────────────────────────────────────────────────────────────────


async def takeover(*, quick: bool) -> list[BenchmarkRow]:
    """A run waits in a command; its worker dies or is told to end; until the other has the run."""
    rounds = 1 if quick else 5
    rng = random.Random(3)
    killed = list[list[float]]()
    ended = list[list[float]]()
    again = list[list[float]]()
    with running_postgres() as postgres, running_redis() as redis:
        for number in range(rounds):
            for how, took in (("kill", killed), ("end", ended), ("again", again)):
                async with _start_empty_cluster(
                    postgres, redis, f"over_{number}_{how}", _LONG_STORY, workers=1
                ) as env:
                    took.append([await _measure_takeover(env, how, rng.uniform(0, 3))])
    targets = {"kill": (killed, 30.0, "kill -9"), "end": (ended, 2.0, "SIGTERM")}
    return [
        BenchmarkRow(
            name=f"takeover-{how}",
            what=f"{word} of a worker → another goes on with its run",
            unit="s",
            ours=took,
            other="kill -9, begun again in its folder",
            theirs=again,
            target=Threshold(p50=most),
            note=(
                "from the signal; SIGTERM's time holds the putting away of its files"
                if how == "end"
                else ""
            ),
        )
        for how, (took, most, word) in targets.items()
    ]


async def _measure_takeover(env: Cluster, how: str, rest: float) -> float:
    """The seconds until the run has another lease. `rest` lets beats and signals fall at any
    distance."""
    [first] = env.workers
    await env.file_labelled_issue()
    await env.wait_for_replies(1)
    if how != "again":
        await env.wait_until_ready(env.start_worker())
    previous = await env.scalar(select(RunRow.lease))
    await asyncio.sleep(rest)
    began = time.monotonic()
    if how == "end":
        ending = asyncio.create_task(first.stop())
    else:
        await asyncio.to_thread(first.restart if how == "again" else first.kill)
        ending = None

    async def is_taken_over() -> bool:
        return await env.scalar(select(RunRow.lease)) != previous

    await wait_until(is_taken_over, within=60)
    took = time.monotonic() - began
    if ending is not None:
        await ending
    return took


# ── many runs ─────────────────────────────────────────────────────────────────────────────────────


async def runs(*, quick: bool) -> list[BenchmarkRow]:
    """What a worker holds with one run and with many, each waiting in a command."""
    each = list[list[float]]()
    first = list[list[float]]()
    with running_postgres() as postgres, running_redis() as redis:
        for number in range(1 if quick else 3):
            # 50 disks must fit on any machine
            more = {"osiris_runs": _MANY, "osiris_sandbox_disk_gib": 0.1}
            async with _start_empty_cluster(
                postgres, redis, f"runs_{number}", _LONG_STORY, workers=1, more=more
            ) as env:
                [worker] = env.workers
                await env.file_labelled_issue("run 0")
                one = await _measure_memory(env, worker, 1)
                for n in range(1, _MANY):
                    await env.file_labelled_issue(f"run {n}")
                first.append([one])
                each.append([(await _measure_memory(env, worker, _MANY) - one) / (_MANY - 1)])
    return [
        BenchmarkRow(
            name="runs",
            what=f"memory of one more run at once, of {_MANY} in one worker",
            unit="MiB",
            ours=each,
            other="the worker with one run",
            theirs=first,
            target=Threshold(p50=8),
            note="resident memory of the worker; jails are processes of their own",
        )
    ]


async def _measure_memory(env: Cluster, worker: Machine, many: int) -> float:
    """Resident MiB of the worker once so many runs are in their command and nothing else is under
    way."""

    async def under_way() -> bool:
        said = select(func.count()).select_from(StepRow).where(StepRow.seq == 2)
        others = select(func.count()).where(
            OutboxRow.not_before.is_not(None), OutboxRow.lane != RUNS
        )
        return await env.scalar(said) == many and await env.scalar(others) == 0

    await wait_until(under_way, within=90, every=0.2)
    await asyncio.sleep(2)
    found = re.search(
        r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text(), re.MULTILINE
    )
    return int(found[1]) / 1024 if found else float("nan")
