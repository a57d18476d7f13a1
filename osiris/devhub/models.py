"""The data of the hub: people, repositories, issues, pull requests, reviews, checks and apps."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from osiris.devhub.git_repository import GitRepository
from osiris.devhub.tokens import KeyPair

ROLES = ("none", "read", "triage", "write", "maintain", "admin")


@dataclass(kw_only=True, eq=False)
class Resource:
    """An object with GitHub's two identifiers: a number (`id`) and an opaque string (`node_id`)."""

    id: int
    kind = "T"

    @property
    def node_id(self) -> str:
        word = (
            base64.urlsafe_b64encode(b"\x92\xce" + self.id.to_bytes(6, "big")).decode().rstrip("=")
        )
        return f"{self.kind}_kwDO{word}"


@dataclass(kw_only=True, eq=False)
class User(Resource):
    """An account: a person, an organization or an app's bot. `key` gives access to the review page,
    `token` to the API."""

    kind = "U"
    login: str
    type: str = "User"
    token: str = ""
    key: str = ""
    created: float = 0.0
    app: App | None = None


@dataclass(kw_only=True, eq=False)
class Label(Resource):
    kind = "LA"
    name: str
    color: str = "ededed"
    description: str | None = None


@dataclass(kw_only=True, eq=False)
class Reaction(Resource):
    kind = "REA"
    user: User
    content: str
    created: float


@dataclass(kw_only=True, eq=False)
class AuthoredText(Resource):
    """A text by an account that others may react to; `by_app` is the app whose token wrote it."""

    author: User
    body: str
    created: float
    updated: float
    by_app: App | None = None
    reactions: list[Reaction] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class Comment(AuthoredText):
    kind = "IC"
    issue: Issue


@dataclass(kw_only=True, eq=False)
class Issue(AuthoredText):
    """An issue, or the conversation of the pull request with the same number (then `pull` is
    set)."""

    kind = "I"
    repo: Repo
    number: int
    title: str
    state: str = "open"
    state_reason: str | None = None
    closed: float | None = None
    closed_by: User | None = None
    labels: list[Label] = field(default_factory=list)
    comments: list[Comment] = field(default_factory=list)
    pull: Pull | None = None
    locked: bool = False
    lock_reason: str | None = None
    timeline: list[Note] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Note:
    """A line of a conversation: the person who closed, labeled, pushed or merged, and when.

    `event` is its name in the list of the issue's events, "" for a line that is not listed there;
    `label`, `commit` and `lock_reason` are its subject.
    """

    id: int
    by: User
    text: str
    at: float
    event: str = ""
    label: Label | None = None
    commit: str | None = None
    lock_reason: str | None = None


@dataclass(kw_only=True, eq=False)
class Pull(Resource):
    """A pull request; its text, state and labels are in `issue`."""

    kind = "PR"
    issue: Issue
    head_ref: str
    head_sha: str
    base_ref: str
    base_sha: str
    draft: bool = False
    merged_at: float | None = None
    merged_by: User | None = None
    merge_commit: str | None = None
    reviews: list[PullReview] = field(default_factory=list)
    threads: list[ReviewThread] = field(default_factory=list)

    @property
    def repo(self) -> Repo:
        return self.issue.repo

    @property
    def number(self) -> int:
        return self.issue.number

    @property
    def title(self) -> str:
        return self.issue.title

    @property
    def body(self) -> str:
        return self.issue.body

    @property
    def state(self) -> str:
        return self.issue.state

    @property
    def author(self) -> User:
        return self.issue.author

    @property
    def merged(self) -> bool:
        return self.merged_at is not None

    @property
    def line_comments(self) -> list[LineComment]:
        """All published line comments, oldest first."""
        return sorted(
            (c for t in self.threads for c in t.comments if not c.review.pending),
            key=lambda c: c.id,
        )


@dataclass(kw_only=True, eq=False)
class PullReview(AuthoredText):
    """A review; `submitted` is None while it is pending and only its author sees it."""

    kind = "PRR"
    pull: Pull
    state: str
    commit: str
    submitted: float | None = None
    comments: list[LineComment] = field(default_factory=list)

    @property
    def pending(self) -> bool:
        return self.state == "PENDING"


@dataclass(kw_only=True, eq=False)
class LineComment(AuthoredText):
    """A comment on lines of a diff, or on a file.

    `line` is the last of its lines, and `start_line` the first one of several. They are None when
    the comment is on the whole file, and when later commits have changed the lines.
    """

    kind = "PRRC"
    review: PullReview
    thread: ReviewThread
    path: str
    line: int | None
    side: str
    original_line: int | None
    commit: str
    original_commit: str
    hunk: str
    position: int | None
    original_position: int
    reply_to: LineComment | None = None
    start_line: int | None = None
    original_start_line: int | None = None
    start_side: str | None = None

    @property
    def is_on_file(self) -> bool:
        return self.original_line is None

    @property
    def is_outdated(self) -> bool:
        return self.position is None


@dataclass(kw_only=True, eq=False)
class ReviewThread(Resource):
    """A line comment and its replies."""

    kind = "PRRT"
    pull: Pull
    comments: list[LineComment] = field(default_factory=list)
    resolved_by: User | None = None


@dataclass(kw_only=True, eq=False)
class CheckSuite(Resource):
    kind = "CS"
    repo: Repo
    app: App
    sha: str
    created: float
    runs: list[CheckRun] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class CheckRun(Resource):
    kind = "CR"
    suite: CheckSuite
    name: str
    started: float
    status: str = "queued"
    conclusion: str | None = None
    completed: float | None = None
    external_id: str = ""
    details_url: str | None = None
    output: dict[str, str | None] = field(default_factory=dict)
    actions: list[dict[str, str]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return self.suite.sha

    @property
    def app(self) -> App:
        return self.suite.app


@dataclass(kw_only=True, eq=False)
class Repo(Resource):
    """A repository; `heads` are the branches as last published by the hub."""

    kind = "R"
    owner: User
    name: str
    git: GitRepository
    default_branch: str
    created: float
    private: bool = False
    archived: bool = False
    collaborators: dict[str, str] = field(default_factory=dict)
    labels: dict[str, Label] = field(default_factory=dict)
    issues: dict[int, Issue] = field(default_factory=dict)
    suites: list[CheckSuite] = field(default_factory=list)
    heads: dict[str, str] = field(default_factory=dict)

    @property
    def full_name(self) -> str:
        return f"{self.owner.login}/{self.name}"

    @property
    def pulls(self) -> dict[int, Pull]:
        return {number: issue.pull for number, issue in self.issues.items() if issue.pull}

    @property
    def checks(self) -> list[CheckRun]:
        return [run for suite in self.suites for run in suite.runs]

    def get_role(self, user: User) -> str:
        """Return the person's role in this repository; anyone may read a public one."""
        if user is self.owner:
            return "admin"
        return self.collaborators.get(user.login.lower(), "none" if self.private else "read")


@dataclass(kw_only=True, eq=False)
class App(Resource):
    """A GitHub App; `bot` is the account it acts as. Its webhooks are sent as "json" or "form"."""

    kind = "A"
    slug: str
    bot: User
    owner: User
    keys: KeyPair
    client_id: str
    webhook_url: str
    webhook_secret: str
    webhook_content_type: str = "json"
    permissions: Mapping[str, str]
    events: tuple[str, ...]
    created: float
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def private_key(self) -> str:
        return self.keys.private


@dataclass(kw_only=True, eq=False)
class Installation(Resource):
    """An installation of an app on an account; `suspended` is the time of its suspension, or
    None."""

    kind = "MDIzOkluc3RhbGxhdGlvbg"
    app: App
    account: User
    created: float
    suspended: float | None = None
    suspended_by: User | None = None
    repos: list[Repo] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class Delivery(Resource):
    """One attempt to send a webhook; a redelivery is a new record with the same `guid`."""

    guid: str
    app: App
    event: str
    action: str | None
    body: bytes
    installation: Installation | None
    repo: Repo | None
    redelivery: bool = False
    delivered: float | None = None
    duration: float = 0.0
    status: str = "pending"
    status_code: int = 0
    request_headers: dict[str, str] = field(default_factory=dict)
    response_headers: dict[str, str] = field(default_factory=dict)
    response_body: str = ""


@dataclass(frozen=True, kw_only=True)
class HubEvent:
    """An event that the hub publishes to its apps; `subject` has the objects of the payload."""

    event: str
    action: str | None
    repo: Repo
    by: User
    subject: Mapping[str, Any]
