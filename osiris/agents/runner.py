"""One run of an agent on one task: it takes a brief and returns a fact.

It has no GitHub credential and no access to one.
"""

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
from osiris.agents.outcomes import create_fact, is_allowed
from osiris.agents.roles import AgentRole, select_role
from osiris.config import copilot_setup
from osiris.core import events as e
from osiris.core.bounded_dict import BoundedDict
from osiris.core.effects import Purpose, StartRun
from osiris.core.errors import Refused
from osiris.core.policy import Policy
from osiris.core.ports.live import LiveEvents
from osiris.core.ports.models import (
    Message,
    Outcome,
    SelectModel,
    Submitted,
    Toolbox,
    ToolSpec,
)
from osiris.core.ports.repositories import Checkout, CheckpointStorage, Repositories
from osiris.core.ports.sandbox import Plan, Sandbox, SandboxLimits, Session, Setup
from osiris.core.ports.storage import Inbox, Transcripts
from osiris.core.sanitize import cut_text
from osiris.core.work import Work

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 1_000  # runs that were stopped, or were given a model, before they began


@dataclass(frozen=True, slots=True, kw_only=True)
class _ActiveRun:
    """The objects of one active run."""

    name: str
    order: StartRun
    role: AgentRole
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
    """The services that runs use.

    Without a `storage`, a run can resume only on this machine, or it starts from its beginning.
    """

    sandbox: Sandbox
    tools: Callable[[Session, Sequence[str]], Toolbox]
    repositories: Repositories
    storage: CheckpointStorage | None = None
    limits: SandboxLimits = field(default_factory=SandboxLimits)


class Runner:
    """A runner of agents, with at most one active run for each issue."""

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
        """Report the start of the run, once."""
        fact = e.RunStarted(issue=order.issue, run=order.run)
        await self._inbox.accept_fact(
            f"{run_name(order.issue, order.run)}/started/{order.steps}", fact
        )

    async def run(self, order: StartRun, checkout: Checkout, policy: Policy) -> e.RunFact | None:
        """Run an agent until its run ends, and return the fact; None when it was stopped.

        Raises Refused or Unavailable. When the worker itself is cancelled, the run is not over: the
        same order resumes it.
        """
        name = run_name(order.issue, order.run)
        if name in self._stopped:  # while its checkout was created
            return None
        self._selectors[name] = selector = ModelSelector(
            self._select_model, self._chosen_models.pop(name, order.model)
        )
        self._under_way[name] = job = asyncio.create_task(
            self._run_to_end(name, order, checkout, policy, selector)
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
        """Use another model from the run's next step on, or from its start if it has not begun."""
        if selector := self._selectors.get(name := run_name(issue, run)):
            selector.switch_model(model)
        else:
            self._chosen_models[name] = model

    async def stop_run(self, issue: e.IssueRef, run: int, *, keep: bool = False) -> None:
        """End a run, active or not, and remove its workspace.

        With `keep` it is only interrupted and can resume later.
        """
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
        # the workspace stays until the fact is recorded: after a crash before that it is used again
        return fact

    async def _plan_session(self, repo: str, checkout: Checkout, policy: Policy) -> Plan:
        """Return the plan of a run's session.

        The setup commands come from the base branch, where people put them.
        """
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
        resumed_run = await self._transcripts.begin_run(
            name, order.issue, order.purpose, checkout.commit
        )
        location = RunLocation(
            repo=order.issue.repo, ref=f"{order.issue.number}-{order.run}", run=name
        )
        checkpoints = Checkpoints(location, self._storage, self._repositories, self._transcripts)
        session, redo = await checkpoints.open_session(
            self._sandbox, resumed_run, await self._plan_session(order.issue.repo, checkout, policy)
        )
        role = select_role(order.purpose)
        toolbox = self._tools(session, role.tools)
        instructions = await self._repositories.read_instructions(
            order.issue.repo, checkout.trusted
        )
        budget = Budget.of_run(order, role.budget_share, spent_seconds=resumed_run.seconds)
        recorder = TranscriptRecorder(
            name,
            self._transcripts,
            await self._transcripts.load_messages(name),
            budget,
            self._live_events,
        )
        notice = None
        if redo is not None and recorder.messages:
            notice = relocation_notice(
                await replay_calls(toolbox, recorder.messages, redo), restored=redo > 0
            )
        await session.seal()  # not earlier: a partial replay must not be taken for a complete one
        for message in briefing.build_messages(order, instructions, role.prompt)[
            len(recorder.messages) :
        ]:
            await recorder.append(message)
        return _ActiveRun(
            name=name,
            order=order,
            role=role,
            base=resumed_run.base,
            instructions=instructions,
            session=session,
            toolbox=toolbox,
            recorder=recorder,
            budget=budget,
            checkpoints=checkpoints,
            notice=notice,
        )

    async def _create_fact(
        self, run: _ActiveRun, outcome: Outcome, deny: Sequence[str]
    ) -> e.RunFact:
        if isinstance(outcome, Submitted) and is_allowed(outcome, run.role):
            return await self._import_submission(run, outcome.summary, deny)
        return create_fact(outcome, run.order, run.role)

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
        work = Work(
            summary=cut_text(summary, MOST_SUMMARY),
            files=taken.files,
            commands=ran.commands,
            earlier=ran.earlier,
            blocked=ran.blocked,
            more_blocked=ran.more_blocked,
            edited_last=_edited_last(run.recorder.messages, run.toolbox.list_tools()),
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
        """Save a checkpoint of the submitted tree: another machine may push it, or this one may be
        gone by then."""
        try:
            await run.checkpoints.save_tree(tree, len(run.recorder.messages))
        except Refused as refused:
            log.warning("the checkpoint of %s could not be saved: %s", run.name, refused)


def run_name(issue: e.IssueRef, run: int) -> str:
    """Return the name of a run, which is also that of its transcript and its session."""
    return f"{issue.repo.replace('/', '.')}-{issue.number}-{run}"


def _edited_last(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> bool:
    """Return whether a file was changed after the last command ran, or a replayed command ended
    with another exit code."""
    editing = {tool.name for tool in tools if tool.edits_files}
    answers = {message.call: message for message in messages if message.role == "tool"}
    for message in reversed(messages):
        if is_difference_notice(message):
            return True
        for call in reversed(message.calls):
            if call.id in answers and answers[call.id].ran:
                return False
            if call.id in answers and call.name in editing:
                return True
    return False
