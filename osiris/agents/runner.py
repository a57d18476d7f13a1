"""One run of an agent on one task: brief in, fact out. It holds no GitHub credential and cannot
reach one."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from osiris.agents import briefing
from osiris.agents.budget import Budget
from osiris.agents.checkpoints import (
    Checkpoints,
    RunLocation,
    is_difference_notice,
    relocation_notice,
    replay_calls,
)
from osiris.agents.command_totals import MOST_SUMMARY, bound_commands, bound_prepared
from osiris.agents.loop import ModelSelector, TranscriptRecorder, run_agent
from osiris.config import copilot_setup
from osiris.core import events as e
from osiris.core.bounded_dict import BoundedDict
from osiris.core.effects import Purpose, StartRun
from osiris.core.errors import Refused
from osiris.core.policy import Policy
from osiris.core.ports.live import LiveEvents
from osiris.core.ports.models import (
    GaveUp,
    Halted,
    Message,
    Outcome,
    SelectModel,
    SpentBudget,
    Submitted,
    Toolbox,
)
from osiris.core.ports.repositories import Checkout, CheckpointStorage, Repositories
from osiris.core.ports.sandbox import Plan, Sandbox, SandboxLimits, Session, Setup
from osiris.core.ports.storage import Inbox, Transcripts
from osiris.core.sanitize import cut_text

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 1_000  # runs that were stopped, or had a model chosen, before they began


@dataclass(frozen=True, slots=True, kw_only=True)
class _ActiveRun:
    """What belongs together while one run is under way."""

    name: str
    order: StartRun
    base: str
    instructions: Mapping[str, str]
    session: Session
    toolbox: Toolbox
    recorder: TranscriptRecorder
    budget: Budget
    checkpoints: Checkpoints
    notice: Message | None

    async def save_checkpoint(self) -> None:
        await self.checkpoints.save_if_due(self.session, self.recorder)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDependencies:
    """What runs work with. Without a `vault` a run can go on only on this machine, or from its
    begin."""

    sandbox: Sandbox
    tools: Callable[[Session], Toolbox]
    repositories: Repositories
    storage: CheckpointStorage | None = None
    limits: SandboxLimits = field(default_factory=SandboxLimits)


class Runner:
    """Runs agents, at most one for an issue at a time."""

    def __init__(
        self,
        *,
        select_model: SelectModel,
        dependencies: RunDependencies,
        transcripts: Transcripts,
        inbox: Inbox,
        live_events: LiveEvents,
    ) -> None:
        self._select_model = select_model
        self._sandbox = dependencies.sandbox
        self._tools = dependencies.tools
        self._repositories = dependencies.repositories
        self._storage = dependencies.storage
        self._limits = dependencies.limits
        self._transcripts = transcripts
        self._inbox = inbox
        self._live_events = live_events
        self._under_way: dict[str, asyncio.Task[e.RunFact]] = {}
        self._selectors: dict[str, ModelSelector] = {}
        self._chosen_models = BoundedDict[str, str](_MOST_REMEMBERED)
        self._stopped = BoundedDict[str, None](_MOST_REMEMBERED)
        self._held: set[str] = set()

    async def announce_run(self, order: StartRun) -> None:
        """Say that the run begins, once."""
        fact = e.RunStarted(issue=order.issue, run=order.run)
        await self._inbox.accept_fact(
            f"{run_name(order.issue, order.run)}/started/{order.steps}", fact
        )

    async def run(self, order: StartRun, checkout: Checkout, policy: Policy) -> e.RunFact | None:
        """Let an agent work until its run ends; None when it was stopped. Raises Refused or
        Unavailable.

        When the worker itself is cancelled the run is not over: the same order resumes it.
        """
        name = run_name(order.issue, order.run)
        if name in self._stopped:  # while its checkout was made
            return None
        self._selectors[name] = mind = ModelSelector(
            self._select_model, self._chosen_models.pop(name, order.model)
        )
        self._under_way[name] = job = asyncio.create_task(
            self._run_to_end(name, order, checkout, policy, mind)
        )
        try:
            return await job
        except asyncio.CancelledError:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            if name in self._stopped:
                await self._sandbox.remove(name)
                await self._transcripts.end_run(name, "stopped")
            elif name not in self._held:
                raise
            return None
        finally:
            del self._under_way[name], self._selectors[name]
            self._held.discard(name)

    def switch_model(self, issue: e.IssueRef, run: int, model: str) -> None:
        """Let another model think in a run from its next step on, or from its begin if it has not
        begun."""
        if mind := self._selectors.get(name := run_name(issue, run)):
            mind.switch_model(model)
        else:
            self._chosen_models[name] = model

    async def stop_run(self, issue: e.IssueRef, run: int, *, keep: bool = False) -> None:
        """End a run, under way or not, and remove its workspace; with `keep` only cut it off: it
        can go on later."""
        name = run_name(issue, run)
        job = self._under_way.get(name)
        if keep:
            if job is not None:
                self._held.add(name)
                job.cancel()
            return
        self._stopped[name] = None  # a run number is never used again
        if job is not None:
            job.cancel()
        else:
            await self._sandbox.remove(name)
            await self._transcripts.end_run(name, "over")

    async def _run_to_end(
        self,
        name: str,
        order: StartRun,
        checkout: Checkout,
        policy: Policy,
        selector: ModelSelector,
    ) -> e.RunFact:
        run = await self._open_run(name, order, checkout, policy)
        try:
            outcome = await run_agent(
                selector,
                run.toolbox,
                run.recorder,
                run.budget,
                after_step=run.save_checkpoint,
                notice=run.notice,
            )
            fact = await self._create_fact(run, outcome, policy.deny)
        except Refused as refused:
            fact = e.RunFailed(issue=order.issue, run=order.run, reason=str(refused))
        except asyncio.CancelledError:
            if name not in self._stopped:
                await run.checkpoints.save_on_shutdown(run.session, run.recorder)
            raise
        # the workspace stays until the fact is recorded: a crash before that comes back to it
        return fact

    async def _plan_session(self, repo: str, checkout: Checkout, policy: Policy) -> Plan:
        """The workspace of a run: what gets it ready stands on the base branch, where people put
        it."""
        commands = policy.setup
        if commands is None:
            text = await self._repositories.read_file(repo, checkout.trusted, copilot_setup.PATH)
            commands = await asyncio.to_thread(copilot_setup.parse_steps, text)
        setup = None
        if commands:
            key = await self._repositories.fingerprint_packages(repo, checkout.trusted)
            setup = Setup(commands=commands, hosts=policy.setup_hosts, key=key)
        return Plan(
            repo=repo,
            base=checkout.commit,
            trusted=checkout.trusted,
            setup=setup,
            hosts=policy.agent_hosts,
            limits=self._limits,
        )

    async def _open_run(
        self, name: str, order: StartRun, checkout: Checkout, policy: Policy
    ) -> _ActiveRun:
        begun = await self._transcripts.begin_run(name, order.issue, order.purpose, checkout.commit)
        place = RunLocation(
            repo=order.issue.repo, ref=f"{order.issue.number}-{order.run}", run=name
        )
        shelf = Checkpoints(place, self._storage, self._repositories, self._transcripts)
        session, redo = await shelf.open_session(
            self._sandbox, begun, await self._plan_session(order.issue.repo, checkout, policy)
        )
        toolbox = self._tools(session)
        instructions = await self._repositories.read_instructions(
            order.issue.repo, checkout.trusted
        )
        budget = Budget(
            steps=order.steps, minutes=order.minutes, usd=order.usd, spent_seconds=begun.seconds
        )
        tape = TranscriptRecorder(
            name,
            self._transcripts,
            await self._transcripts.load_messages(name),
            budget,
            self._live_events,
        )
        news = None
        if redo is not None and tape.messages:
            news = relocation_notice(
                await replay_calls(toolbox, tape.messages, redo), restored=redo > 0
            )
        await session.seal()  # not before: what was done again in part must not pass for the whole
        for message in briefing.build_messages(order, instructions)[len(tape.messages) :]:
            await tape.append(message)
        return _ActiveRun(
            name=name,
            order=order,
            base=begun.base,
            instructions=instructions,
            session=session,
            toolbox=toolbox,
            recorder=tape,
            budget=budget,
            checkpoints=shelf,
            notice=news,
        )

    async def _create_fact(
        self, run: _ActiveRun, outcome: Outcome, deny: Sequence[str]
    ) -> e.RunFact:
        issue, number = run.order.issue, run.order.run
        match outcome:
            case Submitted(summary=summary):
                return await self._import_submission(run, summary, deny)
            case SpentBudget(reason=reason):
                return e.BudgetSpent(issue=issue, run=number, reason=reason)
            case GaveUp(reason=reason):
                return e.RunFailed(issue=issue, run=number, reason=reason)
            case Halted(reason=reason):
                return e.RunHalted(issue=issue, run=number, reason=reason)

    async def _import_submission(
        self, run: _ActiveRun, summary: str, deny: Sequence[str]
    ) -> e.RunFact:
        issue, number = run.order.issue, run.order.run
        export = await run.session.export(run.base)
        with export.pack:
            taken = await self._repositories.import_pack(issue.repo, run.base, export, deny)
        await self._save_checkpoint(run, taken.tree)
        if not taken.files and run.order.purpose is Purpose.REVISE:
            return e.NothingToChange(issue=issue, run=number, summary=summary)
        if not taken.files:
            reason = f"the agent changed no file; it said: {summary}"
            return e.RunFailed(issue=issue, run=number, reason=reason)
        ran = bound_commands([message.ran for message in run.recorder.messages if message.ran])
        work = e.Work(
            summary=cut_text(summary, MOST_SUMMARY),
            files=taken.files,
            commands=ran.commands,
            earlier=ran.earlier,
            blocked=ran.blocked,
            more_blocked=ran.more_blocked,
            edited_last=_edited_last(run.recorder.messages),
            instructions=tuple(run.instructions),
            model=", ".join(dict.fromkeys(reply.model for reply in run.recorder.replies)),
            steps=len(run.recorder.replies),
            seconds=run.budget.seconds,
            usage=run.recorder.usage,
            prepared=bound_prepared(run.session.prepared),
        )
        at = int(time.time())
        return e.PatchReady(
            issue=issue, run=number, tree=taken.tree, base=run.base, at=at, work=work
        )

    async def _save_checkpoint(self, run: _ActiveRun, tree: str) -> None:
        """What is handed in may be pushed by another machine, or this one may be gone by then."""
        try:
            await run.checkpoints.save_tree(tree, len(run.recorder.messages))
        except Refused as refused:
            log.warning("the work of %s could not be put away: %s", run.name, refused)


def run_name(issue: e.IssueRef, run: int) -> str:
    """The name of a run, of its transcript and of its session."""
    return f"{issue.repo.replace('/', '.')}-{issue.number}-{run}"


def _edited_last(messages: Sequence[Message]) -> bool:
    """Whether a file was changed after the last command ran, or a command had another end when it
    was run again."""
    answers = {message.call: message for message in messages if message.role == "tool"}
    for message in reversed(messages):
        if is_difference_notice(message):
            return True
        for call in reversed(message.calls):
            if call.id in answers and answers[call.id].ran:
                return False
            if call.id in answers and call.name in ("write_file", "edit_file"):
                return True
    return False
