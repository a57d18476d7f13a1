"""Resolution of GitHub notices into events. Deliveries and the reconciler use the same rules, so
both produce the same event under the same key."""

from dataclasses import dataclass

from osiris.bot.github import conversations
from osiris.bot.github.api_models import IssueSnapshot, LabelChange, PullSnapshot, Verdict
from osiris.bot.github.client import GitHub
from osiris.bot.github.webhook_payloads import IssueClosed, PullStateChanged, Reviewed, Unlabelled
from osiris.core import events as e
from osiris.core.review import Review
from osiris.core.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedEvent:
    """An event and its key. The same occurrence has the same key however often, and by whichever
    path, it is seen."""

    event: e.Event
    key: str

    @property
    def may_be_stale_later(self) -> bool:
        """True when the task may have been resumed since the event: then the event must not be
        reported a second time."""
        return isinstance(self.event, e.RequestWithdrawn | e.IssueDropped | e.Approved)


class EventResolver:
    """Resolves notices with roles, review threads and head commits that are read from GitHub now,
    never guessed from the notice."""

    def __init__(self, github: GitHub) -> None:
        self._github = github

    async def resolve_actor(self, repo: str, login: str) -> e.Actor:
        return e.Actor(login, await self._github.read_role(repo, login))

    async def resolve_unlabelled(self, webhook_event: Unlabelled) -> ResolvedEvent | None:
        """Return the withdrawal behind a removed label, or None. Only people with write access can
        withdraw a request, although GitHub lets others remove labels and close issues they
        opened."""
        if not (await self.resolve_actor(webhook_event.repo, webhook_event.sender)).may_steer:
            return None
        now = await self._github.read_issue(webhook_event.repo, webhook_event.issue.number)
        if webhook_event.label.casefold() in now.labels:
            return None
        change = await self._github.read_label_change(
            webhook_event.repo, webhook_event.issue.number, webhook_event.label
        )
        key = label_key(change) if change and not change.on else ""
        return ResolvedEvent(
            event=e.RequestWithdrawn(issue=webhook_event.issue, by=webhook_event.sender), key=key
        )

    async def resolve_issue_close(self, webhook_event: IssueClosed) -> ResolvedEvent | None:
        now = await self._github.read_issue(webhook_event.repo, webhook_event.issue.number)
        if (
            now.open
            or not (await self.resolve_actor(webhook_event.repo, webhook_event.sender)).may_steer
        ):
            return None
        if webhook_event.not_planned:
            return ResolvedEvent(
                event=e.IssueDropped(issue=webhook_event.issue, by=webhook_event.sender),
                key=issue_key(now),
            )
        return ResolvedEvent(
            event=e.RequestWithdrawn(issue=webhook_event.issue, by=webhook_event.sender),
            key=issue_key(now),
        )

    def resolve_pull_change(
        self, task: Task, webhook_event: PullStateChanged, pull: PullSnapshot
    ) -> ResolvedEvent | None:
        """Return the event behind a change of a pull request, judged by the pull request's present
        state."""
        seen = f"seen/{task.issue}/pull/{pull.number}"
        if pull.merged:
            return ResolvedEvent(
                event=e.Merged(issue=task.issue, by=webhook_event.sender), key=f"{seen}/merged"
            )
        match webhook_event.how:
            case "closed" if not pull.open:
                key = f"{seen}/closed/{pull.closed}"
                return ResolvedEvent(
                    event=e.PullClosed(issue=task.issue, by=webhook_event.sender), key=key
                )
            case "reopened" if pull.open:
                key = f"{seen}/reopened/{pull.updated}"
                return ResolvedEvent(
                    event=e.PullReopened(issue=task.issue, by=webhook_event.sender), key=key
                )
            case "synchronize":
                # with the time, because a branch may return to an earlier head
                key = f"{seen}/head/{pull.head}/{pull.updated}"
                return ResolvedEvent(
                    event=e.CommitsPushed(issue=task.issue, head=pull.head), key=key
                )
        return None

    async def resolve_review(self, task: Task, webhook_event: Reviewed) -> ResolvedEvent | None:
        key = review_key(webhook_event.node, webhook_event.state)
        if webhook_event.state == "dismissed":
            event = e.ApprovalDismissed(issue=task.issue)
            return (
                ResolvedEvent(event=event, key=key)
                if task.approved == webhook_event.commit
                else None
            )
        actor = await self.resolve_actor(webhook_event.repo, webhook_event.sender)
        if webhook_event.state == "approved":
            pull = await self._github.read_pull(webhook_event.repo, webhook_event.pull)
            fields = {"commit": webhook_event.commit, "head": pull.head, "pull": pull.number}
            return ResolvedEvent(event=e.Approved(issue=task.issue, actor=actor, **fields), key=key)  # type: ignore[arg-type]
        review = await self._read_review(webhook_event, actor)
        if review is not None:
            said = e.SourceRef("review", webhook_event.node)
            requested = e.ChangesRequested(issue=task.issue, actor=actor, said=said, review=review)
            return ResolvedEvent(event=requested, key=key)
        if not actor.may_steer:
            return None
        return ResolvedEvent(event=e.PlainComment(issue=task.issue, on_pull=True), key=key)

    async def _read_review(self, webhook_event: Reviewed, actor: e.Actor) -> Review | None:
        """Return the review with all its threads; None for a comment without threads, which asks
        for nothing.

        Of a stranger's review the threads are not read, only whether it has any.
        """
        review = Review(by=webhook_event.sender, text=webhook_event.text)
        repo = webhook_event.repo
        place = (webhook_event.pull, webhook_event.review)
        is_request = webhook_event.state == "changes_requested"
        if not is_request and not await self._github.has_line_comments(repo, *place):
            return None
        if not actor.may_steer:
            return review
        return await conversations.add_threads(self._github, repo, *place, review)


def issue_key(closed: IssueSnapshot) -> str:
    return f"seen/closed/{closed.node}/{closed.closed}"


def label_key(change: LabelChange) -> str:
    return f"seen/unlabelled/{change.id}"


def review_key(node: str, verdict: Verdict) -> str:
    return f"seen/review/{node}" + ("/dismissed" if verdict == "dismissed" else "")
