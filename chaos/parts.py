"""The parts of the torture. Each plays lives until its end, and gives what it counted."""

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
from tests.flow.support.cluster import Site, site
from tests.flow.support.consistency_audit import (
    Counting,
    Freezer,
    Handovers,
    Reaper,
    Toll,
    count_requests,
    live_all,
    meanwhile,
    name_of,
    story,
)
from tests.flow.support.crash_points import Moment, killed_at
from tests.flow.support.hostile_github import LAWFUL, FaultPlan, fought, plans
from tests.flow.test_crash import EXPECTED
from tests.servers import running_postgres, running_redis

PATIENCE = Timeouts(pauses=(0.05,), lease=3.0)
DETAILS = Path(__file__).parent.parent / "build/torture"
_AT_ONCE = 8
_LIVES_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class TortureOptions:
    """What the command line says. `limit` is for the moments of the crash loop; None: all of
    them."""

    quick: bool
    limit: int | None
    seed: int
    tasks: int
    examples: int


def _say(words: str) -> None:
    print(f"torture: {words}", flush=True)


# ── kill -9 at every touch of the outside ─────────────────────────────────────────────────────────


async def crash(told: TortureOptions) -> Toll:
    """For each place in the code from which a life touches the outside two lives: one is killed
    when it comes by for the first time, one at a drawn later time."""
    chance = random.Random(told.seed)
    came_by = await _places()
    first = [Moment(place, 1) for place in came_by]
    later = [
        Moment(place, chance.randint(2, times)) for place, times in came_by.items() if times > 1
    ]
    moments = [*first, *later]
    if told.limit is not None and told.limit < len(moments):
        moments = chance.sample(moments, told.limit)
    _say(
        f"crash: {came_by.total()} touches at {len(came_by)} places in a whole life, killed at"
        f" {len(moments)} of them"
    )
    toll = Toll()
    waiting = iter(moments)
    await asyncio.gather(*(_die_at(waiting, toll) for _ in range(_LIVES_AT_ONCE)))
    return toll


async def _places() -> Counter[str]:
    """Where an undisturbed life touches the outside, and how often."""
    with a_place() as place:
        await killed_at(place, [written := place / "places"])
        return Counter(written.read_text().splitlines())


async def _die_at(moments: Iterator[Moment], toll: Toll) -> None:
    """One life after the other, until no moment is left."""
    for moment in moments:
        seen, deaths = await _life(moment)
        _add(toll, seen, EXPECTED, f"{moment}")
        toll.kills += deaths
        if toll.tasks % 50 == 0:
            _say(
                f"crash: {toll.tasks} lived, {len(toll.losses) + len(toll.doubles)} of them ended"
                " otherwise"
            )


async def _life(moment: Moment) -> tuple[Mapping[str, Any], int]:
    with a_place() as place:
        try:
            seen, lives = await killed_at(place, [moment])
        except (AssertionError, TimeoutError, ValueError, KeyError) as error:
            return {"ended with": f"{type(error).__name__}: {error}"}, 0
    return seen, lives.deaths


def _add(toll: Toll, seen: Mapping[str, Any], lawful: Mapping[str, Any], what: str) -> None:
    """Count one life against what its end should be."""
    toll.tasks += 1
    toll.done += seen.get("task", ("",))[0] == "done"
    toll.pulls += seen.get("pulls", 0)
    toll.comments += sum(seen.get("comments", []))
    toll.commits += len(seen.get("commits", []))
    toll.requests += seen.get("model calls", 0)
    toll.repeated += max(0, seen.get("model calls", 0) - lawful["model calls"])
    wrong = {name: seen.get(name) for name in lawful if seen.get(name) != lawful[name]}
    if wrong:
        more = any(
            _size(seen.get(name)) > _size(lawful[name]) for name in ("pulls", "commits", "comments")
        )
        told = f"{what}: {seen if 'ended with' in seen else wrong}"
        (toll.doubles if more else toll.losses).append(told)
        _say(told)


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


async def _machines(
    told: TortureOptions, tasks: int, hurt: Callable[[Site], Coroutine[Any, Any, None]]
) -> Toll:
    """Two workers that something happens to, while tasks live their lives."""
    names = [name_of(number) for number in range(tasks)]
    with servers() as pair, a_place() as place:
        await _migrate(pair["database_url"])
        script = story(tasks)
        async with loopback.serving(script) as vendors:
            model = settings_of(vendors, "anthropic")
            async with site(place, pair, script, patience=PATIENCE, workers=2, model=model) as it:
                it.stage.hub.rates.limit = 10**9  # it is not about GitHub's limits
                watching = Handovers(it)
                async with meanwhile(watching.watch()):
                    async with meanwhile(hurt(it)):
                        stuck = await live_all(it, names, at_once=_AT_ONCE)
                    if not stuck:
                        await it.settled()
                    toll = await Counting(it, names, reviewed=True).count()
                    toll.losses += stuck
                    await _write_down(it, [*toll.doubles, *toll.losses])
                await count_requests(it, vendors, toll)
                toll.takeovers = watching.count
    return toll


async def _write_down(it: Site, wrong: Sequence[str]) -> None:
    """Of each task that ended wrong its story, and with them what the machines logged."""
    for name in {told[: len(name_of(0))] for told in wrong}:
        DETAILS.mkdir(parents=True, exist_ok=True)
        (DETAILS / f"{name}.txt").write_text("\n".join(await it.story(f"Make {name}")) + "\n")
    for machine in (it.web, *it.workers) if wrong else ():
        shutil.copy(machine.log, DETAILS)


async def machines(told: TortureOptions) -> Toll:
    """kill -9 of workers and of the web process, at random moments."""
    reapers: list[Reaper] = []

    async def hurt(it: Site) -> None:
        reapers.append(reaper := Reaper(it, random.Random(told.seed), (1.0, 6.0)))
        await reaper.reap()

    toll = await _machines(told, told.tasks, hurt)
    toll.kills = sum(reaper.kills for reaper in reapers)
    return toll


async def frozen(told: TortureOptions) -> Toll:
    """SIGSTOP until another has taken the work over, then SIGCONT."""
    freezers: list[Freezer] = []

    async def hurt(it: Site) -> None:
        freezers.append(freezer := Freezer(it, random.Random(told.seed)))
        await freezer.freeze()

    toll = await _machines(told, max(4, told.tasks // 4), hurt)
    toll.freezes = sum(freezer.freezes for freezer in freezers)
    return toll


# ── GitHub as an enemy ────────────────────────────────────────────────────────────────────────────


async def enemy(told: TortureOptions) -> Toll:
    return await asyncio.to_thread(_fight, told)


def _fight(told: TortureOptions) -> Toll:
    toll = Toll()

    @seed(told.seed)
    @settings(
        max_examples=told.examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(plan=plans)
    def fight(plan: FaultPlan) -> None:
        with a_place() as place:
            try:
                seen, troubles = asyncio.run(fought(place, plan))
            except (AssertionError, TimeoutError) as error:
                seen = {"ended with": f"{type(error).__name__}: {error}"}
                troubles = [repr(plan)]
        toll.kills += len(troubles)
        _add(toll, seen, LAWFUL, f"{plan}")

    fight()
    return toll


PARTS: Mapping[str, Callable[[TortureOptions], Coroutine[Any, Any, Toll]]] = {
    "machines": machines,
    "frozen": frozen,
    "crash": crash,
    "enemy": enemy,
}


async def play(name: str, told: TortureOptions) -> Toll:
    """One part, timed."""
    began = time.monotonic()
    toll = await PARTS[name](told)
    toll.seconds = time.monotonic() - began
    return toll
