"""One run of an agent on one task: it takes a brief and returns a fact.

It has no GitHub credential and no access to one.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from osiris.agents import briefing
from osiris.agents.active_run import ActiveRun
from osiris.agents.budget import Budget
from osiris.agents.checkpoints import (
    Checkpoints,
    RunLocation,
    relocation_notice,
    replay_calls,
)
from osiris.agents.loop import ModelSelector, TranscriptRecorder, run_agent
from osiris.agents.outcomes import create_fact, is_allowed
from osiris.agents.roles import select_role
from osiris.agents.submissions import Submissions
from osiris.config import copilot_setup
from osiris.core import events as e
from osiris.core.bounded_dict import BoundedDict
from osiris.core.effects import StartRun
from osiris.core.errors import Refused
from osiris.core.policy import Policy
from osiris.core.ports.live import LiveEvents
from osiris.core.ports.models import (
    Message,
    Outcome,
    SelectModel,
    Submitted,
    Toolbox,
)
from osiris.core.ports.repositories import (
    Checkout,
    CheckpointStorage,
    Repositories,
)
from osiris.core.ports.sandbox import Plan, Sandbox, SandboxLimits, Session, Setup
from osiris.core.ports.storage import Inbox, Transcripts
from osiris.core.review import Review
from osiris.core.sanitize import clean_text

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 1_000  # runs that were stopped, or were given a model, before they began


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDependencies:
    """The services that runs use.

    Without a `storage`, a run can resume only on this machine, or it starts from its beginning.
    """

    sandbox: Sandbox
    tools: Callable[[Session, Sequence[str], Sequence[Review]], Toolbox]
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
        self._submissions = Submissions(dependencies.repositories)
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
            fact, notice = None, run.notice
            while fact is None:
                outcome = await run_agent(
                    selector,
                    run.toolbox,
                    run.recorder,
                    run.budget,
                    after_step=run.save_checkpoint,
                    notice=notice,
                )
                notice = None
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
    ) -> ActiveRun:
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
        toolbox = self._tools(session, role.tools, order.reviews)
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
        messages = briefing.build_messages(order, instructions, policy.deny, role.prompt)
        notice = await _brief_agent(order, messages, session, toolbox, recorder, redo)
        return ActiveRun(
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
        self, run: ActiveRun, outcome: Outcome, deny: Sequence[str]
    ) -> e.RunFact | None:
        """Return the fact of an outcome; None when the agent is to go on: its work was refused."""
        if isinstance(outcome, Submitted) and is_allowed(outcome, run.role):
            return await self._submissions.import_work(run, outcome.summary, deny)
        return create_fact(outcome, run.order, run.role)


def run_name(issue: e.IssueRef, run: int) -> str:
    """Return the name of a run, which is also that of its transcript and its session."""
    return f"{issue.repo.replace('/', '.')}-{issue.number}-{run}"


async def _brief_agent(
    order: StartRun,
    brief: Sequence[Message],
    session: Session,
    toolbox: Toolbox,
    recorder: TranscriptRecorder,
    redo: int | None,
) -> Message | None:
    """Record the `brief` of a new run. Of one that goes on, return what its agent is told first:
    that it was moved (`redo`: the message from which its calls are repeated), and what people
    wrote meanwhile."""
    if briefing.is_long(order.body):
        script = f"cat > {briefing.ISSUE_FILE}"
        await session.run(["/bin/bash", "-c", script], stdin=clean_text(order.body).encode())
    notices = []
    if redo is not None and recorder.messages:
        differed = await replay_calls(toolbox, recorder.messages, redo)
        notices.append(relocation_notice(differed, restored=redo > 0))
    await session.seal()  # not earlier: a partial replay must not be taken for a complete one
    if len(recorder.messages) >= briefing.LENGTH:
        notices.append(briefing.build_news(order, recorder.messages))
    for message in brief[len(recorder.messages) :]:
        await recorder.append(message)
    told = [notice for notice in notices if notice is not None]
    if not told:
        return None
    text = "\n\n".join(notice.text for notice in told)
    return replace(told[-1], text=text)
