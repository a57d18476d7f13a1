"""Row 4: what one agent step costs beyond the model and the command, early and late in a run."""

import asyncio
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

from bench.process import BUILD, HERE, a_place, run_checked, run_json_job
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
from osiris.core.ports.repositories import Checkout
from osiris.data_folder import prepare_storage
from osiris.queue.leases import INBOX
from osiris.queue.locks import NamedLocks
from osiris.tools.toolbox import SessionTools

MINI = "mini-swe-agent==2.4.6"
REPO = "acme/shop"
_PLACES = (50, 200)
_AROUND = 5  # steps before and after a place that count for it
_NOISE = 1.05


class Scripted:
    """A model that answers at once; `spans` is the time between an answer of its and the next
    question."""

    is_priced = True

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._left = 0.0
        self.spans: list[float] = []

    async def select(self, model: str) -> LanguageModel:
        return self

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        if self._left:
            self.spans.append(time.perf_counter() - self._left)
        is_last = len(self.spans) == self._steps
        call = (
            ("submit", {"summary": "Nothing."}) if is_last else ("run_command", {"command": "true"})
        )
        answer = ToolCall(id=f"call-{len(self.spans)}", name=call[0], args=call[1])
        self._left = time.perf_counter()
        return Message(role="assistant", text="On with it.", calls=(answer,))


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Each round is a run of ours and one of mini-swe-agent, with the bare command measured in
    between."""
    python = await asyncio.to_thread(mini)
    ours: dict[int, list[list[float]]] = {at: [] for at in _PLACES}
    theirs: dict[int, list[list[float]]] = {at: [] for at in _PLACES}
    bare = []
    with a_place() as place:
        bench = await Bench.at(place)
        for number in range(1, (2 if quick else 5) + 1):
            bare.append(command := await asyncio.to_thread(_command))
            order = order_of(number)
            spans = await bench.run(order)
            other = await _their_run(python, place, order)
            for at in _PLACES:
                around = slice(at - 1 - _AROUND, at + _AROUND)
                ours[at].append([(span - command) * 1e3 for span in spans[around]])
                theirs[at].append([(span - command) * 1e3 for span in other[around]])
        await bench.osiris.store.close()
    early = statistics.median(statistics.median(samples) for samples in ours[_PLACES[0]])
    targets = {
        _PLACES[0]: Threshold(p50=12),
        _PLACES[1]: Threshold(p50=round(min(12, early * _NOISE), 2)),
    }
    note = (
        f"a step minus a bare `bash -c true` ({statistics.median(bare) * 1e3:.1f} ms) on both"
        " sides; the model answers at once, so that the next jail's set-up, which else happens"
        " while it thinks, counts in full"
    )
    return [
        BenchmarkRow(
            name=f"step-{at}",
            what=f"one agent step's own cost, at step {at}",
            unit="ms",
            ours=ours[at],
            other="mini-swe-agent 2.4.6, bubblewrap, trajectory file",
            theirs=theirs[at],
            target=targets[at],
            note=(
                note
                if at == _PLACES[0]
                else f"the target is step {_PLACES[0]}'s figure and 5 % for noise, at most 12"
            ),
        )
        for at in _PLACES
    ]


def mini() -> Path:
    """The python of an environment with mini-swe-agent, made when it is not there yet."""
    place = BUILD / "mini"
    python = place / "bin/python"
    marker = place / f".{MINI}"
    if not marker.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        run_checked(
            [
                find_uv_bin(),
                "venv",
                "--quiet",
                "--no-project",
                "--clear",
                "--python",
                "/usr/bin/python3",
                place,
            ]
        )
        run_checked([find_uv_bin(), "pip", "install", "--quiet", "--python", place, MINI])
        marker.touch()
    return python


def _command() -> float:
    """The command itself, outside any sandbox: the median of 40."""
    took = []
    for _ in range(40):
        began = time.perf_counter()
        subprocess.run(
            ["/bin/bash", "-c", "true"],
            env={},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=True,
        )
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def order_of(number: int) -> StartRun:
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


class Bench:
    """A run of ours with everything real but the model; the runner gets a new one each time."""

    def __init__(self, osiris: Osiris, repositories: HostRepositories, checkout: Checkout) -> None:
        self.osiris = osiris
        self._repositories = repositories
        self._checkout = checkout

    @classmethod
    async def at(cls, place: Path) -> "Bench":
        """The database on SQLite, the sandbox, the mirror, and a task to run on."""
        settings = Settings(osiris_data_dir=place / "osiris", osiris_sandbox="weak")
        await prepare_storage(settings, (osiris := build_osiris(settings)).engine)
        repositories = HostRepositories(settings.osiris_data_dir / "git")
        await repositories.prepare_repository(REPO)
        commit = await asyncio.to_thread(_commit, place, repositories.mirror_path(REPO))
        actor = Actor("alice", Role.ADMIN)
        asked = TaskRequested(issue=IssueRef(REPO, 1), actor=actor, title="Look", body="Only look.")
        await osiris.lease.acquire()
        await NamedLocks(osiris.engine, osiris.lease).acquire(INBOX)
        await osiris.inbox.accept_fact("bench", asked)
        [row] = await osiris.store.list_due(1)
        await osiris.store.decide(row.id, asked, Policy())
        return cls(osiris, repositories, Checkout(commit=commit, trusted=commit))

    async def run(self, order: StartRun) -> list[float]:
        """The seconds of each step."""
        model = Scripted(_PLACES[-1] + _AROUND)
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
        if codes != [0] * len(model.spans):
            raise Refused(f"{len(codes)} commands of {len(model.spans)} are in the database")
        return model.spans


async def _their_run(python: Path, place: Path, order: StartRun) -> list[float]:
    system, user = (message.text for message in briefing.build_messages(order, {}))
    job = {"place": str(place), "steps": _PLACES[-1] + _AROUND, "system": system, "brief": user}
    env = {"PATH": "/usr/bin:/bin", "HOME": str(place), "MSWEA_SILENT_STARTUP": "1"}
    result = await run_json_job([str(python), str(HERE / "mini_side.py")], job, env)
    if result["codes"] != [0]:
        raise Refused(f"mini-swe-agent's commands ended with {result['codes']}")
    return [float(span) for span in result["took"]]


def _commit(place: Path, mirror: Path) -> str:
    work = place / "seed"
    run_checked(["git", "init", "-q", work])
    (work / "README.md").write_text("shop\n")
    who = ["-c", "user.name=alice", "-c", "user.email=alice@example.org"]
    run_checked(["git", "-C", work, "add", "-A"])
    run_checked(["git", "-C", work, *who, "commit", "-qm", "Begin"])
    run_checked(["git", "-C", work, "push", "-q", mirror, "HEAD:refs/heads/main"])
    return run_checked(["git", "-C", work, "rev-parse", "HEAD"]).strip()
