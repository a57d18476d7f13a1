"""Osiris on several machines: a web process and workers that tests kill, stop, freeze and thaw.

Each machine is a process with its own data folder. The machines share a PostgreSQL and a Redis; the
devhub in the test process is their GitHub.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx
import uvloop
import yaml
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from osiris.bootstrap import Parts, Timeouts, build_osiris
from osiris.config.settings import Settings
from osiris.core.ports.models import Message
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from osiris.queue.database import connect
from osiris.queue.read_models import ReadModels
from osiris.queue.tables import (
    InboxRow,
    JournalRow,
    LeaseRow,
    OutboxRow,
    RunRow,
    StepRow,
    TaskRow,
    TurnRow,
)
from osiris.queue.task_store import Store
from osiris.runtime import run_worker, serve
from tests.flow.conftest import FILES, PEOPLE, REPO, get_app_keys, run_plain_git
from tests.forkserver import FORK_CONTEXT

SHORT_TIMEOUTS = Timeouts(pauses=(0.05,), lease=2.0)
"""Short timeouts, so that tests need not wait for a takeover: the lease of a worker that is silent
for two seconds expires."""
DEFAULT_TIMEOUTS = Timeouts(pauses=(0.05,))
"""The timeouts of a real installation, with short pauses between attempts."""

Role = Literal["web", "worker"]
ResultT = TypeVar("ResultT")


def run_process(role: Role, settings: Settings, timeouts: Timeouts, log: Path) -> None:
    """Run a web process or a worker until it is stopped or killed."""
    logging.basicConfig(
        filename=log, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    osiris = build_osiris(settings, Parts(timeouts=timeouts), works=role == "worker")
    uvloop.run(serve(osiris) if role == "web" else run_worker(osiris))


class Machine:
    """A process of Osiris in a data folder. After its end it can be started again in the same
    folder."""

    def __init__(self, role: Role, settings: Settings, timeouts: Timeouts) -> None:
        self.role = role
        self.settings = settings
        self._timeouts = timeouts
        self._process: BaseProcess | None = None
        self.pid = 0

    @property
    def folder(self) -> Path:
        return self.settings.osiris_data_dir

    @property
    def place(self) -> str:
        """The identifier of the data folder; the lease is stored under it."""
        return (self.folder / "place").read_text()

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        self._process = FORK_CONTEXT.Process(
            target=run_process,
            args=(self.role, self.settings, self._timeouts, self.log),
            daemon=True,
        )
        self._process.start()
        self.pid = self._process.pid or 0

    def send_signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            os.kill(self.pid, number)

    def freeze(self) -> None:
        self.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        self.send_signal(signal.SIGKILL)
        self._wait_for_exit()

    def restart(self) -> None:
        """Send SIGKILL, and start again in the same folder."""
        self.kill()
        self.start()

    async def stop(self) -> tuple[int | None, float]:
        """Send SIGTERM. Return the exit code and the seconds that the process took to end."""
        began = time.monotonic()
        self.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(self._wait_for_exit)
        return code, time.monotonic() - began

    def _wait_for_exit(self) -> int | None:
        """Wait until the process has ended. Return the exit code; None if the process runs on."""
        if (process := self._process) is None:
            return None
        process.join(20)
        if (code := process.exitcode) is not None:
            process.close()
            self._process = None
        return code


@dataclass(kw_only=True)
class Cluster:
    """The environment, the machines in it, and access to the database."""

    playground: Environment
    web: Machine
    engine: AsyncEngine
    store: Store
    read_models: ReadModels
    alice: Person
    bob: Person
    timeouts: Timeouts
    workers: list[Machine] = field(default_factory=list)

    # ── machines ──

    def start_worker(self, **more: Any) -> Machine:
        """Start another worker in an empty data folder; `more` are settings for this worker
        only."""
        folder = self.playground.settings.osiris_data_dir.with_name(f"worker-{len(self.workers)}")
        settings = self.playground.settings.model_copy(update={"osiris_data_dir": folder, **more})
        self.workers.append(machine := Machine("worker", settings, self.timeouts))
        machine.start()
        return machine

    def list_running_workers(self) -> list[Machine]:
        return [machine for machine in self.workers if machine.is_running]

    async def get_lease(self, machine: Machine) -> int | None:
        """Return the number of the lease that a machine holds now, or None."""
        if not (machine.folder / "place").exists():
            return None
        return await self.query_scalar(
            select(LeaseRow.number).where(LeaseRow.place == machine.place)
        )

    async def is_lease_over(self, number: int | None) -> bool:
        """Return whether a lease is over."""
        return (
            await self.query_scalar(select(LeaseRow.number).where(LeaseRow.number == number))
            is None
        )

    async def wait_until_ready(self, *machines: Machine) -> None:
        """Wait until the machines have a lease; without arguments, all workers."""
        for machine in machines or self.workers:
            await wait_until(lambda machine=machine: self.get_lease(machine))

    # ── the database ──

    async def is_healthy(self) -> bool:
        """Return whether the database answers and contains a lease of each running worker."""
        try:
            return all([await self.get_lease(machine) for machine in self.list_running_workers()])
        except SQLAlchemyError:
            return False

    async def query_scalar(self, query: Any) -> Any:
        """Return the first column of the first row of a query."""
        async with self.engine.connect() as connection:
            return await connection.scalar(query)

    async def read_rows(self, *tables: type) -> dict[str, list[Any]]:
        """Return the rows of tables as sorted strings, for comparisons."""
        rows_by_table = {}
        async with self.engine.connect() as connection:
            for table in tables or (TaskRow, RunRow, StepRow, JournalRow, OutboxRow, InboxRow):
                rows = (await connection.execute(select(table.__table__))).all()
                rows_by_table[table.__tablename__] = sorted(map(repr, rows))
        return rows_by_table

    async def describe_task(self, title: str) -> list[str]:
        """Return all rows about the task with this title."""
        task_id = (
            select(TaskRow.id).where(TaskRow.data["title"].as_string() == title).scalar_subquery()
        )
        queries = (
            select(TaskRow.__table__).where(TaskRow.id == task_id),
            select(JournalRow.at, JournalRow.kind, JournalRow.what, JournalRow.detail)
            .where(JournalRow.task_id == task_id)
            .order_by(JournalRow.seq),
            select(RunRow.__table__).where(RunRow.task_id == task_id),
            select(StepRow.__table__)
            .join(RunRow, RunRow.name == StepRow.run)
            .where(RunRow.task_id == task_id)
            .order_by(StepRow.run, StepRow.seq),
        )
        async with self.engine.connect() as connection:
            return [str(row) for query in queries for row in await connection.execute(query)]

    async def describe_unfinished(self) -> list[str]:
        """Return all rows of unfinished work: waiting rows, open tasks, runs, locks and leases."""
        queries = (
            select(
                InboxRow.id, InboxRow.kind, InboxRow.attempts, InboxRow.not_before, InboxRow.error
            ).where(InboxRow.not_before.is_not(None) | InboxRow.error.is_not(None)),
            select(OutboxRow.__table__).where(OutboxRow.done.is_(None)),
            select(TaskRow.id, TaskRow.issue, TaskRow.state, TaskRow.lease).where(
                TaskRow.state != "done"
            ),
            select(RunRow.__table__).where(RunRow.ended.is_(None)),
            select(TurnRow.__table__),
            select(LeaseRow.__table__),
        )
        async with self.engine.connect() as connection:
            return [f"now {time.time()}"] + [
                str(row) for query in queries for row in await connection.execute(query)
            ]

    async def wait_until_settled(self) -> None:
        """Wait until no work is in progress. Redeliver failed deliveries."""
        while True:
            await self.playground.wait_until_settled(self.store)
            if not self.redeliver_failed():
                return

    def redeliver_failed(self) -> int:
        """Redeliver failed deliveries, as the GitHub API allows. Return their number."""
        deliveries = [
            delivery
            for app in self.playground.hub.world.apps.values()
            for delivery in app.deliveries
        ]
        last_deliveries = {delivery.guid: delivery for delivery in deliveries}
        failed_deliveries = [
            delivery
            for delivery in last_deliveries.values()
            if delivery.delivered is not None and not 200 <= delivery.status_code < 300
        ]
        for delivery in failed_deliveries:
            self.playground.hub.hooks.redeliver(delivery)
        return len(failed_deliveries)

    @contextlib.asynccontextmanager
    async def redeliver_periodically(self) -> AsyncIterator[None]:
        """Redeliver failed deliveries every second until the block ends."""

        async def redeliver_every_second() -> None:
            while True:
                await asyncio.sleep(1)
                self.redeliver_failed()

        redelivery_task = asyncio.create_task(redeliver_every_second())
        try:
            yield
        finally:
            redelivery_task.cancel()

    async def read_transcript(self, task: int = 1) -> list[Message]:
        """Return all messages of a task, in order."""
        return [step.message for step in await self.read_models.list_steps(task)]

    async def wait_for_replies(self, count: int) -> None:
        """Wait until the model has replied `count` times in the first task and the calls of its
        last reply are being executed."""

        async def has_replied() -> bool:
            transcript = await self.read_transcript()
            roles = [message.role for message in transcript]
            return roles.count("assistant") >= count and roles[-1] == "assistant"

        await wait_until(has_replied)

    # ── what people see ──

    def run_git(self, *args: str) -> str:
        """Run git in devhub's own repository, and return its output."""
        path = self.playground.settings.osiris_data_dir.parent / "hub/repos" / f"{REPO}.git"
        return run_plain_git("--git-dir", str(path), *args)

    async def file_labelled_issue(
        self, title: str = "add subtracts", body: str = "add(1, 2) is -1"
    ) -> int:
        issue = await self.alice.file_issue(title, body)
        await self.alice.add_label(issue)
        return issue

    async def read_pull_files(self) -> dict[str, str]:
        """Return the content of each file that the only pull request adds or changes."""
        [pull] = await self.alice.list_pulls()
        changed_files = await self.alice.send_request("GET", f"/pulls/{pull['number']}/files")
        return {
            f["filename"]: self.run_git("show", f"{pull['head']['sha']}:{f['filename']}")
            for f in changed_files
        }

    async def read_github(self) -> dict[str, Any]:
        """Return all that people see on GitHub."""
        issues = await self.alice.send_request("GET", "/issues?state=all&per_page=100")
        pulls = await self.alice.list_pulls()
        heads = sorted({pull["head"]["sha"] for pull in pulls})
        return {
            "issues": [(i["number"], i["state"], i["title"], i["body"]) for i in issues],
            "pulls": [
                (p["number"], p["state"], p["draft"], p["head"]["sha"], p["body"]) for p in pulls
            ],
            "comments": {i["number"]: await self._read_comments(i["number"]) for i in issues},
            "checks": {head: await self._read_check_runs(head) for head in heads},
            "refs": sorted(
                self.run_git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
            ),
        }

    async def _read_comments(self, number: int) -> list[tuple[Any, ...]]:
        return [
            (c["id"], c["updated_at"], c["body"]) for c in await self.alice.list_comments(number)
        ]

    async def _read_check_runs(self, head: str) -> list[tuple[Any, ...]]:
        response = await self.alice.send_request("GET", f"/commits/{head}/check-runs")
        return [(run["id"], run["status"], run["conclusion"]) for run in response["check_runs"]]


@dataclass(frozen=True)
class Snapshot:
    """The content of GitHub and of the database at one moment."""

    github: Mapping[str, Any]
    database: Mapping[str, Any]

    @classmethod
    async def create(cls, env: Cluster) -> "Snapshot":
        return cls(await env.read_github(), await env.read_rows())

    def find_changes(self, later: "Snapshot") -> dict[str, tuple[Any, Any]]:
        """Return what differs in a later snapshot: the old and the new value by name."""
        previous = {**self.github, **self.database}
        current = {**later.github, **later.database}
        return {
            name: _diff_values(previous[name], current[name])
            for name in previous
            if previous[name] != current[name]
        }


def _diff_values(previous: Any, current: Any) -> tuple[Any, Any]:
    if not (isinstance(previous, list) and isinstance(current, list)):
        return previous, current
    return [row for row in previous if row not in current], [
        row for row in current if row not in previous
    ]


async def wait_until(
    condition: Callable[[], Awaitable[ResultT | None]], *, within: float = 30.0, every: float = 0.01
) -> ResultT:
    """Wait until `condition` returns a true value, and return that value. Raise a TimeoutError with
    the name of the condition after `within` seconds."""
    try:
        async with asyncio.timeout(within):
            while not (result := await condition()):
                await asyncio.sleep(every)
            return result
    except TimeoutError:
        raise TimeoutError(
            f"`{condition.__qualname__}` was not seen within {within:.0f} s"
        ) from None


@contextlib.asynccontextmanager
async def start_cluster(
    folder: Path,
    pair: Mapping[str, Any],
    script: dict[str, Any],
    *,
    timeouts: Timeouts = SHORT_TIMEOUTS,
    workers: int = 1,
    model: Mapping[str, str] | None = None,
    files: Mapping[str, Any] | None = None,
) -> AsyncIterator[Cluster]:
    """Start a web process and workers. All of them have ended when the block ends."""
    script_file = folder / "script.yml"
    script_file.write_text(yaml.safe_dump(script))
    more = {**pair, **(model or {"osiris_model": f"scripted:{script_file}"})}
    async with start_environment(
        folder, repo=REPO, files=files or FILES, people=PEOPLE, keys=get_app_keys(), more=more
    ) as playground:
        engine = connect(playground.settings.database)
        async with playground.get_person("alice") as alice, playground.get_person("bob") as bob:
            env = Cluster(
                playground=playground,
                web=Machine("web", playground.settings, timeouts),
                engine=engine,
                store=Store(engine),
                read_models=ReadModels(engine),
                alice=alice,
                bob=bob,
                timeouts=timeouts,
            )
            env.web.start()
            try:
                await wait_until(lambda: is_up(playground))
                for _ in range(workers):
                    env.start_worker()
                await env.wait_until_ready()
                yield env
            finally:
                for machine in (env.web, *env.workers):
                    machine.kill()
                await env.store.close()


async def is_up(playground: Environment) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            return (
                await http.get(f"http://127.0.0.1:{playground.settings.osiris_port}/healthz")
            ).is_success
        except httpx.TransportError:
            return False
