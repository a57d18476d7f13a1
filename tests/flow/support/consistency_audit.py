"""Many tasks from their start to their end, and an audit of the results: nothing may be lost or
duplicated."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from fake_vendors.server import Vendors
from osiris.core.events import IssueRef
from osiris.core.ports.task_reader import TaskSummary
from osiris.queue.tables import RunRow, StepRow
from tests.flow.conftest import REPO, run, step, submit
from tests.flow.support.cluster import Machine, Site, until

LIFE = 300.0  # seconds to wait for one result on a busy machine


def story(tasks: int) -> dict[str, Any]:
    """Return a script in which each task writes its own file, and changes it when a review asks for
    that."""
    runs = []
    for name in map(name_of, range(tasks)):
        look = step("run_command", {"exit_code": 0}, command=f"grep -c . {name}.txt")
        runs.append(
            run(
                step("write_file", path=f"{name}.txt", content="1\n2\n"),
                look,
                submit("Two lines."),
                when=f"Nearly: {name}",
            )
        )
        runs.append(
            run(
                step("write_file", path=f"{name}.txt", content="1\n"),
                look,
                submit("One line."),
                when=f"Make {name}",
            )
        )
    # the brief of a review contains the request as well
    return {"runs": sorted(runs, key=lambda run: run["when"], reverse=True)}


def name_of(number: int) -> str:
    return f"t{number:04}"


@dataclass(frozen=True, slots=True)
class Life:
    """The course of one task, from its label to its merge."""

    it: Site
    name: str
    reviewed: bool = True

    async def live(self) -> None:
        issue = await self.it.labelled(f"Make {self.name}")
        pull = (await self._until(issue, commits=1)).task.pull
        assert pull is not None
        if self.reviewed:
            await self.it.bob.submit_review(pull, "REQUEST_CHANGES", f"Nearly: {self.name}")
            await self._until(issue, commits=2)
        await self.it.bob.submit_review(pull, "APPROVE")
        await until(lambda: self._is_ready(pull), within=LIFE)
        await self.it.bob.merge_pull(pull)

    async def _until(self, issue: int, *, commits: int) -> TaskSummary:
        """Wait until `commits` commits are ready for review and nothing of the task is waiting.
        Return the task."""

        async def handed_in() -> TaskSummary | None:
            line = await self.it.views.find_task(IssueRef(REPO, issue))
            if (
                line is None
                or line.task.pull is None
                or line.task.state != "review"
                or line.waiting
            ):
                return None
            return line if line.task.run == commits else None

        return await until(handed_in, within=LIFE, every=0.1)

    async def _is_ready(self, pull: int) -> bool:
        return not (await self.it.alice.get_pull(pull))["draft"]


@dataclass(kw_only=True)
class Toll:
    """The counts of an audit; `doubles` and `losses` name the errors."""

    tasks: int = 0
    done: int = 0
    kills: int = 0
    freezes: int = 0
    takeovers: int = 0
    pulls: int = 0
    comments: int = 0
    commits: int = 0
    requests: int = 0
    cut_off: int = 0
    repeated: int = 0
    seconds: float = 0.0
    doubles: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        return {**asdict(self), "doubles": len(self.doubles), "losses": len(self.losses)}


class Counting:
    """Audits everything that is visible of some tasks."""

    def __init__(self, it: Site, names: Sequence[str], *, reviewed: bool) -> None:
        self._it = it
        self._names = names
        self._commits = 1 + reviewed
        self._doubles = list[str]()
        self._losses = list[str]()
        self._toll = Toll(tasks=len(names), doubles=self._doubles, losses=self._losses)

    async def count(self) -> Toll:
        pulls = await _all(self._it, "/pulls?state=all")
        self._toll.pulls = len(pulls)
        for name in self._names:
            mine = [pull for pull in pulls if pull["title"] == f"Make {name}"]
            self._single(f"{name}: pull requests", len(mine))
            for pull in mine[:1]:
                await self._pull(name, pull)
        self._losses.extend(
            f"given up: {failure.what}: {failure.error}"
            for failure in await self._it.views.list_failures()
        )
        return self._toll

    def _single(self, what: str, found: int, wanted: int = 1) -> int:
        if found != wanted:
            (self._doubles if found > wanted else self._losses).append(f"{what}: {found}")
        return found

    async def _pull(self, name: str, pull: dict[str, Any]) -> None:
        issue = _issue_of(pull)
        number = pull["number"]
        for place in (issue, number):
            said = len(await self._it.alice.list_comments(place))
            self._toll.comments += self._single(f"{name}: comments on #{place}", said)
        made = await self._it.alice.send_request("GET", f"/pulls/{number}/commits")
        self._toll.commits += self._single(f"{name}: commits", len(made), self._commits)
        text = self._it.git("show", f"{pull['head']['sha']}:{name}.txt")
        self._single(f"{name}: lines", text.count("\n"), self._commits)
        await self._task(name, issue)

    async def _task(self, name: str, issue: int) -> None:
        line = await self._it.views.find_task(IssueRef(REPO, issue))
        if line is None or line.task.state != "done" or line.waiting:
            self._losses.append(
                f"{name} is {line.task.state} ({line.task.reason})"
                if line
                else f"{name} is unknown"
            )
        else:
            self._toll.done += 1


def _issue_of(pull: dict[str, Any]) -> int:
    return int(pull["body"].split("Closes #", 1)[1].split(",", 1)[0])


async def _all(it: Site, path: str) -> list[dict[str, Any]]:
    """Return the rows of all pages."""
    found: list[dict[str, Any]] = []
    while more := await it.alice.send_request(
        "GET", f"{path}&per_page=100&page={len(found) // 100 + 1}"
    ):
        found += more
        if len(more) < 100:
            break
    return found


def asked(vendors: Vendors) -> tuple[int, int]:
    """Return the number of model requests, and how many of them repeat an earlier one word for
    word. The probe of each worker, which asks its model once whether it calls tools, is not
    counted."""
    words = [json.dumps(asked.body["messages"], sort_keys=True) for asked in vendors.requests]
    steps = Counter(said for said in words if "Call the tool `ready`" not in said)
    return steps.total(), steps.total() - len(steps)


async def count_requests(it: Site, vendors: Vendors, toll: Toll) -> None:
    """Count the model requests. A request whose answer was lost with its worker must be repeated
    (`cut_off`); one that was answered must never be."""
    toll.requests, again = asked(vendors)
    toll.cut_off = toll.requests - await it.scalar(
        select(func.count()).where(StepRow.message["role"].as_string() == "assistant")
    )
    toll.repeated = max(0, again - toll.cut_off)


@contextlib.asynccontextmanager
async def meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` until the block ends; its errors are errors of the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def live_all(
    it: Site, names: Sequence[str], *, at_once: int, reviewed: bool = True
) -> list[str]:
    """Run tasks, `at_once` at a time. Return a description of each one that did not end, with
    everything that waits."""
    room = asyncio.Semaphore(at_once)
    stuck = list[str]()

    async def one(name: str) -> None:
        async with room:
            try:
                await Life(it, name, reviewed).live()
            except TimeoutError:
                stuck.append(f"{name} came to no end: {await it.waiting()}")

    async with it.sending_again(), asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(one(name))
    return stuck


@dataclass
class Reaper:
    """Kills workers, and sometimes the web process, at moments drawn by `chance`, and counts the
    kills."""

    it: Site
    chance: random.Random
    pause: tuple[float, float] = (0.5, 2.0)
    most: float = float("inf")
    kills: int = 0

    async def reap(self) -> None:
        """Kill until cancelled. Half of the killed workers start again in their own folder, the
        others are replaced."""
        while self.kills < self.most:
            await asyncio.sleep(self.chance.uniform(*self.pause))
            machine = self.chance.choice([self.it.web, *self.it.living()])
            await asyncio.to_thread(self._strike, machine)

    def _strike(self, machine: Machine) -> None:
        machine.kill()
        self.kills += 1
        if machine is self.it.web or self.chance.random() < 0.5:
            machine.begin()
        else:
            self.it.worker()


@dataclass
class Freezer:
    """Freezes one worker after the other until its lease is over, then thaws it, and counts the
    freezes."""

    it: Site
    chance: random.Random
    pause: tuple[float, float] = (0.2, 1.5)
    freezes: int = 0

    async def freeze(self) -> None:
        """Freeze workers until cancelled."""
        while True:
            await asyncio.sleep(self.chance.uniform(*self.pause))
            machine = self.chance.choice(self.it.living())
            if (was := await self.it.holds(machine)) is None:
                continue
            machine.freeze()
            self.freezes += 1
            try:
                await until(lambda machine=machine: self._over(machine), within=LIFE)
            finally:
                machine.thaw()
            await until(lambda machine=machine, was=was: self._anew(machine, was), within=LIFE)

    async def _over(self, machine: Machine) -> bool:
        return await self.it.holds(machine) is None

    async def _anew(self, machine: Machine, was: int) -> bool:
        return await self.it.holds(machine) not in (None, was)


@dataclass
class Handovers:
    """Counts how often a run continued under another lease than before."""

    it: Site
    seen: set[tuple[str, int]] = field(default_factory=set)

    async def watch(self) -> None:
        """Record the leases of the runs until cancelled."""
        while True:
            with contextlib.suppress(SQLAlchemyError):
                async with self.it.engine.connect() as connection:
                    rows = await connection.execute(
                        select(RunRow.name, RunRow.lease).where(RunRow.lease.is_not(None))
                    )
                    self.seen.update((name, lease) for name, lease in rows)
            await asyncio.sleep(0.05)

    @property
    def count(self) -> int:
        return len(self.seen) - len({name for name, _ in self.seen})
