"""Benchmarks with several processes: tasks a minute, the time until another worker takes over, and
the memory of a run."""

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
from tests.conftest import create_test_folder
from tests.flow.conftest import build_run, build_step, build_submit_step
from tests.flow.support.cluster import DEFAULT_TIMEOUTS, Cluster, Machine, start_cluster, wait_until
from tests.flow.support.consistency_audit import (
    TaskAuditor,
    build_tasks_script,
    format_task_name,
    run_tasks,
)
from tests.servers import Postgres, Redis, start_postgres, start_redis

_RUN_COUNT = 50
_LONG_SCRIPT = {
    "runs": [build_run(build_step("run_command", command="sleep 100"), build_submit_step())]
}


@asynccontextmanager
async def _start_empty_cluster(
    postgres: Postgres, redis: Redis, name: str, script: dict[str, Any], **options: Any
) -> AsyncIterator[Cluster]:
    """Start a web process and workers on an empty database, with the default timeouts."""
    postgres.create(name)
    await migrate_schema(engine := connect(postgres.build_url(name)))
    await engine.dispose()
    redis.flush()
    more = {
        "database_url": postgres.build_url(name),
        "redis_url": redis.url,
        **options.pop("more", {}),
    }
    with create_test_folder() as folder:
        async with start_cluster(folder, more, script, timeouts=DEFAULT_TIMEOUTS, **options) as env:
            env.playground.hub.rates.limit = 10**9
            yield env
    postgres.drop(name)


# ── whole tasks ───────────────────────────────────────────────────────────────────────────────────


async def measure_task_rate(*, quick: bool) -> list[BenchmarkRow]:
    """Measure rounds of one worker and of two workers in turn."""
    tasks = 6 if quick else 24
    rates = dict[int, list[list[float]]]()
    durations = dict[str, list[float]]()
    with start_postgres() as postgres, start_redis() as redis:
        for number in range(1 if quick else 3):
            for workers in (1, 2):
                rate, durations_by_kind = await _measure_rate(
                    postgres, redis, f"lives_{number}_{workers}", tasks, workers
                )
                rates.setdefault(workers, []).append([rate])
                for kind, seconds in durations_by_kind.items():
                    durations.setdefault(kind, []).extend(seconds)
    order_times = ", ".join(
        f"{kind} {statistics.median(samples) * 1e3:.0f}"
        for kind, samples in sorted(durations.items())
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
                f" done: {order_times}"
            ),
        )
    ]


async def _measure_rate(
    postgres: Postgres, redis: Redis, database: str, tasks: int, workers: int
) -> tuple[float, Mapping[str, Sequence[float]]]:
    names = [format_task_name(number) for number in range(tasks)]
    async with _start_empty_cluster(
        postgres, redis, database, build_tasks_script(tasks), workers=workers
    ) as env:
        began = time.monotonic()
        unfinished = await run_tasks(env, names, at_once=8)
        await env.wait_until_settled()
        rate = tasks / (time.monotonic() - began) * 60
        audit = await TaskAuditor(env, names, has_review=True).audit_tasks()
        if errors := [*unfinished, *audit.doubles, *audit.losses]:
            raise Refused(f"tasks did not end as expected: {errors[:3]}")
        return rate, await _measure_durations(env)


async def _measure_durations(env: Cluster) -> Mapping[str, Sequence[float]]:
    """Return the seconds from the decision of each kind of order to its end, the seconds that a
    decision waited, and those of a run."""
    durations = defaultdict[str, list[float]](list)
    async with env.engine.connect() as connection:
        handled = dict(
            (await connection.execute(select(InboxRow.id, InboxRow.handled))).tuples().all()
        )
        for key, kind, done_at in await connection.execute(
            select(OutboxRow.key, OutboxRow.kind, OutboxRow.done)
        ):
            if done_at and (decided_at := handled.get(int(key.partition(".")[0]))):
                durations[kind].append(done_at - decided_at)
        waits = await connection.execute(
            select(InboxRow.handled - InboxRow.received).where(InboxRow.handled.is_not(None))
        )
        durations["decide"].extend(wait for (wait,) in waits)
        runs = await connection.execute(
            select(RunRow.ended - RunRow.started).where(RunRow.ended.is_not(None))
        )
        durations["run"].extend(seconds for (seconds,) in runs)
    return durations


# ── takeovers ─────────────────────────────────────────────────────────────────────────────────────


async def measure_takeover(*, quick: bool) -> list[BenchmarkRow]:
    """Measure how long it takes until another worker has a run, after its worker was killed or told
    to end while the run waits in a command."""
    rounds = 1 if quick else 5
    rng = random.Random(3)
    killed = list[list[float]]()
    ended = list[list[float]]()
    restarted = list[list[float]]()
    with start_postgres() as postgres, start_redis() as redis:
        for round_number in range(rounds):
            for ending, samples in (("kill", killed), ("end", ended), ("again", restarted)):
                async with _start_empty_cluster(
                    postgres, redis, f"over_{round_number}_{ending}", _LONG_SCRIPT, workers=1
                ) as env:
                    samples.append([await _measure_takeover(env, ending, rng.uniform(0, 3))])
    targets = {"kill": (killed, 30.0, "kill -9"), "end": (ended, 2.0, "SIGTERM")}
    return [
        BenchmarkRow(
            name=f"takeover-{ending}",
            what=f"{signal_name} of a worker → another goes on with its run",
            unit="s",
            ours=samples,
            other="kill -9, begun again in its folder",
            theirs=restarted,
            target=Threshold(p50=max_seconds),
            note=(
                "from the signal; SIGTERM's time holds the putting away of its files"
                if ending == "end"
                else ""
            ),
        )
        for ending, (samples, max_seconds, signal_name) in targets.items()
    ]


async def _measure_takeover(env: Cluster, ending: str, rest: float) -> float:
    """Return the seconds until the run has another lease. `rest` is a pause before the signal, so
    that the signal falls at any time between two heartbeats."""
    [worker] = env.workers
    await env.file_labelled_issue()
    await env.wait_for_replies(1)
    if ending != "again":
        await env.wait_until_ready(env.start_worker())
    previous = await env.query_scalar(select(RunRow.lease))
    await asyncio.sleep(rest)
    began = time.monotonic()
    if ending == "end":
        stop_task = asyncio.create_task(worker.stop())
    else:
        await asyncio.to_thread(worker.restart if ending == "again" else worker.kill)
        stop_task = None

    async def is_taken_over() -> bool:
        return await env.query_scalar(select(RunRow.lease)) != previous

    await wait_until(is_taken_over, within=60)
    seconds = time.monotonic() - began
    if stop_task is not None:
        await stop_task
    return seconds


# ── many runs ─────────────────────────────────────────────────────────────────────────────────────


async def measure_run_memory(*, quick: bool) -> list[BenchmarkRow]:
    """Measure the memory of a worker with one run and with many, each waiting in a command."""
    memory_of_each = list[list[float]]()
    memory_of_first = list[list[float]]()
    with start_postgres() as postgres, start_redis() as redis:
        for number in range(1 if quick else 3):
            # 50 disks must fit on any machine
            more = {"osiris_runs": _RUN_COUNT, "osiris_sandbox_disk_gib": 0.1}
            async with _start_empty_cluster(
                postgres, redis, f"runs_{number}", _LONG_SCRIPT, workers=1, more=more
            ) as env:
                [worker] = env.workers
                await env.file_labelled_issue("run 0")
                memory_with_one = await _measure_memory(env, worker, 1)
                for n in range(1, _RUN_COUNT):
                    await env.file_labelled_issue(f"run {n}")
                memory_of_first.append([memory_with_one])
                memory_of_each.append(
                    [
                        (await _measure_memory(env, worker, _RUN_COUNT) - memory_with_one)
                        / (_RUN_COUNT - 1)
                    ]
                )
    return [
        BenchmarkRow(
            name="runs",
            what=f"memory of one more run at once, of {_RUN_COUNT} in one worker",
            unit="MiB",
            ours=memory_of_each,
            other="the worker with one run",
            theirs=memory_of_first,
            target=Threshold(p50=8),
            note="resident memory of the worker; jails are processes of their own",
        )
    ]


async def _measure_memory(env: Cluster, worker: Machine, count: int) -> float:
    """Return the resident memory of the worker in MiB, once `count` runs are in their command and
    no other work is in progress."""

    async def is_reached() -> bool:
        replies = select(func.count()).select_from(StepRow).where(StepRow.seq == 2)
        other_orders = select(func.count()).where(
            OutboxRow.not_before.is_not(None), OutboxRow.lane != RUNS
        )
        return (
            await env.query_scalar(replies) == count and await env.query_scalar(other_orders) == 0
        )

    await wait_until(is_reached, within=90, every=0.2)
    await asyncio.sleep(2)
    match = re.search(
        r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text(), re.MULTILINE
    )
    return int(match[1]) / 1024 if match else float("nan")
