"""From what GitHub said and what it says now to what happened, whoever noticed it: a delivery, or who looks later."""

from dataclasses import dataclass

from osiris.bot.github.api_models import Issue, LabelTurn, Pull, Verdict
from osiris.bot.github.client import GitHub
from osiris.bot.github.webhook_payloads import IssueClosed, PullMoved, Reviewed, Unlabelled
from osiris.core import events as e
from osiris.core.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """An event, and the key it is known by: the same for the same happening, however often and by whom it is seen."""

    event: e.Event
    key: str

    @property
    def passes(self) -> bool:
        """Whether a task can have been taken up again since: then it must not be told once more."""
        return isinstance(self.event, e.RequestWithdrawn | e.IssueDropped | e.Approved)


class Facts:
    """Roles, threads and heads are asked of GitHub, never guessed."""

    def __init__(self, github: GitHub) -> None:
        self._github = github

    async def actor(self, repo: str, login: str) -> e.Actor:
        return e.Actor(login, await self._github.role(repo, login))

    async def unlabelled(self, notice: Unlabelled) -> Fact | None:
        """Only people with write access steer, though GitHub lets others take labels off and close what they opened."""
        if not (await self.actor(notice.repo, notice.sender)).may_steer:
            return None
        now = await self._github.issue(notice.repo, notice.issue.number)
        if notice.label.casefold() in now.labels:
            return None
        turn = await self._github.label_turn(notice.repo, notice.issue.number, notice.label)
        key = label_key(turn) if turn and not turn.on else ""
        return Fact(event=e.RequestWithdrawn(issue=notice.issue, by=notice.sender), key=key)

    async def issue_closed(self, notice: IssueClosed) -> Fact | None:
        now = await self._github.issue(notice.repo, notice.issue.number)
        if now.open or not (await self.actor(notice.repo, notice.sender)).may_steer:
            return None
        if notice.not_planned:
            return Fact(event=e.IssueDropped(issue=notice.issue, by=notice.sender), key=issue_key(now))
        return Fact(event=e.RequestWithdrawn(issue=notice.issue, by=notice.sender), key=issue_key(now))

    def pull_moved(self, task: Task, notice: PullMoved, pull: Pull) -> Fact | None:
        """What a pull request's move means, as it is now."""
        seen = f"seen/{task.issue}/pull/{pull.number}"
        if pull.merged:
            return Fact(event=e.Merged(issue=task.issue, by=notice.sender), key=f"{seen}/merged")
        match notice.how:
            case "closed" if not pull.open:
                key = f"{seen}/closed/{pull.closed}"
                return Fact(event=e.PullClosed(issue=task.issue, by=notice.sender), key=key)
            case "reopened" if pull.open:
                key = f"{seen}/reopened/{pull.updated}"
                return Fact(event=e.PullReopened(issue=task.issue, by=notice.sender), key=key)
            case "synchronize":
                key = f"{seen}/head/{pull.head}/{pull.updated}"  # it may come back to where it was
                return Fact(event=e.CommitsPushed(issue=task.issue, head=pull.head), key=key)
        return None

    async def reviewed(self, task: Task, notice: Reviewed) -> Fact | None:
        key = review_key(notice.node, notice.state)
        if notice.state == "dismissed":
            event = e.ApprovalDismissed(issue=task.issue)
            return Fact(event=event, key=key) if task.approved == notice.commit else None
        actor = await self.actor(notice.repo, notice.sender)
        if notice.state == "approved":
            pull = await self._github.pull(notice.repo, notice.pull)
            told = {"commit": notice.commit, "head": pull.head, "pull": pull.number}
            return Fact(event=e.Approved(issue=task.issue, actor=actor, **told), key=key)  # type: ignore[arg-type]
        if (review := await self._brief(notice, of_a_stranger=not actor.may_steer)) is None:
            return None
        said = e.Said("review", notice.node)
        return Fact(event=e.ChangesRequested(issue=task.issue, actor=actor, said=said, review=review), key=key)

    async def _brief(self, notice: Reviewed, *, of_a_stranger: bool) -> e.Review | None:
        """The whole review is one brief; a comment without threads asks for nothing. A stranger's only shows whether
        it has one: nobody reads it."""
        most = {"most": 1} if of_a_stranger else {}
        threads = await self._github.review_threads(notice.repo, notice.pull, notice.review, **most)
        if notice.state == "commented" and not threads:
            return None
        return e.Review(by=notice.sender, text=notice.text, threads=threads)


def issue_key(closed: Issue) -> str:
    return f"seen/closed/{closed.node}/{closed.closed}"


def label_key(turn: LabelTurn) -> str:
    return f"seen/unlabelled/{turn.id}"


def review_key(node: str, verdict: Verdict) -> str:
    return f"seen/review/{node}" + ("/dismissed" if verdict == "dismissed" else "")
