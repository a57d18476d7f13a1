"""What we decided to do. Effects are orders: frozen, imperative, no behaviour."""

from dataclasses import dataclass
from enum import StrEnum

from osiris.core.events import IssueRef, Principal, Review, SourceRef
from osiris.core.work import Work


class Purpose(StrEnum):
    """Why a run is started."""

    PLAN = "plan"
    BUILD = "build"
    REVISE = "revise"
    FIX_CHECKS = "fix_checks"
    RESOLVE_CONFLICT = "resolve_conflict"


class Topic(StrEnum):
    """What a one-off reply is about; the words are in `bot/comments.py`."""

    REFUSED = "refused"
    HELP = "help"
    STATUS = "status"
    ANSWER = "answer"
    BROKEN = "broken"
    MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIssue:
    """File a request as an issue; `key` keeps it single."""

    key: str
    repo: str
    title: str
    body: str
    principal: Principal


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    issue: IssueRef


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRun(Order):
    """Let an agent work. `steps`, `minutes` and `usd` (US dollars; None: any) bound the run as a
    whole, all its grants together. `model` is VENDOR:MODEL, or "" for the operator's.
    """

    run: int
    purpose: Purpose
    title: str
    body: str
    reviews: tuple[Review, ...]
    branch: str
    steps: int
    minutes: int
    usd: float | None = None
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchModel(Order):
    """Let `model` think from the next step of a run on, if it is under way."""

    run: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRun(Order):
    """End a run if it is under way, and remove its workspace; with `keep` it is only cut off, and
    can go on later."""

    run: int
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueParked(Order):
    """Try again what was parked since the task's last run began. It is done with the decision
    itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Push(Order):
    """Commit `tree` on top of `base` and push it to `branch`.

    `at` (seconds since 1970) makes the commit repeatable; `pull` is the pull request that must
    still be open.
    """

    run: int
    pull: int | None
    tree: str
    base: str
    branch: str
    at: int
    title: str
    requester: str
    reviews: tuple[Review, ...]
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDraftPull(Order):
    branch: str
    title: str
    request: str
    requester: str
    work: Work


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkReady(Order):
    """Take the draft mark off: a person approved `commit`, and it must still be the head."""

    pull: int
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Order):
    """Bring the status comments and the check run to what the task is now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Order):
    """Say one thing once; `once` is its identity on the issue."""

    topic: Topic
    dedup_key: str
    to: str = ""
    detail: str = ""
    on_pull: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class React(Order):
    """Put 👀 on what a person wrote: it was seen."""

    said: SourceRef


Effect = (
    OpenIssue
    | StartRun
    | SwitchModel
    | StopRun
    | RequeueParked
    | Push
    | OpenDraftPull
    | MarkReady
    | Report
    | Reply
    | React
)

ESSENTIAL = (StartRun, Push, OpenDraftPull)
"""Orders a task cannot do without: when one is refused, the task fails, and when one is parked, it
pauses; both say why.
"""
