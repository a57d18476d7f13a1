"""Handlers of the orders that concern GitHub, one method each. An order may be handled twice; its
work is done once."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, assert_never

from osiris.bot.git.remote import RemoteRepositories
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.github import comments, conversations
from osiris.bot.github.channel import make_address
from osiris.bot.github.client import GitHub
from osiris.core import effects as f
from osiris.core import events as e
from osiris.core.errors import Refused
from osiris.core.policy import Policy
from osiris.core.ports.channels import Channel
from osiris.core.ports.repositories import Checkout
from osiris.core.task import HALTED, Task


class AgentRunner(Protocol):
    """Starts and stops agents; it receives a checkout and never a token."""

    async def run(self, order: f.StartRun, checkout: Checkout, policy: Policy) -> e.RunFact | None:
        """Run an agent until its run ends; return None when it was stopped."""
        ...

    async def announce_run(self, order: f.StartRun) -> None:
        """Announce that the run begins."""
        ...

    def switch_model(self, issue: e.IssueRef, run: int, model: str) -> None: ...

    async def stop_run(self, issue: e.IssueRef, run: int, *, keep: bool = False) -> None: ...


Facts = Sequence[e.Event]
HandleEffect = Callable[[Any, Task | None], Awaitable[Facts]]


class EffectHandlers:
    """Handlers by type of order; the worker looks them up in `build_table()`."""

    def __init__(
        self,
        github: GitHub,
        channel: Channel,
        remotes: RemoteRepositories,
        repositories: HostRepositories,
        runner: AgentRunner,
    ) -> None:
        self._github = github
        self._channel = channel
        self._remotes = remotes
        self._repositories = repositories
        self._runner = runner

    def build_table(self) -> dict[type, HandleEffect]:
        return {
            f.OpenIssue: self._open_issue,
            f.StartRun: self._start_run,
            f.SwitchModel: self._switch_model,
            f.StopRun: self._stop_run,
            f.Push: self._push_work,
            f.OpenDraftPull: self._open_draft_pull,
            f.MarkReady: self._mark_ready,
            f.Report: self._report_status,
            f.Reply: self._post_reply,
            f.React: self._add_reaction,
        }

    async def _open_issue(self, order: f.OpenIssue, _task: Task | None) -> Facts:
        actor = await self._resolve_principal(order.principal, order.repo)
        if not actor.may_steer:
            raise Refused(
                f"{actor.login} has no write access to {order.repo}, so no issue was filed;"
                " somebody with write access can file the request"
            )
        number = await self._github.open_issue(
            order.repo, order.title, comments.write_issue_body(order), key=order.key
        )
        issue = e.IssueRef(order.repo, number)
        requested = e.TaskRequested(
            issue=issue, actor=actor, title=order.title, body=order.body, address=order.address
        )
        if order.address is None:
            return [requested]
        return [e.RequestFiled(address=order.address, issue=issue), requested]

    async def _resolve_principal(self, principal: e.Principal, repo: str) -> e.Actor:
        """Return the principal as an actor with the role that counts in `repo`.

        The operator of this Osiris has the role of an administrator; the role of anybody else is
        read from GitHub.
        """
        match principal.authentication:
            case e.Authentication.OPERATOR:
                return e.Actor(principal.name, e.Role.ADMIN)
            case e.Authentication.GITHUB:
                return e.Actor(principal.name, await self._github.read_role(repo, principal.name))
            case unknown:
                assert_never(unknown)

    async def _start_run(self, order: f.StartRun, task: Task | None) -> Facts:
        if (
            task is None
            or task.run != order.run
            or task.state not in ("queued", "running", "planning")
        ):
            is_halted = task is not None and task.run == order.run and task.state in HALTED
            await self._runner.stop_run(order.issue, order.run, keep=is_halted)
            # outdated: stopped, merged, or replaced by another run; or the task is halted, and a
            # new order will resume it
            return []
        await self._runner.announce_run(order)
        policy = await self._github.read_policy(order.issue.repo)
        checkout = await self._remotes.fetch_checkout(order.issue.repo, order.branch)
        remarks, left_out = await conversations.read_remarks(self._github, task)
        # the model may have been chosen after the order was stored
        model = task.model or order.model
        order = replace(order, model=model, remarks=remarks, left_out=left_out)
        fact = await self._runner.run(order, checkout, policy)
        return [fact] if fact else []

    async def _switch_model(self, order: f.SwitchModel, task: Task | None) -> Facts:
        self._runner.switch_model(order.issue, order.run, task.model if task else order.model)
        return []

    async def _stop_run(self, order: f.StopRun, _task: Task | None) -> Facts:
        await self._runner.stop_run(order.issue, order.run, keep=order.keep)
        return []

    async def _push_work(self, order: f.Push, _task: Task | None) -> Facts:
        repo = order.issue.repo
        if order.pull is not None and not (await self._github.read_pull(repo, order.pull)).open:
            raise Refused(
                f"pull request #{order.pull} was closed while I worked, so I pushed nothing"
            )
        # the run may have been on another machine
        if not await self._repositories.has_tree(repo, order.tree):
            await self._remotes.restore(repo, f"{order.issue.number}-{order.run}")
        login = await self._github.read_login()
        message = comments.write_commit_message(
            order, [await self._format_coauthor(repo, order.requester)]
        )
        email = f"{login}@{self._remotes.noreply}"
        commit = await self._repositories.commit_tree(
            repo,
            tree=order.tree,
            base=order.base,
            message=message,
            author=login,
            email=email,
            at=order.at,
        )
        await self._remotes.push_commit(repo, commit, order.branch)
        return [e.PatchPushed(issue=order.issue, head=commit, answered=order.reviews)]

    async def _format_coauthor(self, repo: str, login: str) -> str:
        id = await self._github.read_user_id(repo, login)
        return f"{login} <{f'{id}+' if id else ''}{login}@{self._remotes.noreply}>"

    async def _open_draft_pull(self, order: f.OpenDraftPull, _task: Task | None) -> Facts:
        number = await self._github.open_draft_pull(
            order.issue.repo,
            order.branch,
            comments.format_title(order.title)[:250],
            comments.write_pull_body(order),
        )
        return [e.PullOpened(issue=order.issue, number=number)]

    async def _mark_ready(self, order: f.MarkReady, _task: Task | None) -> Facts:
        try:
            pull = await self._github.mark_ready(order.issue.repo, order.pull, order.commit)
        except Refused as refused:
            notice = comments.write_draft_notice(str(refused))
            await self._channel.send(make_address(order.issue, order.pull), notice, "draft")
            raise
        return (
            []
            if pull.head == order.commit
            else [e.CommitsPushed(issue=order.issue, head=pull.head)]
        )

    async def _report_status(self, order: f.Report, task: Task | None) -> Facts:
        if task is None:
            return []
        address = make_address(order.issue, order.issue.number)
        await self._channel.send(address, comments.write_status(task), "status")
        if task.pull is not None:
            address = make_address(order.issue, task.pull)
            await self._channel.send(address, comments.write_pull_status(task), "status")
        if task.head is not None and (fields := comments.build_check_run(task)):
            await self._github.upsert_check_run(order.issue, task.head, fields)
        return []

    async def _post_reply(self, order: f.Reply, task: Task | None) -> Facts:
        number = task.pull if task and task.pull and order.on_pull else order.issue.number
        text = comments.write_reply(order, task)
        await self._channel.send(make_address(order.issue, number), text, order.dedup_key)
        return []

    async def _add_reaction(self, order: f.React, _task: Task | None) -> Facts:
        await self._github.add_reaction(order.issue.repo, order.said)
        return []
