"""The cost of an agent step in addition to the model and the command, early and late in a run."""

import asyncio
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

from bench.process import BENCH_FOLDER, BUILD_FOLDER, create_bench_folder, run_checked, run_json_job
from bench.row import BenchmarkRow, Threshold
from osiris.agents import briefing
from osiris.agents.runner import RunDependencies, Runner, run_name
from osiris.bootstrap import Osiris, build_osiris
from osiris.bot.git.repositories import HostRepositories
from osiris.config.settings import Settings
from osiris.core.effects import Purpose, StartRun
from osiris.core.errors import Refused
from osiris.core.events import Actor, IssueRef, Role, RunFailed, TaskRequested
from osiris.core.policy import Policy
from osiris.core.ports.models import (
    LanguageModel,
    Message,
    OnDelta,
    ToolCall,
    ToolSpec,
    ignore_deltas,
)
from osiris.core.ports.repositories import Checkout, Instructions
from osiris.data_folder import prepare_storage
from osiris.queue.leases import INBOX
from osiris.queue.locks import NamedLocks
from osiris.tools.toolbox import SessionTools

MINI_REQUIREMENT = "mini-swe-agent==2.4.6"
REPO = "acme/shop"
_STEPS = (50, 200)
_STEPS_AROUND = 5  # steps before and after a step that count for it
_NOISE = 1.05


class InstantModel:
    """A model that answers at once. `durations` are the times between its answers and the next
    requests."""

    is_priced = True

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._answered_at = 0.0
        self.durations: list[float] = []

    async def select(self, model: str) -> LanguageModel:
        return self

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        if self._answered_at:
            self.durations.append(time.perf_counter() - self._answered_at)
        is_last = len(self.durations) == self._steps
        call = (
            ("submit", {"summary": "Nothing."}) if is_last else ("run_command", {"command": "true"})
        )
        answer = ToolCall(id=f"call-{len(self.durations)}", name=call[0], args=call[1])
        self._answered_at = time.perf_counter()
        return Message(role="assistant", text="On with it.", calls=(answer,))


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Each round is a run of Osiris and one of mini-swe-agent; between them, the bare command is
    measured."""
    python = await asyncio.to_thread(install_mini)
    ours: dict[int, list[list[float]]] = {step: [] for step in _STEPS}
    theirs: dict[int, list[list[float]]] = {step: [] for step in _STEPS}
    command_seconds = []
    with create_bench_folder() as folder:
        benchmark = await RunBenchmark.create(folder)
        for number in range(1, (2 if quick else 5) + 1):
            command_seconds.append(command := await asyncio.to_thread(_measure_command))
            order = build_order(number)
            durations = await benchmark.run_order(order)
            mini_durations = await _run_mini(python, folder, order)
            for step in _STEPS:
                window = slice(step - 1 - _STEPS_AROUND, step + _STEPS_AROUND)
                ours[step].append([(duration - command) * 1e3 for duration in durations[window]])
                theirs[step].append(
                    [(duration - command) * 1e3 for duration in mini_durations[window]]
                )
        await benchmark.osiris.store.close()
    early_median = statistics.median(statistics.median(samples) for samples in ours[_STEPS[0]])
    targets = {
        _STEPS[0]: Threshold(p50=12),
        _STEPS[1]: Threshold(p50=round(min(12, early_median * _NOISE), 2)),
    }
    note = (
        f"a step minus a bare `bash -c true` ({statistics.median(command_seconds) * 1e3:.1f} ms)"
        " on both sides; the model answers at once, so that the next jail's set-up, which else"
        " happens while it thinks, counts in full"
    )
    return [
        BenchmarkRow(
            name=f"step-{step}",
            what=f"one agent step's own cost, at step {step}",
            unit="ms",
            ours=ours[step],
            other="mini-swe-agent 2.4.6, bubblewrap, trajectory file",
            theirs=theirs[step],
            target=targets[step],
            note=(
                note
                if step == _STEPS[0]
                else f"the target is step {_STEPS[0]}'s figure and 5 % for noise, at most 12"
            ),
        )
        for step in _STEPS
    ]


def install_mini() -> Path:
    """Return the Python of an environment with mini-swe-agent, and create the environment first if
    it is missing."""
    folder = BUILD_FOLDER / "mini"
    python = folder / "bin/python"
    marker = folder / f".{MINI_REQUIREMENT}"
    if not marker.exists():
        BUILD_FOLDER.mkdir(parents=True, exist_ok=True)
        run_checked(
            [
                find_uv_bin(),
                "venv",
                "--quiet",
                "--no-project",
                "--clear",
                "--python",
                "/usr/bin/python3",
                folder,
            ]
        )
        run_checked(
            [find_uv_bin(), "pip", "install", "--quiet", "--python", folder, MINI_REQUIREMENT]
        )
        marker.touch()
    return python


def _measure_command() -> float:
    """Return the seconds of the command outside of a sandbox: the median of 40."""
    seconds = []
    for _ in range(40):
        began = time.perf_counter()
        subprocess.run(
            ["/bin/bash", "-c", "true"],
            env={},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        )
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def build_order(number: int) -> StartRun:
    issue = IssueRef(REPO, 1)
    purpose = Purpose.BUILD
    return StartRun(
        issue=issue,
        run=number,
        purpose=purpose,
        title="Look",
        body="Only look.",
        reviews=(),
        branch="look",
        steps=1000,
        minutes=60,
    )


class RunBenchmark:
    """Runs of Osiris in which only the model is not real. Each run gets a new runner."""

    def __init__(self, osiris: Osiris, repositories: HostRepositories, checkout: Checkout) -> None:
        self.osiris = osiris
        self._repositories = repositories
        self._checkout = checkout

    @classmethod
    async def create(cls, folder: Path) -> "RunBenchmark":
        """Prepare a database on SQLite, the sandbox, the mirror, and a task."""
        settings = Settings(osiris_data_dir=folder / "osiris", osiris_sandbox="weak")
        await prepare_storage(settings, (osiris := build_osiris(settings)).engine)
        repositories = HostRepositories(settings.osiris_data_dir / "git")
        await repositories.prepare_repository(REPO)
        commit = await asyncio.to_thread(_push_commit, folder, repositories.mirror_path(REPO))
        actor = Actor("alice", Role.ADMIN)
        request = TaskRequested(
            issue=IssueRef(REPO, 1), actor=actor, title="Look", body="Only look."
        )
        await osiris.lease.acquire()
        await NamedLocks(osiris.engine, osiris.lease).acquire(INBOX)
        await osiris.inbox.accept_fact("bench", request)
        [row] = await osiris.store.list_due(1)
        await osiris.store.decide(row.id, request, Policy())
        return cls(osiris, repositories, Checkout(commit=commit, trusted=commit))

    async def run_order(self, order: StartRun) -> list[float]:
        """Return the seconds of each step."""
        model = InstantModel(_STEPS[-1] + _STEPS_AROUND)
        runner = Runner(
            select_model=model.select,
            dependencies=RunDependencies(
                sandbox=self.osiris.sandbox, tools=SessionTools, repositories=self._repositories
            ),
            transcripts=self.osiris.transcripts,
            inbox=self.osiris.inbox,
            live_events=self.osiris.live_events,
        )
        fact = await runner.run(order, self._checkout, Policy())
        await runner.stop_run(order.issue, order.run)
        if not isinstance(fact, RunFailed) or "changed no file" not in fact.reason:
            raise Refused(f"the run did not end as it should: {fact}")
        stored = await self.osiris.transcripts.load_messages(run_name(order.issue, order.run))
        codes = [message.ran.exit_code for message in stored if message.ran]
        if codes != [0] * len(model.durations):
            raise Refused(f"{len(codes)} commands of {len(model.durations)} are in the database")
        return model.durations


async def _run_mini(python: Path, folder: Path, order: StartRun) -> list[float]:
    system, user = (
        message.text for message in briefing.build_messages(order, Instructions(texts={}))
    )
    job = {
        "place": str(folder),
        "steps": _STEPS[-1] + _STEPS_AROUND,
        "system": system,
        "brief": user,
    }
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "MSWEA_SILENT_STARTUP": "1"}
    result = await run_json_job([str(python), str(BENCH_FOLDER / "mini_side.py")], job, env)
    if result["codes"] != [0]:
        raise Refused(f"mini-swe-agent's commands ended with {result['codes']}")
    return [float(duration) for duration in result["took"]]


def _push_commit(folder: Path, mirror: Path) -> str:
    work = folder / "seed"
    run_checked(["git", "init", "-q", work])
    (work / "README.md").write_text("shop\n")
    identity = ["-c", "user.name=alice", "-c", "user.email=alice@example.org"]
    run_checked(["git", "-C", work, "add", "-A"])
    run_checked(["git", "-C", work, *identity, "commit", "-qm", "Begin"])
    run_checked(["git", "-C", work, "push", "-q", mirror, "HEAD:refs/heads/main"])
    return run_checked(["git", "-C", work, "rev-parse", "HEAD"]).strip()
