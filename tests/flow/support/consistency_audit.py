"""Runs many tasks from label to merge, and audits the results: nothing may be lost or
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
from tests.flow.conftest import REPO, build_run, build_step, build_submit_step
from tests.flow.support.cluster import Cluster, Machine, wait_until

RESULT_TIMEOUT = 300.0  # seconds to wait for one result on a busy machine


def build_tasks_script(count: int) -> dict[str, Any]:
    """Return a script for `count` tasks. Each task writes its own file, and changes it when a
    review requests changes."""
    runs = []
    for name in map(format_task_name, range(count)):
        check_step = build_step("run_command", {"exit_code": 0}, command=f"grep -c . {name}.txt")
        runs.append(
            build_run(
                build_step("write_file", path=f"{name}.txt", content="1\n2\n"),
                check_step,
                build_submit_step("Two lines."),
                when=f"Nearly: {name}",
            )
        )
        runs.append(
            build_run(
                build_step("write_file", path=f"{name}.txt", content="1\n"),
                check_step,
                build_submit_step("One line."),
                when=f"Make {name}",
            )
        )
    # the briefing of a review also contains the request
    return {"runs": sorted(runs, key=lambda run: run["when"], reverse=True)}


def format_task_name(number: int) -> str:
    return f"t{number:04}"


@dataclass(frozen=True, slots=True)
class TaskLifecycle:
    """One task from its label to its merge."""

    env: Cluster
    name: str
    has_review: bool = True

    async def run_to_merge(self) -> None:
        issue = await self.env.file_labelled_issue(f"Make {self.name}")
        pull = (await self._wait_for_commits(issue, commits=1)).task.pull
        assert pull is not None
        if self.has_review:
            await self.env.bob.submit_review(pull, "REQUEST_CHANGES", f"Nearly: {self.name}")
            await self._wait_for_commits(issue, commits=2)
        await self.env.bob.submit_review(pull, "APPROVE")
        await wait_until(lambda: self._is_ready(pull), within=RESULT_TIMEOUT)
        await self.env.bob.merge_pull(pull)

    async def _wait_for_commits(self, issue: int, *, commits: int) -> TaskSummary:
        """Wait until `commits` commits are ready for review and no row of the task is waiting.
        Return a summary of the task."""

        async def is_submitted() -> TaskSummary | None:
            line = await self.env.read_models.find_task(IssueRef(REPO, issue))
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
    """The counts of an audit. `doubles` and `losses` describe what was duplicated or lost."""

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

    def list_counts(self) -> dict[str, Any]:
        """Return all counts by name."""
        return {**asdict(self), "doubles": len(self.doubles), "losses": len(self.losses)}


class TaskAuditor:
    """Audits what people see of tasks."""

    def __init__(self, env: Cluster, names: Sequence[str], *, has_review: bool) -> None:
        self._env = env
        self._names = names
        self._commits = 1 + has_review
        self._doubles = list[str]()
        self._losses = list[str]()
        self._audit = TaskAudit(tasks=len(names), doubles=self._doubles, losses=self._losses)

    async def audit_tasks(self) -> TaskAudit:
        """Count the results of all tasks, and compare them with the expected ones."""
        pulls = await _list_all_rows(self._env, "/pulls?state=all")
        self._audit.pulls = len(pulls)
        for name in self._names:
            pulls_of_task = [pull for pull in pulls if pull["title"] == f"Make {name}"]
            self._check_count(f"{name}: pull requests", len(pulls_of_task))
            for pull in pulls_of_task[:1]:
                await self._audit_pull(name, pull)
        self._losses.extend(
            f"given up: {failure.what}: {failure.error}"
            for failure in await self._env.read_models.list_failures()
        )
        return self._audit

    def _check_count(self, what: str, count: int, expected: int = 1) -> int:
        """Record an error if the count is not the expected one. Return the count."""
        if count != expected:
            (self._doubles if count > expected else self._losses).append(f"{what}: {count}")
        return count

    async def _audit_pull(self, name: str, pull: dict[str, Any]) -> None:
        issue = _parse_issue_number(pull)
        pull_number = pull["number"]
        for number in (issue, pull_number):
            comment_count = len(await self._env.alice.list_comments(number))
            self._audit.comments += self._check_count(
                f"{name}: comments on #{number}", comment_count
            )
        commits = await self._env.alice.send_request("GET", f"/pulls/{pull_number}/commits")
        self._audit.commits += self._check_count(f"{name}: commits", len(commits), self._commits)
        content = self._env.run_git("show", f"{pull['head']['sha']}:{name}.txt")
        self._check_count(f"{name}: lines", content.count("\n"), self._commits)
        await self._audit_task(name, issue)

    async def _audit_task(self, name: str, issue: int) -> None:
        line = await self._env.read_models.find_task(IssueRef(REPO, issue))
        if line is None or line.task.state != "done" or line.waiting:
            self._losses.append(
                f"{name} is {line.task.state} ({line.task.reason})"
                if line
                else f"{name} is unknown"
            )
        else:
            self._audit.done += 1


def _parse_issue_number(pull: dict[str, Any]) -> int:
    return int(pull["body"].split("Closes #", 1)[1].split(",", 1)[0])


async def _list_all_rows(env: Cluster, path: str) -> list[dict[str, Any]]:
    """Return the rows of all pages of a list."""
    rows: list[dict[str, Any]] = []
    while page := await env.alice.send_request(
        "GET", f"{path}&per_page=100&page={len(rows) // 100 + 1}"
    ):
        rows += page
        if len(page) < 100:
            break
    return rows


def count_model_requests(vendors: Vendors) -> tuple[int, int]:
    """Return the number of model requests, and how many of them are equal to an earlier one. The
    probes of the workers, which ask a model once whether it calls tools, are not counted."""
    transcripts = [
        json.dumps(request.body["messages"], sort_keys=True) for request in vendors.requests
    ]
    counts = Counter(
        transcript for transcript in transcripts if "Call the tool `ready`" not in transcript
    )
    return counts.total(), counts.total() - len(counts)


async def count_requests(env: Cluster, vendors: Vendors, audit: TaskAudit) -> None:
    """Count the model requests. A request whose answer was lost with its worker must be repeated
    (`cut_off`). A request that was answered must not be repeated."""
    audit.requests, repeated_count = count_model_requests(vendors)
    audit.cut_off = audit.requests - await env.query_scalar(
        select(func.count()).where(StepRow.message["role"].as_string() == "assistant")
    )
    audit.repeated = max(0, repeated_count - audit.cut_off)


@contextlib.asynccontextmanager
async def run_concurrently(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` in the background until the block ends. Raise its errors at the end of the
    block."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def run_tasks(
    env: Cluster, names: Sequence[str], *, at_once: int, has_review: bool = True
) -> list[str]:
    """Run tasks, `at_once` at a time. Return a description of each task that did not end, with all
    unfinished work."""
    semaphore = asyncio.Semaphore(at_once)
    unfinished = list[str]()

    async def run_task(name: str) -> None:
        async with semaphore:
            try:
                await TaskLifecycle(env, name, has_review).run_to_merge()
            except TimeoutError:
                unfinished.append(f"{name} did not end: {await env.describe_unfinished()}")

    async with env.redeliver_periodically(), asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(run_task(name))
    return unfinished


@dataclass
class WorkerKiller:
    """Kills workers, and sometimes the web process, at random moments, and counts the kills."""

    env: Cluster
    rng: random.Random
    pause: tuple[float, float] = (0.5, 2.0)
    max_kills: float = float("inf")
    kills: int = 0

    async def kill_workers(self) -> None:
        """Kill workers until cancelled. Half of the killed workers start again in their own folder;
        new workers replace the others."""
        while self.kills < self.max_kills:
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
    """Freezes one worker at a time until its lease is over, then thaws it, and counts the
    freezes."""

    env: Cluster
    rng: random.Random
    pause: tuple[float, float] = (0.2, 1.5)
    freezes: int = 0

    async def freeze_workers(self) -> None:
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
    """Counts how often a run continued under another lease."""

    env: Cluster
    run_leases: set[tuple[str, int]] = field(default_factory=set)

    async def record_leases(self) -> None:
        """Record the leases of runs until cancelled."""
        while True:
            with contextlib.suppress(SQLAlchemyError):
                async with self.env.engine.connect() as connection:
                    rows = await connection.execute(
                        select(RunRow.name, RunRow.lease).where(RunRow.lease.is_not(None))
                    )
                    self.run_leases.update((name, lease) for name, lease in rows)
            await asyncio.sleep(0.05)

    @property
    def count(self) -> int:
        return len(self.run_leases) - len({name for name, _ in self.run_leases})
