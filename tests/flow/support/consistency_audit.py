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
from tests.flow.support.cluster import Cluster, Machine, wait_until

RESULT_TIMEOUT = 300.0  # seconds to wait for one result on a busy machine


def story(tasks: int) -> dict[str, Any]:
    """Return a script in which each task writes its own file, and changes it when a review asks for
    that."""
    runs = []
    for name in map(name_of, range(tasks)):
        redeliver_every_second = step(
            "run_command", {"exit_code": 0}, command=f"grep -c . {name}.txt"
        )
        runs.append(
            run(
                step("write_file", path=f"{name}.txt", content="1\n2\n"),
                redeliver_every_second,
                submit("Two lines."),
                when=f"Nearly: {name}",
            )
        )
        runs.append(
            run(
                step("write_file", path=f"{name}.txt", content="1\n"),
                redeliver_every_second,
                submit("One line."),
                when=f"Make {name}",
            )
        )
    # the brief of a review contains the request as well
    return {"runs": sorted(runs, key=lambda run: run["when"], reverse=True)}


def name_of(number: int) -> str:
    return f"t{number:04}"


@dataclass(frozen=True, slots=True)
class TaskLifecycle:
    """The course of one task, from its label to its merge."""

    env: Cluster
    name: str
    reviewed: bool = True

    async def run_to_merge(self) -> None:
        issue = await self.env.file_labelled_issue(f"Make {self.name}")
        pull = (await self._until(issue, commits=1)).task.pull
        assert pull is not None
        if self.reviewed:
            await self.env.bob.submit_review(pull, "REQUEST_CHANGES", f"Nearly: {self.name}")
            await self._until(issue, commits=2)
        await self.env.bob.submit_review(pull, "APPROVE")
        await wait_until(lambda: self._is_ready(pull), within=RESULT_TIMEOUT)
        await self.env.bob.merge_pull(pull)

    async def _until(self, issue: int, *, commits: int) -> TaskSummary:
        """Wait until `commits` commits are ready for review and nothing of the task is waiting.
        Return the task."""

        async def is_submitted() -> TaskSummary | None:
            line = await self.env.views.find_task(IssueRef(REPO, issue))
            if (
                line is None
                or line.task.pull is None
                or line.task.state != "review"
                or line.waiting
            ):
                return None
            return line if line.task.run == commits else None

        return await wait_until(is_submitted, within=RESULT_TIMEOUT, every=0.1)

    async def _is_ready(self, pull: int) -> bool:
        return not (await self.env.alice.get_pull(pull))["draft"]


@dataclass(kw_only=True)
class TaskAudit:
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


class TaskAuditor:
    """Audits everything that is visible of some tasks."""

    def __init__(self, env: Cluster, names: Sequence[str], *, reviewed: bool) -> None:
        self._it = env
        self._names = names
        self._commits = 1 + reviewed
        self._doubles = list[str]()
        self._losses = list[str]()
        self._audit = TaskAudit(tasks=len(names), doubles=self._doubles, losses=self._losses)

    async def count(self) -> TaskAudit:
        pulls = await _all(self._it, "/pulls?state=all")
        self._audit.pulls = len(pulls)
        for name in self._names:
            mine = [pull for pull in pulls if pull["title"] == f"Make {name}"]
            self._single(f"{name}: pull requests", len(mine))
            for pull in mine[:1]:
                await self._pull(name, pull)
        self._losses.extend(
            f"given up: {failure.what}: {failure.error}"
            for failure in await self._it.views.list_failures()
        )
        return self._audit

    def _single(self, what: str, found: int, wanted: int = 1) -> int:
        if found != wanted:
            (self._doubles if found > wanted else self._losses).append(f"{what}: {found}")
        return found

    async def _pull(self, name: str, pull: dict[str, Any]) -> None:
        issue = _issue_of(pull)
        number = pull["number"]
        for place in (issue, number):
            said = len(await self._it.alice.list_comments(place))
            self._audit.comments += self._single(f"{name}: comments on #{place}", said)
        made = await self._it.alice.send_request("GET", f"/pulls/{number}/commits")
        self._audit.commits += self._single(f"{name}: commits", len(made), self._commits)
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
            self._audit.done += 1


def _issue_of(pull: dict[str, Any]) -> int:
    return int(pull["body"].split("Closes #", 1)[1].split(",", 1)[0])


async def _all(env: Cluster, path: str) -> list[dict[str, Any]]:
    """Return the rows of all pages."""
    found: list[dict[str, Any]] = []
    while more := await env.alice.send_request(
        "GET", f"{path}&per_page=100&page={len(found) // 100 + 1}"
    ):
        found += more
        if len(more) < 100:
            break
    return found


def count_model_requests(vendors: Vendors) -> tuple[int, int]:
    """Return the number of model requests, and how many of them repeat an earlier one word for
    word. The probe of each worker, which asks its model once whether it calls tools, is not
    counted."""
    words = [json.dumps(request.body["messages"], sort_keys=True) for request in vendors.requests]
    steps = Counter(said for said in words if "Call the tool `ready`" not in said)
    return steps.total(), steps.total() - len(steps)


async def count_requests(env: Cluster, vendors: Vendors, audit: TaskAudit) -> None:
    """Count the model requests. A request whose answer was lost with its worker must be repeated
    (`cut_off`); one that was answered must never be."""
    audit.requests, again = count_model_requests(vendors)
    audit.cut_off = audit.requests - await env.scalar(
        select(func.count()).where(StepRow.message["role"].as_string() == "assistant")
    )
    audit.repeated = max(0, again - audit.cut_off)


@contextlib.asynccontextmanager
async def run_concurrently(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` until the block ends; its errors are errors of the block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def run_tasks(
    env: Cluster, names: Sequence[str], *, at_once: int, reviewed: bool = True
) -> list[str]:
    """Run tasks, `at_once` at a time. Return a description of each one that did not end, with
    everything that waits."""
    room = asyncio.Semaphore(at_once)
    unfinished = list[str]()

    async def one(name: str) -> None:
        async with room:
            try:
                await TaskLifecycle(env, name, reviewed).run_to_merge()
            except TimeoutError:
                unfinished.append(f"{name} came to no end: {await env.describe_unfinished()}")

    async with env.redeliver_periodically(), asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(one(name))
    return unfinished


@dataclass
class WorkerKiller:
    """Kills workers, and sometimes the web process, at moments drawn by `rng`, and counts the
    kills."""

    env: Cluster
    rng: random.Random
    pause: tuple[float, float] = (0.5, 2.0)
    most: float = float("inf")
    kills: int = 0

    async def kill_workers(self) -> None:
        """Kill until cancelled. Half of the killed workers start again in their own folder, the
        others are replaced."""
        while self.kills < self.most:
            await asyncio.sleep(self.rng.uniform(*self.pause))
            machine = self.rng.choice([self.env.web, *self.env.list_running_workers()])
            await asyncio.to_thread(self._kill, machine)

    def _kill(self, machine: Machine) -> None:
        machine.kill()
        self.kills += 1
        if machine is self.env.web or self.rng.random() < 0.5:
            machine.start()
        else:
            self.env.start_worker()


@dataclass
class WorkerFreezer:
    """Freezes one worker after the other until its lease is over, then thaws it, and counts the
    freezes."""

    env: Cluster
    rng: random.Random
    pause: tuple[float, float] = (0.2, 1.5)
    freezes: int = 0

    async def freeze(self) -> None:
        """Freeze workers until cancelled."""
        while True:
            await asyncio.sleep(self.rng.uniform(*self.pause))
            machine = self.rng.choice(self.env.list_running_workers())
            if (previous := await self.env.get_lease(machine)) is None:
                continue
            machine.freeze()
            self.freezes += 1
            try:
                await wait_until(
                    lambda machine=machine: self._has_no_lease(machine), within=RESULT_TIMEOUT
                )
            finally:
                machine.thaw()
            await wait_until(
                lambda machine=machine, previous=previous: self._has_new_lease(machine, previous),
                within=RESULT_TIMEOUT,
            )

    async def _has_no_lease(self, machine: Machine) -> bool:
        return await self.env.get_lease(machine) is None

    async def _has_new_lease(self, machine: Machine, previous: int) -> bool:
        return await self.env.get_lease(machine) not in (None, previous)


@dataclass
class TakeoverCounter:
    """Counts how often a run continued under another lease than before."""

    env: Cluster
    seen: set[tuple[str, int]] = field(default_factory=set)

    async def watch(self) -> None:
        """Record the leases of the runs until cancelled."""
        while True:
            with contextlib.suppress(SQLAlchemyError):
                async with self.env.engine.connect() as connection:
                    rows = await connection.execute(
                        select(RunRow.name, RunRow.lease).where(RunRow.lease.is_not(None))
                    )
                    self.seen.update((name, lease) for name, lease in rows)
            await asyncio.sleep(0.05)

    @property
    def count(self) -> int:
        return len(self.seen) - len({name for name, _ in self.seen})
