"""The parts of `make torture`. Each runs tasks from label to merge and returns an audit of them."""

import asyncio
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from fake_vendors.server import serve_vendors
from osiris.bootstrap import Timeouts
from osiris.queue.database import connect, migrate_schema
from tests.conftest import create_test_folder
from tests.flow.conftest import get_vendor_settings
from tests.flow.support.cluster import Cluster, start_cluster
from tests.flow.support.consistency_audit import (
    TakeoverCounter,
    TaskAudit,
    TaskAuditor,
    WorkerFreezer,
    WorkerKiller,
    build_tasks_script,
    count_requests,
    format_task_name,
    run_concurrently,
    run_tasks,
)
from tests.flow.support.crash_points import CallOccurrence, run_with_crashes
from tests.flow.support.hostile_github import (
    EXPECTED_RESULT,
    FaultPlan,
    fault_plans,
    run_with_faults,
)
from tests.flow.test_crash import EXPECTED
from tests.servers import start_postgres, start_redis

TIMEOUTS = Timeouts(pauses=(0.05,), lease=3.0)
DETAILS = Path(__file__).parent.parent / "build/torture"
_AT_ONCE = 8
_CRASH_RUNS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class TortureOptions:
    """The options of the command line. `limit` is the number of crash points; None means all."""

    quick: bool
    limit: int | None
    seed: int
    tasks: int
    examples: int


def _print_progress(message: str) -> None:
    print(f"torture: {message}", flush=True)


# ── kill -9 at every external call ────────────────────────────────────────────────────────────────


async def kill_at_call_sites(options: TortureOptions) -> TaskAudit:
    """For each call site of an external call, run two tasks: in one the process is killed at the
    first call, in the other at a randomly chosen later one."""
    rng = random.Random(options.seed)
    call_counts = await _count_call_sites()
    first = [CallOccurrence(call_site, 1) for call_site in call_counts]
    later = [
        CallOccurrence(call_site, rng.randint(2, times))
        for call_site, times in call_counts.items()
        if times > 1
    ]
    occurrences = [*first, *later]
    if options.limit is not None and options.limit < len(occurrences):
        occurrences = rng.sample(occurrences, options.limit)
    _print_progress(
        f"crash: {call_counts.total()} external calls at {len(call_counts)} call sites in a whole"
        f" task, killed at {len(occurrences)} of them"
    )
    audit = TaskAudit()
    remaining = iter(occurrences)
    await asyncio.gather(*(_run_crashes(remaining, audit) for _ in range(_CRASH_RUNS_AT_ONCE)))
    return audit


async def _count_call_sites() -> Counter[str]:
    """Return the call sites of the external calls of an undisturbed task, and their counts."""
    with create_test_folder() as folder:
        await run_with_crashes(folder, [call_sites := folder / "places"])
        return Counter(call_sites.read_text().splitlines())


async def _run_crashes(occurrences: Iterator[CallOccurrence], audit: TaskAudit) -> None:
    """Run one task after the other until no occurrence is left."""
    for occurrence in occurrences:
        result, crash_count = await _run_once(occurrence)
        _add_result(audit, result, EXPECTED, f"{occurrence}")
        audit.kills += crash_count
        if audit.tasks % 50 == 0:
            _print_progress(
                f"crash: {audit.tasks} tasks,"
                f" {len(audit.losses) + len(audit.doubles)} of them with another result"
            )


async def _run_once(occurrence: CallOccurrence) -> tuple[Mapping[str, Any], int]:
    with create_test_folder() as folder:
        try:
            result, processes = await run_with_crashes(folder, [occurrence])
        except (AssertionError, TimeoutError, ValueError, KeyError) as error:
            return {"ended with": f"{type(error).__name__}: {error}"}, 0
    return result, processes.crash_count


def _add_result(
    audit: TaskAudit, result: Mapping[str, Any], expected: Mapping[str, Any], what: str
) -> None:
    """Compare the result of one task with the expected one, and count it."""
    audit.tasks += 1
    audit.done += result.get("task", ("",))[0] == "done"
    audit.pulls += result.get("pulls", 0)
    audit.comments += sum(result.get("comments", []))
    audit.commits += len(result.get("commits", []))
    audit.requests += result.get("model calls", 0)
    audit.repeated += max(0, result.get("model calls", 0) - expected["model calls"])
    differences = {
        name: result.get(name) for name in expected if result.get(name) != expected[name]
    }
    if differences:
        has_doubles = any(
            _count_items(result.get(name)) > _count_items(expected[name])
            for name in ("pulls", "commits", "comments")
        )
        message = f"{what}: {result if 'ended with' in result else differences}"
        (audit.doubles if has_doubles else audit.losses).append(message)
        _print_progress(message)


def _count_items(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_count_items, value)) if value and isinstance(value[0], int) else len(value)
    return value if isinstance(value, int) else 0


# ── a web process and two workers ─────────────────────────────────────────────────────────────────


@contextmanager
def start_servers() -> Iterator[dict[str, str]]:
    """Run a PostgreSQL with an empty database, and a Redis. Yield the settings that use them."""
    with ExitStack() as stack:
        postgres = stack.enter_context(start_postgres())
        redis = stack.enter_context(start_redis())
        postgres.create("torture")
        yield {"database_url": postgres.build_url("torture"), "redis_url": redis.url}


async def _migrate(url: str) -> None:
    await migrate_schema(engine := connect(url))
    await engine.dispose()


async def _run_cluster(
    options: TortureOptions,
    tasks: int,
    inject_faults: Callable[[Cluster], Coroutine[Any, Any, None]],
) -> TaskAudit:
    """Run tasks on two workers while faults are injected."""
    names = [format_task_name(number) for number in range(tasks)]
    with start_servers() as pair, create_test_folder() as folder:
        await _migrate(pair["database_url"])
        script = build_tasks_script(tasks)
        async with serve_vendors(script) as vendors:
            model = get_vendor_settings(vendors, "anthropic")
            async with start_cluster(
                folder, pair, script, timeouts=TIMEOUTS, workers=2, model=model
            ) as env:
                env.playground.hub.rates.limit = 10**9  # GitHub's rate limits are not tested here
                takeovers = TakeoverCounter(env)
                async with run_concurrently(takeovers.record_leases()):
                    async with run_concurrently(inject_faults(env)):
                        unfinished = await run_tasks(env, names, at_once=_AT_ONCE)
                    if not unfinished:
                        await env.wait_until_settled()
                    audit = await TaskAuditor(env, names, has_review=True).audit_tasks()
                    audit.losses += unfinished
                    await _write_details(env, [*audit.doubles, *audit.losses])
                await count_requests(env, vendors, audit)
                audit.takeovers = takeovers.count
    return audit


async def _write_details(env: Cluster, errors: Sequence[str]) -> None:
    """Write the history of each task with a wrong result, and the logs of the machines."""
    for name in {message[: len(format_task_name(0))] for message in errors}:
        DETAILS.mkdir(parents=True, exist_ok=True)
        (DETAILS / f"{name}.txt").write_text(
            "\n".join(await env.describe_task(f"Make {name}")) + "\n"
        )
    for machine in (env.web, *env.workers) if errors else ():
        shutil.copy(machine.log, DETAILS)


async def kill_workers(options: TortureOptions) -> TaskAudit:
    """Kill workers and the web process with SIGKILL at random moments."""
    killers: list[WorkerKiller] = []

    async def inject_faults(env: Cluster) -> None:
        killers.append(killer := WorkerKiller(env, random.Random(options.seed), (1.0, 6.0)))
        await killer.kill_workers()

    audit = await _run_cluster(options, options.tasks, inject_faults)
    audit.kills = sum(killer.kills for killer in killers)
    return audit


async def freeze_workers(options: TortureOptions) -> TaskAudit:
    """Freeze each worker until another has taken over its work, then thaw it."""
    freezers: list[WorkerFreezer] = []

    async def inject_faults(env: Cluster) -> None:
        freezers.append(freezer := WorkerFreezer(env, random.Random(options.seed)))
        await freezer.freeze_workers()

    audit = await _run_cluster(options, max(4, options.tasks // 4), inject_faults)
    audit.freezes = sum(freezer.freezes for freezer in freezers)
    return audit


# ── a hostile GitHub ──────────────────────────────────────────────────────────────────────────────


async def run_against_hostile_github(options: TortureOptions) -> TaskAudit:
    """Run tasks against a GitHub with random faults."""
    return await asyncio.to_thread(_run_fault_plans, options)


def _run_fault_plans(options: TortureOptions) -> TaskAudit:
    audit = TaskAudit()

    @seed(options.seed)
    @settings(
        max_examples=options.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(plan=fault_plans)
    def run_plan(plan: FaultPlan) -> None:
        with create_test_folder() as folder:
            try:
                result, faults = asyncio.run(run_with_faults(folder, plan))
            except (AssertionError, TimeoutError) as error:
                result = {"ended with": f"{type(error).__name__}: {error}"}
                faults = [repr(plan)]
        audit.kills += len(faults)
        _add_result(audit, result, EXPECTED_RESULT, f"{plan}")

    run_plan()
    return audit


PARTS: Mapping[str, Callable[[TortureOptions], Coroutine[Any, Any, TaskAudit]]] = {
    "machines": kill_workers,
    "frozen": freeze_workers,
    "crash": kill_at_call_sites,
    "enemy": run_against_hostile_github,
}


async def run_part(name: str, options: TortureOptions) -> TaskAudit:
    """Run one part and record its duration."""
    began = time.monotonic()
    audit = await PARTS[name](options)
    audit.seconds = time.monotonic() - began
    return audit
