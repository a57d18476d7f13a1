"""Events: what happened, as frozen facts in the past tense, without behaviour.

The events of a conversation outside of GitHub concern no task yet. Those of a task are of three
families: an `Ask` is a person's wish and needs authority; a `RunFact` comes from one agent run, and
is void when another run has replaced it; every other event is a plain fact.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from osiris.core.errors import Refused
from osiris.core.review import Review
from osiris.core.work import Work


@dataclass(frozen=True, slots=True)
class IssueRef:
    """An issue, which is also the task; `repo` is "owner/name"."""

    repo: str
    number: int

    def __str__(self) -> str:
        return f"{self.repo}#{self.number}"


class Role(StrEnum):
    """A person's `role_name` in a repository, as GitHub's collaborator API returns it."""

    NONE = "none"
    READ = "read"
    TRIAGE = "triage"
    WRITE = "write"
    MAINTAIN = "maintain"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Actor:
    login: str
    role: Role

    @property
    def may_steer(self) -> bool:
        """Return whether the person has write access: only such people start, steer or approve
        work."""
        return self.role in (Role.WRITE, Role.MAINTAIN, Role.ADMIN)


class Authentication(StrEnum):
    """The way in which it was established who made a request."""

    OPERATOR = "operator"
    """Osiris's own command line: only the operator can write to its database."""
    GITHUB = "github"
    """A GitHub login, which GitHub or a linked account has established."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The maker of a request. A principal has no role: it is looked up in the repository."""

    name: str
    authentication: Authentication


@dataclass(frozen=True, slots=True)
class Address:
    """A conversation in a channel; `conversation` is the channel's own name for it.

    Raises Refused for a name that could not be stored.
    """

    channel: str
    conversation: str

    def __post_init__(self) -> None:
        if not 0 < len(self.conversation) <= 255 or "\0" in self.conversation:
            raise Refused("the name of the conversation has not 1 to 255 characters")

    def __str__(self) -> str:
        return f"{self.channel}:{self.conversation}"


@dataclass(frozen=True, slots=True)
class SourceRef:
    """The place of a person's words on GitHub: a comment by its database id, a review by its node
    id."""

    kind: Literal["comment", "review"]
    id: str


# ── conversations outside of GitHub ───────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMade:
    """Somebody requested work that has no issue yet; `key` identifies the request.

    `repo` is "" when the person did not say it. `address` is where the person is answered; None for
    one who is not.
    """

    key: str
    repo: str
    title: str
    body: str
    principal: Principal
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageReceived:
    """A person wrote in a conversation, without a new request; `key` identifies the message."""

    address: Address
    key: str
    principal: Principal
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFiled:
    """The request of a conversation is an issue now."""

    address: Address
    issue: IssueRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """The request of a conversation could not be filed; `key` is that of the attempt."""

    address: Address
    key: str
    reason: str


ConversationEvent = RequestMade | MessageReceived | RequestFiled | RequestRefused


# ── tasks ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent:
    issue: IssueRef


# ── asks: a person's wish ─────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask(TaskEvent):
    actor: Actor
    said: SourceRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRequested(Ask):
    """`address` is the conversation in which it was requested; None for GitHub."""

    title: str
    body: str
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanApproved(Ask): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered(Ask):
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangesRequested(Ask):
    review: Review


@dataclass(frozen=True, slots=True, kw_only=True)
class Approved(Ask):
    """`commit` was approved while `head` was the head of pull request `pull`, according to
    GitHub."""

    commit: str
    head: str
    pull: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Ask): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequested(Ask):
    """`title` and `body` are those of the issue now; "" where nobody has read them."""

    title: str = ""
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChosen(Ask):
    """A person chose `model` for the steps to come; `trouble` is why that model cannot work."""

    model: str
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusAsked(Ask): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HelpAsked(Ask):
    """A person asked for help; `unknown` is a command that Osiris does not know, else empty."""

    unknown: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainComment(TaskEvent):
    """A person with write access wrote something that starts nothing: a comment without a command,
    or (only `on_pull`) a review that is a mere comment."""

    on_pull: bool


# ── facts of one run ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFact(TaskEvent):
    run: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningStarted(RunFact): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(RunFact): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReady(RunFact):
    plan: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionAsked(RunFact):
    question: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchReady(RunFact):
    """A run handed in its work: `tree` and `base` are object ids in the host repository, `at` is in
    seconds since 1970."""

    tree: str
    base: str
    at: int
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class NothingToChange(RunFact):
    """A run that answered a review without changing a file; `summary` is its answer."""

    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFailed(RunFact):
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSpent(RunFact):
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHalted(RunFact):
    """A run stopped until a person changes something outside of it, such as a rejected key."""

    reason: str


# ── other facts ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRefused(TaskEvent):
    """An order without which the task cannot go on was refused for good."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderParked(TaskEvent):
    """An order without which the task cannot go on waits for a person; a retry requeues it.

    `run` is the run whose work it was to push, if it was a push.
    """

    reason: str
    run: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLost(TaskEvent):
    """Nothing can be written in the repository for now: it is archived, or the App is suspended or
    uninstalled."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRegained(TaskEvent):
    """The repository can be written again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPushed(TaskEvent):
    """Work was pushed as commit `head`; `answered` are the reviews that it answers."""

    head: str
    answered: tuple[Review, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOpened(TaskEvent):
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitsPushed(TaskEvent):
    """The head of the pull request's branch is now `head`."""

    head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChecksFailed(TaskEvent):
    head: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflicted(TaskEvent):
    head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalDismissed(TaskEvent): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged(TaskEvent):
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PullClosed(TaskEvent):
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReopened(TaskEvent):
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueDropped(TaskEvent):
    """The issue was closed as not planned."""

    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestWithdrawn(TaskEvent):
    """The trigger label was removed, or the issue closed without a merged pull request."""

    by: str


Event = ConversationEvent | TaskEvent
