"""What happened, in our own words. Events are facts: frozen, past tense, no behaviour.

Three families: an `Ask` is a person's wish and needs authority; a `RunFact` comes from one agent
run and is void when another run has taken its place; every other event is a plain fact.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from osiris.core.work import Work


@dataclass(frozen=True, slots=True)
class IssueRef:
    """The issue is the task: `repo` is "owner/name"."""

    repo: str
    number: int

    def __str__(self) -> str:
        return f"{self.repo}#{self.number}"


class Role(StrEnum):
    """A person's `role_name` in a repository, as GitHub's collaborator look-up gives it."""

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
        """Only people with write access trigger, steer or approve."""
        return self.role in (Role.WRITE, Role.MAINTAIN, Role.ADMIN)


class Authentication(StrEnum):
    """How it was established who made a request."""

    OPERATOR = "operator"
    """Osiris's own command line: only the operator can write to its database."""
    GITHUB = "github"
    """A GitHub login, which GitHub or a linked account has established."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who made a request. A principal has no role: that is looked up in the repository."""

    name: str
    authentication: Authentication


@dataclass(frozen=True, slots=True)
class SourceRef:
    """Where a person's words stand on GitHub: a comment by its database id, a review by its node
    id."""

    kind: Literal["comment", "review"]
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """One line comment of a review, with the piece of diff it hangs on."""

    path: str
    line: int | None
    hunk: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A submitted review, whole: it is the brief of one run."""

    by: str
    text: str
    threads: tuple[Thread, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMade:
    """Somebody asked for work that has no issue yet; `key` is the request's own identity."""

    key: str
    repo: str
    title: str
    body: str
    principal: Principal


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
    title: str
    body: str


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
    """`commit` was approved while `head` was the end of pull request number `pull`, as GitHub says
    it."""

    commit: str
    head: str
    pull: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested(Ask): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryRequested(Ask): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChosen(Ask):
    """A person wants `model` to think from the next step on; `trouble` says why that model
    cannot."""

    model: str
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusAsked(Ask): ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HelpAsked(Ask):
    """`unknown` is the command we did not understand, empty when help itself was asked for."""

    unknown: str = ""


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
    """`tree` and `base` are git object ids in the host's own repository; `at` is in seconds since
    1970."""

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
    """A run that goes on where it stopped once a person has mended what halted it, for example a
    refused key."""

    reason: str


# ── other facts ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRefused(TaskEvent):
    """An order that the task cannot do without was refused for good."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderParked(TaskEvent):
    """An order that the task cannot do without waits for a person: once it is mended, a retry takes
    the order up.

    `run` is the run whose work it was to push, if that is what it was to do.
    """

    reason: str
    run: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessLost(TaskEvent):
    """Nothing can be written in the repository for now: archived, the App suspended or taken
    off."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessRegained(TaskEvent):
    """The repository can be written again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPushed(TaskEvent):
    """Work is on GitHub, as commit `head`; `answered` are the reviews it answers."""

    head: str
    answered: tuple[Review, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOpened(TaskEvent):
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitsPushed(TaskEvent):
    """The pull request's branch now ends at `head`."""

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
    """The trigger label was taken off, or the issue closed without a merged pull request."""

    by: str


Event = RequestMade | TaskEvent
