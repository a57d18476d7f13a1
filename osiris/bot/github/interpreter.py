"""From what a delivery says to what happened: roles, threads and heads are asked of GitHub, never guessed."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import assert_never

from osiris.bot.github import commands, webhook_payloads
from osiris.bot.github.app_auth import NotInstalled
from osiris.bot.github.client import GitHub
from osiris.bot.github.event_resolver import Fact, Facts
from osiris.bot.github.repository_names import Names
from osiris.bot.github.webhook_payloads import (
    AccessMoved,
    Commented,
    IssueClosed,
    Labelled,
    Notice,
    PullMoved,
    Reviewed,
    Unlabelled,
)
from osiris.core import events as e
from osiris.core.errors import Refused
from osiris.core.ports.storage import Tasks
from osiris.core.task import Task

_OURS = re.compile(r"osiris/(\d{1,9})-")


class Lookup:
    """Interprets deliveries of GitHub. Nothing here runs inside a transaction."""

    def __init__(
        self,
        github: GitHub,
        tasks: Tasks,
        names: Names,
        trouble: Callable[[str], Awaitable[str]],
        soon: Callable[[str], None],
        heard: Callable[[str], Awaitable[None]],
    ) -> None:
        """`trouble` says why a model cannot be chosen, "" when it can. `soon` is told whose repositories may be reached
        otherwise than before ("": anybody's), and `heard` the keys of facts that must not be told again later.
        """
        self._github, self._tasks, self._names, self._trouble = github, tasks, names, trouble
        self._soon, self._heard, self._facts = soon, heard, Facts(github)

    async def __call__(self, kind: str, body: bytes) -> e.Event | None:
        """The event behind a delivery, or None. Raises Refused for a body GitHub would not send, and Unavailable."""
        try:
            notice = webhook_payloads.read(kind, body)
        except ValueError as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise Refused(f"the body is not what GitHub sends as {kind}: {first}") from None
        try:
            return await self._event(notice)
        except NotInstalled:
            return None  # it was taken off a repository after the delivery was sent: nobody there listens any more

    async def about(self, kind: str, body: bytes) -> str:
        """The issue that a delivery is about, "" for none: a pull request of ours stands for its issue."""
        try:
            notice = webhook_payloads.read(kind, body)
        except ValueError:
            return ""
        match notice:
            case Labelled() | Unlabelled() | IssueClosed():
                return str(notice.issue)
            case Commented(on_pull=True):
                task = await self._tasks.by_pull(notice.repo, notice.number)
                return str(task.issue if task else e.IssueRef(notice.repo, notice.number))
            case Commented():
                return str(e.IssueRef(notice.repo, notice.number))
            case PullMoved() | Reviewed():
                ours = _OURS.match(notice.branch)
                return str(e.IssueRef(notice.repo, int(ours[1]) if ours else notice.pull))
        return ""

    async def _event(self, notice: Notice | AccessMoved | None) -> e.Event | None:
        match notice:
            case None:
                return None
            case AccessMoved():
                self._soon(notice.account)
                return None
            case Labelled() if not notice.by_bot:
                return await self._labelled(notice)
            case Commented() if not notice.by_bot:
                return await self._commented(notice)
            case Notice():
                return await self._told(await self._fact(notice))
            case unknown:
                assert_never(unknown)

    async def _fact(self, notice: Notice) -> Fact | None:
        match notice:
            case Unlabelled() if not notice.by_bot:
                return await self._unlabelled(notice)
            case IssueClosed():
                return await self._issue_closed(notice)
            case PullMoved():
                return await self._pull_moved(notice)
            case Reviewed() if not notice.by_bot:
                return await self._reviewed(notice)
        return None

    async def _told(self, fact: Fact | None) -> e.Event | None:
        """The event of a fact; who looks at GitHub later is told that it is known."""
        if fact is not None and fact.passes and fact.key:
            await self._heard(fact.key)
        return fact.event if fact else None

    async def _actor(self, notice: Notice) -> e.Actor:
        return await self._facts.actor(notice.repo, notice.sender)

    async def _labelled(self, notice: Labelled) -> e.Event | None:
        if not await self._is_trigger(notice):
            return None
        now = await self._github.issue(notice.repo, notice.issue.number)
        if not now.open or notice.label.casefold() not in now.labels:
            return None  # it was taken off again meanwhile
        actor, repo = await self._actor(notice), await self._names.present(notice.repo, notice.repository)
        issue = e.IssueRef(repo, notice.issue.number)
        return e.TaskRequested(issue=issue, actor=actor, title=notice.title, body=notice.body)

    async def _unlabelled(self, notice: Unlabelled) -> Fact | None:
        return await self._facts.unlabelled(notice) if await self._is_trigger(notice) else None

    async def _is_trigger(self, notice: Labelled | Unlabelled) -> bool:
        return notice.label.casefold() == (await self._github.policy(notice.repo)).label.casefold()

    async def _issue_closed(self, notice: IssueClosed) -> Fact | None:
        if await self._tasks.get(notice.issue) is None:
            return None  # not ours: GitHub is asked nothing about it
        return await self._facts.issue_closed(notice)

    # ── commands ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _commented(self, notice: Commented) -> e.Event | None:
        command = await asyncio.to_thread(commands.find, notice.text, await self._github.login())
        if command is None:
            return None
        notice = replace(notice, repo=await self._names.present(notice.repo, notice.repository))
        issue = await self._issue_of(notice)
        if issue is None:
            return None
        said, actor = e.Said("comment", str(notice.comment)), await self._actor(notice)
        if command.name == "model" and "\0" not in command.rest and command.rest:
            trouble = await self._trouble(command.rest) if actor.may_steer else ""  # asking costs money
            return e.ModelChosen(issue=issue, actor=actor, said=said, model=command.rest, trouble=trouble)
        return _wish(command, issue, actor, said, notice)

    async def _issue_of(self, notice: Commented) -> e.IssueRef | None:
        """The task a comment is about: a pull request of ours stands for its issue, one of others for nothing."""
        if not notice.on_pull:
            return e.IssueRef(notice.repo, notice.number)
        pull = await self._github.pull(notice.repo, notice.number)
        task = await self._task_of(notice.repo, pull.number, pull.branch)
        return task.issue if task else None

    async def _task_of(self, repo: str, pull: int, branch: str) -> Task | None:
        """Our task behind a pull request: by its number, or by its branch while we do not know the number yet."""
        if task := await self._tasks.by_pull(repo, pull):
            return task
        if match := _OURS.match(branch):
            task = await self._tasks.get(e.IssueRef(repo, int(match[1])))
            return task if task and task.branch == branch and task.pull is None else None
        return None

    # ── pull requests ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _pull_moved(self, notice: PullMoved) -> Fact | None:
        if (task := await self._task_of(notice.repo, notice.pull, notice.branch)) is None:
            return None
        return self._facts.pull_moved(task, notice, await self._github.pull(notice.repo, notice.pull))

    async def _reviewed(self, notice: Reviewed) -> Fact | None:
        task = await self._task_of(notice.repo, notice.pull, notice.branch)
        return await self._facts.reviewed(task, notice) if task else None


def _wish(
    command: commands.Command, issue: e.IssueRef, actor: e.Actor, said: e.Said, notice: Commented
) -> e.Event | None:
    match command:
        case commands.Command(name="", known=True):
            if notice.on_pull:
                return e.StatusAsked(issue=issue, actor=actor, said=said)
            return e.TaskRequested(issue=issue, actor=actor, said=said, title=notice.title, body=notice.body)
        case commands.Command(name="stop"):
            return e.StopRequested(issue=issue, actor=actor, said=said)
        case commands.Command(name="retry"):
            return e.RetryRequested(issue=issue, actor=actor, said=said)
        case commands.Command(name="status"):
            return e.StatusAsked(issue=issue, actor=actor, said=said)
        case commands.Command(name="help" | "model"):  # a model without a name, or with marks in it
            return e.HelpAsked(issue=issue, actor=actor, said=said)
    return e.HelpAsked(issue=issue, actor=actor, said=said, unknown=command.name)
