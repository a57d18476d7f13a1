"""Effects: what was decided and is to be done, as frozen orders without behaviour."""

from dataclasses import dataclass
from enum import StrEnum

from osiris.core.events import Address, IssueRef, Principal, SourceRef
from osiris.core.review import Remark, Review
from osiris.core.work import Work


class Purpose(StrEnum):
    """The reason for a run."""

    PLAN = "plan"
    BUILD = "build"
    REVISE = "revise"
    FIX_CHECKS = "fix_checks"
    RESOLVE_CONFLICT = "resolve_conflict"


class Topic(StrEnum):
    """The subject of a reply that is posted once; `bot/github/comments.py` writes the text."""

    REFUSED = "refused"
    HELP = "help"
    STATUS = "status"
    ANSWER = "answer"
    BROKEN = "broken"
    MODEL = "model"
    PLAIN_COMMENT = "plain_comment"


class MessageTopic(StrEnum):
    """The subject of a message to a conversation; `bot/channels/messages.py` writes the text."""

    WHICH_REPOSITORY = "which_repository"
    UNCLEAR_REPOSITORY = "unclear_repository"
    BUSY = "busy"
    WITHDRAWN = "withdrawn"
    REFUSED = "refused"
    FILING = "filing"
    FILED = "filed"
    NOT_STARTED = "not_started"
    ELSEWHERE = "elsewhere"
    PULL_OPENED = "pull_opened"
    STATE_CHANGED = "state_changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIssue:
    """File a request as an issue; `key` keeps it single. `address` is the conversation that is told
    the outcome; None: none is."""

    key: str
    repo: str
    title: str
    body: str
    principal: Principal
    address: Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SendMessage:
    """Send one message to a conversation outside of GitHub; `dedup_key` identifies it there.

    `issue` is the issue that the message is about, if there is one.
    """

    address: Address
    topic: MessageTopic
    dedup_key: str
    issue: IssueRef | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    issue: IssueRef


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRun(Order):
    """Let an agent work. `steps`, `minutes` and `usd` (US dollars; None: unlimited) limit the run
    as a whole, with all its budget grants. `model` is VENDOR:MODEL, or "" for the operator's.
    `failure` is why the run before this one failed, "" when it did not.

    `remarks`, and `left_out` (what of them is missing, in sentences), are read when the run starts.
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
    failure: str = ""
    remarks: tuple[Remark, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchModel(Order):
    """Use `model` from the next step of a run on, if the run is active."""

    run: int
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRun(Order):
    """End a run if it is active, and remove its workspace; with `keep` it can be resumed later."""

    run: int
    keep: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueParked(Order):
    """Requeue the orders that were parked since the task's last run began. It is carried out in the
    same transaction as the decision."""


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
    """Remove the draft mark: a person approved `commit`, which must still be the head."""

    pull: int
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Order):
    """Update the status comments and the check run to the current state of the task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply(Order):
    """Post one comment once; `dedup_key` identifies it on the issue."""

    topic: Topic
    dedup_key: str
    to: str = ""
    detail: str = ""
    on_pull: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class React(Order):
    """Add 👀 to what a person wrote: it was read."""

    said: SourceRef


Effect = (
    OpenIssue
    | SendMessage
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
"""Orders that a task cannot do without. When one is refused, the task fails; when one is parked, it
pauses. Both give the reason."""
