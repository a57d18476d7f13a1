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

from fake_vendors import server as loopback
from osiris.bootstrap import Timeouts
from osiris.queue.database import connect, migrate_schema
from tests.conftest import a_place
from tests.flow.conftest import settings_of
from tests.flow.support.cluster import Cluster, start_cluster
from tests.flow.support.consistency_audit import (
    TakeoverCounter,
    TaskAudit,
    TaskAuditor,
    WorkerFreezer,
    WorkerKiller,
    count_requests,
    name_of,
    run_concurrently,
    run_tasks,
    story,
)
from tests.flow.support.crash_points import CallOccurrence, run_with_crashes
from tests.flow.support.hostile_github import (
    EXPECTED_RESULT,
    FaultPlan,
    fault_plans,
    run_with_faults,
)
from tests.flow.test_crash import EXPECTED
from tests.servers import running_postgres, running_redis

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


def _print(words: str) -> None:
    print(f"torture: {words}", flush=True)


# ── kill -9 at every external call ────────────────────────────────────────────────────────────────


async def crash(options: TortureOptions) -> TaskAudit:
    """For each call site of an external call, run two tasks: in one the process is killed at the
    first call, in the other at a randomly chosen later one."""
    rng = random.Random(options.seed)
    call_counts = await _count_call_sites()
    first = [CallOccurrence(place, 1) for place in call_counts]
    later = [
        CallOccurrence(place, rng.randint(2, times))
        for place, times in call_counts.items()
        if times > 1
    ]
    occurrences = [*first, *later]
    if options.limit is not None and options.limit < len(occurrences):
        occurrences = rng.sample(occurrences, options.limit)
    _print(
        f"crash: {call_counts.total()} external calls at {len(call_counts)} call sites in a whole"
        f" task, killed at {len(occurrences)} of them"
    )
    audit = TaskAudit()
    remaining = iter(occurrences)
    await asyncio.gather(*(_run_crashes(remaining, audit) for _ in range(_CRASH_RUNS_AT_ONCE)))
    return audit


async def _count_call_sites() -> Counter[str]:
    """Return the call sites of the external calls of an undisturbed task, and their counts."""
    with a_place() as place:
        await run_with_crashes(place, [call_sites := place / "places"])
        return Counter(call_sites.read_text().splitlines())


async def _run_crashes(occurrences: Iterator[CallOccurrence], audit: TaskAudit) -> None:
    """Run one task after the other until no occurrence is left."""
    for occurrence in occurrences:
        result, crash_count = await _run_once(occurrence)
        _add_result(audit, result, EXPECTED, f"{occurrence}")
        audit.kills += crash_count
        if audit.tasks % 50 == 0:
            _print(
                f"crash: {audit.tasks} tasks,"
                f" {len(audit.losses) + len(audit.doubles)} of them with another result"
            )


async def _run_once(occurrence: CallOccurrence) -> tuple[Mapping[str, Any], int]:
    with a_place() as place:
        try:
            result, processes = await run_with_crashes(place, [occurrence])
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
        more = any(
            _size(result.get(name)) > _size(expected[name])
            for name in ("pulls", "commits", "comments")
        )
        message = f"{what}: {result if 'ended with' in result else differences}"
        (audit.doubles if more else audit.losses).append(message)
        _print(message)


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value)) if value and isinstance(value[0], int) else len(value)
    return value if isinstance(value, int) else 0


# ── a web process and two workers ─────────────────────────────────────────────────────────────────


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """A PostgreSQL with an empty database of this version, and a Redis."""
    with ExitStack() as stack:
        postgres = stack.enter_context(running_postgres())
        redis = stack.enter_context(running_redis())
        postgres.create("torture")
        yield {"database_url": postgres.url("torture"), "redis_url": redis.url}


async def _migrate(url: str) -> None:
    await migrate_schema(engine := connect(url))
    await engine.dispose()


async def _run_cluster(
    options: TortureOptions,
    tasks: int,
    inject_faults: Callable[[Cluster], Coroutine[Any, Any, None]],
) -> TaskAudit:
    """Run tasks on two workers while faults are injected."""
    names = [name_of(number) for number in range(tasks)]
    with servers() as pair, a_place() as place:
        await _migrate(pair["database_url"])
        script = story(tasks)
        async with loopback.serving(script) as vendors:
            model = settings_of(vendors, "anthropic")
            async with start_cluster(
                place, pair, script, timeouts=TIMEOUTS, workers=2, model=model
            ) as env:
                env.playground.hub.rates.limit = 10**9  # GitHub's rate limits are not tested here
                takeovers = TakeoverCounter(env)
                async with run_concurrently(takeovers.watch()):
                    async with run_concurrently(inject_faults(env)):
                        unfinished = await run_tasks(env, names, at_once=_AT_ONCE)
                    if not unfinished:
                        await env.wait_until_settled()
                    audit = await TaskAuditor(env, names, reviewed=True).count()
                    audit.losses += unfinished
                    await _write_details(env, [*audit.doubles, *audit.losses])
                await count_requests(env, vendors, audit)
                audit.takeovers = takeovers.count
    return audit


async def _write_details(env: Cluster, errors: Sequence[str]) -> None:
    """Write the history of each task with a wrong result, and the logs of the machines."""
    for name in {message[: len(name_of(0))] for message in errors}:
        DETAILS.mkdir(parents=True, exist_ok=True)
        (DETAILS / f"{name}.txt").write_text(
            "\n".join(await env.describe_task(f"Make {name}")) + "\n"
        )
    for machine in (env.web, *env.workers) if errors else ():
        shutil.copy(machine.log, DETAILS)


async def machines(options: TortureOptions) -> TaskAudit:
    """Kill workers and the web process with SIGKILL at random moments."""
    killers: list[WorkerKiller] = []

    async def inject_faults(env: Cluster) -> None:
        killers.append(killer := WorkerKiller(env, random.Random(options.seed), (1.0, 6.0)))
        await killer.kill_workers()

    audit = await _run_cluster(options, options.tasks, inject_faults)
    audit.kills = sum(killer.kills for killer in killers)
    return audit


async def frozen(options: TortureOptions) -> TaskAudit:
    """Freeze each worker until another has taken over its work, then thaw it."""
    freezers: list[WorkerFreezer] = []

    async def inject_faults(env: Cluster) -> None:
        freezers.append(freezer := WorkerFreezer(env, random.Random(options.seed)))
        await freezer.freeze()

    audit = await _run_cluster(options, max(4, options.tasks // 4), inject_faults)
    audit.freezes = sum(freezer.freezes for freezer in freezers)
    return audit


# ── a hostile GitHub ──────────────────────────────────────────────────────────────────────────────


async def enemy(options: TortureOptions) -> TaskAudit:
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
        with a_place() as place:
            try:
                result, faults = asyncio.run(run_with_faults(place, plan))
            except (AssertionError, TimeoutError) as error:
                result = {"ended with": f"{type(error).__name__}: {error}"}
                faults = [repr(plan)]
        audit.kills += len(faults)
        _add_result(audit, result, EXPECTED_RESULT, f"{plan}")

    run_plan()
    return audit


PARTS: Mapping[str, Callable[[TortureOptions], Coroutine[Any, Any, TaskAudit]]] = {
    "machines": machines,
    "frozen": frozen,
    "crash": crash,
    "enemy": enemy,
}


async def run_part(name: str, options: TortureOptions) -> TaskAudit:
    """Run one part and record its duration."""
    began = time.monotonic()
    audit = await PARTS[name](options)
    audit.seconds = time.monotonic() - began
    return audit
