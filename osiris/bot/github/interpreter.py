"""Interpretation of webhook deliveries as events. Roles, review threads and head commits are read
from GitHub, never guessed from the delivery."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import assert_never

from osiris.bot.github import commands, webhook_payloads
from osiris.bot.github.client import GitHub
from osiris.bot.github.event_resolver import EventResolver, ResolvedEvent
from osiris.bot.github.repository_names import RepositoryNames
from osiris.bot.github.webhook_payloads import (
    OUR_BRANCH,
    AccessChanged,
    Commented,
    IssueClosed,
    Labelled,
    PullStateChanged,
    Reviewed,
    Unlabelled,
    WebhookEvent,
)
from osiris.core import events as e
from osiris.core.errors import Refused
from osiris.core.ports.storage import Tasks
from osiris.core.task import State, Task


class GitHubInterpreter:
    """Interpreter of GitHub deliveries. Nothing here runs inside a transaction."""

    def __init__(
        self,
        github: GitHub,
        tasks: Tasks,
        names: RepositoryNames,
        why_unavailable: Callable[[str], Awaitable[str]],
        request_reconcile: Callable[[str], None],
        mark_seen: Callable[[str], Awaitable[None]],
    ) -> None:
        """`why_unavailable` returns why a model cannot be chosen, "" when it can.
        `request_reconcile` receives the account whose repositories may have become accessible or
        inaccessible ("": any). `mark_seen` receives the keys of events that must not be reported
        again later."""
        self._github = github
        self._tasks = tasks
        self._names = names
        self._why_unavailable = why_unavailable
        self._request_reconcile = request_reconcile
        self._mark_seen = mark_seen
        self._resolver = EventResolver(github)

    async def interpret_delivery(self, kind: str, body: bytes) -> e.Event | None:
        """Return the event behind a delivery; None when it does not concern Osiris.

        Raises Refused for a body that GitHub would not send, Unavailable, and NotInstalled.
        """
        try:
            webhook_event = webhook_payloads.parse_delivery(kind, body)
        except ValueError as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise Refused(f"the body is not what GitHub sends as {kind}: {first}") from None
        return await self._interpret_event(webhook_event)

    async def _interpret_event(
        self, webhook_event: WebhookEvent | AccessChanged | None
    ) -> e.Event | None:
        match webhook_event:
            case None:
                return None
            case AccessChanged():
                self._request_reconcile(webhook_event.account)
                return None
            case Labelled() if not webhook_event.by_bot:
                return await self._interpret_label(webhook_event)
            case Commented() if not webhook_event.by_bot:
                return await self._interpret_comment(webhook_event)
            case WebhookEvent():
                return await self._record_event(await self._resolve_event(webhook_event))
            case unknown:
                assert_never(unknown)

    async def _resolve_event(self, webhook_event: WebhookEvent) -> ResolvedEvent | None:
        match webhook_event:
            case Unlabelled() if not webhook_event.by_bot:
                return await self._resolve_unlabelled(webhook_event)
            case IssueClosed():
                return await self._resolve_issue_close(webhook_event)
            case PullStateChanged():
                return await self._resolve_pull_change(webhook_event)
            case Reviewed() if not webhook_event.by_bot:
                return await self._resolve_review(webhook_event)
        return None

    async def _record_event(self, fact: ResolvedEvent | None) -> e.Event | None:
        """Return the event, and record its key so that the reconciler does not report it again."""
        if fact is not None and fact.may_be_stale_later and fact.key:
            await self._mark_seen(fact.key)
        return fact.event if fact else None

    async def _resolve_actor(self, webhook_event: WebhookEvent) -> e.Actor:
        return await self._resolver.resolve_actor(webhook_event.repo, webhook_event.sender)

    async def _interpret_label(self, webhook_event: Labelled) -> e.Event | None:
        if not await self._is_trigger(webhook_event):
            return None
        now = await self._github.read_issue(webhook_event.repo, webhook_event.issue.number)
        if not now.open or webhook_event.label.casefold() not in now.labels:
            return None  # the label was removed in the meantime
        actor = await self._resolve_actor(webhook_event)
        repo = await self._names.resolve_name(webhook_event.repo, webhook_event.repository)
        issue = e.IssueRef(repo, webhook_event.issue.number)
        return e.TaskRequested(
            issue=issue, actor=actor, title=webhook_event.title, body=webhook_event.body
        )

    async def _resolve_unlabelled(self, webhook_event: Unlabelled) -> ResolvedEvent | None:
        return (
            await self._resolver.resolve_unlabelled(webhook_event)
            if await self._is_trigger(webhook_event)
            else None
        )

    async def _is_trigger(self, webhook_event: Labelled | Unlabelled) -> bool:
        return (
            webhook_event.label.casefold()
            == (await self._github.read_policy(webhook_event.repo)).label.casefold()
        )

    async def _resolve_issue_close(self, webhook_event: IssueClosed) -> ResolvedEvent | None:
        if await self._tasks.get(webhook_event.issue) is None:
            return None  # not a task of Osiris: no request to GitHub is needed
        return await self._resolver.resolve_issue_close(webhook_event)

    # ── commands ──────────────────────────────────────────────────────────────────────────────────

    async def _interpret_comment(self, webhook_event: Commented) -> e.Event | None:
        command = await asyncio.to_thread(
            commands.find_command, webhook_event.text, await self._github.read_login()
        )
        webhook_event = replace(
            webhook_event,
            repo=await self._names.resolve_name(webhook_event.repo, webhook_event.repository),
        )
        if command is None:
            return await self._interpret_plain_comment(webhook_event)
        issue = await self._find_issue(webhook_event)
        if issue is None:
            return None
        said = e.SourceRef("comment", str(webhook_event.comment))
        actor = await self._resolve_actor(webhook_event)
        if command.name == "model" and "\0" not in command.rest and command.rest:
            # the check asks the model, which costs money
            trouble = await self._why_unavailable(command.rest) if actor.may_steer else ""
            return e.ModelChosen(
                issue=issue, actor=actor, said=said, model=command.rest, trouble=trouble
            )
        if command == commands.UserCommand("") and await self._is_merged(issue, webhook_event):
            return e.StatusAsked(issue=issue, actor=actor, said=said)
        if command.name == "retry" and command.known and webhook_event.on_pull:
            webhook_event = await self._replace_text(webhook_event, issue)
        return _interpret_command(command, issue, actor, said, webhook_event)

    async def _interpret_plain_comment(self, webhook_event: Commented) -> e.Event | None:
        """Return the event of a comment without a command; None where it is no task's, and for
        people without write access, who need no answer."""
        repo, number = webhook_event.repo, webhook_event.number
        if webhook_event.on_pull:
            task = await self._tasks.find_task_by_pull(repo, number)
        else:
            task = await self._tasks.get(e.IssueRef(repo, number))
        if task is None or task.state is State.DONE:
            return None
        if not (await self._resolve_actor(webhook_event)).may_steer:
            return None
        return e.PlainComment(issue=task.issue, on_pull=webhook_event.on_pull)

    async def _replace_text(self, webhook_event: Commented, issue: e.IssueRef) -> Commented:
        """Return a comment below a pull request with the text of its task's issue, as it is now,
        in place of the pull request's."""
        now = await self._github.read_issue(issue.repo, issue.number)
        return replace(webhook_event, title=now.title, body=now.body)

    async def _is_merged(self, issue: e.IssueRef, webhook_event: Commented) -> bool:
        """Return whether the work on an issue is merged and the issue was not opened again."""
        task = None if webhook_event.is_open else await self._tasks.get(issue)
        return task is not None and task.state is State.DONE

    async def _find_issue(self, webhook_event: Commented) -> e.IssueRef | None:
        """Return the issue of the task that a comment is about. A pull request of Osiris counts as
        its issue, any other pull request as none."""
        if not webhook_event.on_pull:
            return e.IssueRef(webhook_event.repo, webhook_event.number)
        pull = await self._github.read_pull(webhook_event.repo, webhook_event.number)
        task = await self._find_task(webhook_event.repo, pull.number, pull.branch)
        return task.issue if task else None

    async def _find_task(self, repo: str, pull: int, branch: str) -> Task | None:
        """Return the task of a pull request, found by its number, or by its branch while the task
        does not have the number yet."""
        if task := await self._tasks.find_task_by_pull(repo, pull):
            return task
        if match := OUR_BRANCH.match(branch):
            task = await self._tasks.get(e.IssueRef(repo, int(match[1])))
            return task if task and task.branch == branch and task.pull is None else None
        return None

    # ── pull requests ─────────────────────────────────────────────────────────────────────────────

    async def _resolve_pull_change(self, webhook_event: PullStateChanged) -> ResolvedEvent | None:
        if (
            task := await self._find_task(
                webhook_event.repo, webhook_event.pull, webhook_event.branch
            )
        ) is None:
            return None
        return self._resolver.resolve_pull_change(
            task,
            webhook_event,
            await self._github.read_pull(webhook_event.repo, webhook_event.pull),
        )

    async def _resolve_review(self, webhook_event: Reviewed) -> ResolvedEvent | None:
        task = await self._find_task(webhook_event.repo, webhook_event.pull, webhook_event.branch)
        return await self._resolver.resolve_review(task, webhook_event) if task else None


def _interpret_command(
    command: commands.UserCommand,
    issue: e.IssueRef,
    actor: e.Actor,
    said: e.SourceRef,
    webhook_event: Commented,
) -> e.Event | None:
    if not command.known:
        return e.HelpAsked(issue=issue, actor=actor, said=said, unknown=command.name)
    match command:
        case commands.UserCommand(name=""):
            if webhook_event.on_pull:
                return e.StatusAsked(issue=issue, actor=actor, said=said)
            return e.TaskRequested(
                issue=issue,
                actor=actor,
                said=said,
                title=webhook_event.title,
                body=webhook_event.body,
            )
        case commands.UserCommand(name="stop"):
            return e.StopRequested(issue=issue, actor=actor, said=said)
        case commands.UserCommand(name="retry"):
            return e.RetryRequested(
                issue=issue,
                actor=actor,
                said=said,
                title=webhook_event.title,
                body=webhook_event.body,
            )
        case commands.UserCommand(name="status"):
            return e.StatusAsked(issue=issue, actor=actor, said=said)
    # `help`, or `model` without a name or with Markdown in the name
    return e.HelpAsked(issue=issue, actor=actor, said=said)
