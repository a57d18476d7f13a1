"""One run of an agent on one task: brief in, fact out. It holds no GitHub credential and cannot reach one."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from osiris.agents import briefing
from osiris.agents.budget import Budget
from osiris.agents.checkpoints import Place, Shelf, do_again, moved, tells_of_difference
from osiris.agents.command_totals import MOST_SUMMARY, bound_commands, bound_prepared
from osiris.agents.loop import Mind, Tape, work
from osiris.config import copilot_setup
from osiris.core import events as e
from osiris.core.bounded_dict import BoundedDict
from osiris.core.effects import Purpose, StartRun
from osiris.core.errors import Refused
from osiris.core.policy import Policy
from osiris.core.ports.live import Journal
from osiris.core.ports.models import Choose, GaveUp, Halted, Message, Outcome, SpentBudget, Submitted, Toolbox
from osiris.core.ports.repositories import Checkout, Desk, Vault
from osiris.core.ports.sandbox import Limits, Plan, Sandbox, Session, Setup
from osiris.core.ports.storage import Inbox, Transcripts
from osiris.core.sanitize import cut_text

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 1_000  # runs that were stopped, or had a model chosen, before they began


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What belongs together while one run is under way."""

    name: str
    order: StartRun
    base: str
    instructions: Mapping[str, str]
    session: Session
    toolbox: Toolbox
    tape: Tape
    budget: Budget
    shelf: Shelf
    news: Message | None

    async def put_away(self) -> None:
        await self.shelf.now_and_then(self.session, self.tape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What runs work with. Without a `vault` a run can go on only on this machine, or from its begin."""

    sandbox: Sandbox
    tools: Callable[[Session], Toolbox]
    desk: Desk
    vault: Vault | None = None
    limits: Limits = field(default_factory=Limits)


class Runner:
    """Runs agents, at most one for an issue at a time."""

    def __init__(
        self, *, choose: Choose, hands: Hands, transcripts: Transcripts, inbox: Inbox, journal: Journal
    ) -> None:
        self._choose, self._sandbox, self._tools = choose, hands.sandbox, hands.tools
        self._desk, self._vault, self._limits = hands.desk, hands.vault, hands.limits
        self._transcripts, self._inbox, self._journal = transcripts, inbox, journal
        self._under_way: dict[str, asyncio.Task[e.RunFact]] = {}
        self._minds: dict[str, Mind] = {}
        self._chosen = BoundedDict[str, str](_MOST_REMEMBERED)
        self._stopped = BoundedDict[str, None](_MOST_REMEMBERED)
        self._held: set[str] = set()

    async def begin(self, order: StartRun) -> None:
        """Say that the run begins, once."""
        fact = e.RunStarted(issue=order.issue, run=order.run)
        await self._inbox.note(f"{run_name(order.issue, order.run)}/started/{order.steps}", fact)

    async def run(self, order: StartRun, checkout: Checkout, policy: Policy) -> e.RunFact | None:
        """Let an agent work until its run ends; None when it was stopped. Raises Refused or Unavailable.

        When the worker itself is cancelled the run is not over: the same order resumes it.
        """
        name = run_name(order.issue, order.run)
        if name in self._stopped:  # while its checkout was made
            return None
        self._minds[name] = mind = Mind(self._choose, self._chosen.pop(name, order.model))
        self._under_way[name] = job = asyncio.create_task(self._to_the_end(name, order, checkout, policy, mind))
        try:
            return await job
        except asyncio.CancelledError:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            if name in self._stopped:
                await self._sandbox.remove(name)
                await self._transcripts.end(name, "stopped")
            elif name not in self._held:
                raise
            return None
        finally:
            del self._under_way[name], self._minds[name]
            self._held.discard(name)

    def switch(self, issue: e.IssueRef, run: int, model: str) -> None:
        """Let another model think in a run from its next step on, or from its begin if it has not begun."""
        if mind := self._minds.get(name := run_name(issue, run)):
            mind.switch(model)
        else:
            self._chosen[name] = model

    async def stop(self, issue: e.IssueRef, run: int, *, keep: bool = False) -> None:
        """End a run, under way or not, and remove its workspace; with `keep` only cut it off: it can go on later."""
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
            await self._transcripts.end(name, "over")

    async def _to_the_end(
        self, name: str, order: StartRun, checkout: Checkout, policy: Policy, mind: Mind
    ) -> e.RunFact:
        run = await self._open(name, order, checkout, policy)
        try:
            outcome = await work(mind, run.toolbox, run.tape, run.budget, between=run.put_away, news=run.news)
            fact = await self._fact(run, outcome, policy.deny)
        except Refused as refused:
            fact = e.RunFailed(issue=order.issue, run=order.run, reason=str(refused))
        except asyncio.CancelledError:
            if name not in self._stopped:
                await run.shelf.put_at_last(run.session, run.tape)
            raise
        return fact  # the workspace stays until the fact is recorded: a crash before that comes back to it

    async def _plan(self, repo: str, checkout: Checkout, policy: Policy) -> Plan:
        """The workspace of a run: what gets it ready stands on the base branch, where people put it."""
        commands = policy.setup
        if commands is None:
            text = await self._desk.read(repo, checkout.trusted, copilot_setup.PATH)
            commands = await asyncio.to_thread(copilot_setup.parse, text)
        setup = None
        if commands:
            key = await self._desk.fingerprint(repo, checkout.trusted)
            setup = Setup(commands=commands, hosts=policy.setup_hosts, key=key)
        return Plan(
            repo=repo,
            base=checkout.commit,
            trusted=checkout.trusted,
            setup=setup,
            hosts=policy.agent_hosts,
            limits=self._limits,
        )

    async def _open(self, name: str, order: StartRun, checkout: Checkout, policy: Policy) -> _Run:
        begun = await self._transcripts.begin(name, order.issue, order.purpose, checkout.commit)
        place = Place(repo=order.issue.repo, ref=f"{order.issue.number}-{order.run}", run=name)
        shelf = Shelf(place, self._vault, self._desk, self._transcripts)
        session, redo = await shelf.open(self._sandbox, begun, await self._plan(order.issue.repo, checkout, policy))
        toolbox = self._tools(session)
        instructions = await self._desk.instructions(order.issue.repo, checkout.trusted)
        budget = Budget(steps=order.steps, minutes=order.minutes, usd=order.usd, spent_seconds=begun.seconds)
        tape = Tape(name, self._transcripts, await self._transcripts.load(name), budget, self._journal)
        news = None
        if redo is not None and tape.messages:
            news = moved(await do_again(toolbox, tape.messages, redo), restored=redo > 0)
        await session.seal()  # not before: what was done again in part must not pass for the whole
        for message in briefing.messages(order, instructions)[len(tape.messages) :]:
            await tape.append(message)
        return _Run(
            name=name,
            order=order,
            base=begun.base,
            instructions=instructions,
            session=session,
            toolbox=toolbox,
            tape=tape,
            budget=budget,
            shelf=shelf,
            news=news,
        )

    async def _fact(self, run: _Run, outcome: Outcome, deny: Sequence[str]) -> e.RunFact:
        issue, number = run.order.issue, run.order.run
        match outcome:
            case Submitted(summary=summary):
                return await self._submitted(run, summary, deny)
            case SpentBudget(reason=reason):
                return e.BudgetSpent(issue=issue, run=number, reason=reason)
            case GaveUp(reason=reason):
                return e.RunFailed(issue=issue, run=number, reason=reason)
            case Halted(reason=reason):
                return e.RunHalted(issue=issue, run=number, reason=reason)

    async def _submitted(self, run: _Run, summary: str, deny: Sequence[str]) -> e.RunFact:
        issue, number = run.order.issue, run.order.run
        export = await run.session.export(run.base)
        with export.pack:
            taken = await self._desk.take(issue.repo, run.base, export, deny)
        await self._put_away(run, taken.tree)
        if not taken.files and run.order.purpose is Purpose.REVISE:
            return e.NothingToChange(issue=issue, run=number, summary=summary)
        if not taken.files:
            reason = f"the agent changed no file; it said: {summary}"
            return e.RunFailed(issue=issue, run=number, reason=reason)
        ran = bound_commands([message.ran for message in run.tape.messages if message.ran])
        work = e.Work(
            summary=cut_text(summary, MOST_SUMMARY),
            files=taken.files,
            commands=ran.commands,
            earlier=ran.earlier,
            blocked=ran.blocked,
            more_blocked=ran.more_blocked,
            edited_last=_edited_last(run.tape.messages),
            instructions=tuple(run.instructions),
            model=", ".join(dict.fromkeys(reply.model for reply in run.tape.replies)),
            steps=len(run.tape.replies),
            seconds=run.budget.seconds,
            usage=run.tape.usage,
            prepared=bound_prepared(run.session.prepared),
        )
        at = int(time.time())
        return e.PatchReady(issue=issue, run=number, tree=taken.tree, base=run.base, at=at, work=work)

    async def _put_away(self, run: _Run, tree: str) -> None:
        """What is handed in may be pushed by another machine, or this one may be gone by then."""
        try:
            await run.shelf.put_taken(tree, len(run.tape.messages))
        except Refused as refused:
            log.warning("the work of %s could not be put away: %s", run.name, refused)


def run_name(issue: e.IssueRef, run: int) -> str:
    """The name of a run, of its transcript and of its session."""
    return f"{issue.repo.replace('/', '.')}-{issue.number}-{run}"


def _edited_last(messages: Sequence[Message]) -> bool:
    """Whether a file was changed after the last command ran, or a command had another end when it was run again."""
    answers = {message.call: message for message in messages if message.role == "tool"}
    for message in reversed(messages):
        if tells_of_difference(message):
            return True
        for call in reversed(message.calls):
            if call.id in answers and answers[call.id].ran:
                return False
            if call.id in answers and call.name in ("write_file", "edit_file"):
                return True
    return False
