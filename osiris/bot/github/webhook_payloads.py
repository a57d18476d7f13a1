"""Parser of GitHub's webhook JSON; no other module reads it. A delivery becomes a webhook event or
None.

The models have only the fields that Osiris reads. A delivery may be stale, so `interpreter.py`
reads the present state from GitHub.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import BaseModel

from osiris.bot.github.api_models import Verdict
from osiris.core.events import IssueRef


class _Repository(BaseModel):
    full_name: str
    id: int = 0


class _User(BaseModel):
    login: str
    type: str = "User"


class _Label(BaseModel):
    name: str


class _Issue(BaseModel):
    number: int
    title: str
    body: str | None = None
    state: str = "open"
    state_reason: str | None = None
    pull_request: object | None = None


class _Comment(BaseModel):
    id: int
    body: str | None = None
    user: _User | None = None


class _Head(BaseModel):
    ref: str
    repo: _Repository | None = None


class _Pull(BaseModel):
    number: int
    head: _Head
    merged: bool | None = None


class _Review(BaseModel):
    id: int
    node_id: str
    state: str
    body: str | None = None
    commit_id: str | None = None
    user: _User | None = None


class _Account(BaseModel):
    login: str = ""


class _Installation(BaseModel):
    account: _Account | None = None


class _Payload(BaseModel):
    action: str = ""
    installation: _Installation | None = None
    repository: _Repository | None = None
    sender: _User | None = None
    label: _Label | None = None
    issue: _Issue | None = None
    comment: _Comment | None = None
    pull_request: _Pull | None = None
    review: _Review | None = None


class _OrderedPayload(BaseModel):
    """The part of a payload that its ordering key is made of."""

    repository: _Repository | None = None
    issue: _Issue | None = None
    pull_request: _Pull | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """The common fields of webhook events: the repository and the sender. `repository` is GitHub's
    permanent number of `repo`."""

    repo: str
    repository: int = 0
    sender: str
    by_bot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled(WebhookEvent):
    issue: IssueRef
    title: str
    body: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unlabelled(WebhookEvent):
    issue: IssueRef
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commented(WebhookEvent):
    """A comment on an issue, or (`on_pull`) on a pull request's conversation."""

    number: int
    on_pull: bool
    is_open: bool
    title: str
    body: str
    comment: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueClosed(WebhookEvent):
    issue: IssueRef
    not_planned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewed(WebhookEvent):
    pull: int
    branch: str
    review: int
    node: str
    state: Verdict
    text: str
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PullStateChanged(WebhookEvent):
    """A pull request that was closed or reopened, or that received other commits."""

    pull: int
    branch: str
    how: Literal["closed", "reopened", "synchronize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessChanged:
    """A change of Osiris's access to repositories of `account` ("": any account)."""

    account: str


_ACCESS = {
    "installation": ("created", "deleted", "suspend", "unsuspend", "new_permissions_accepted"),
    "installation_repositories": ("added", "removed"),
    "repository": ("archived", "unarchived", "renamed", "transferred", "deleted"),
}


_ABOUT_ISSUES = ("issues", "issue_comment", "pull_request", "pull_request_review")
OUR_BRANCH = re.compile(r"osiris/(\d{1,9})-")
"""The start of the name of a branch of Osiris, with the number of its issue."""
_OUR_TEXT = re.compile(r"Closes #(\d{1,9}), asked for by")  # as `comments.write_pull_body` begins

_VERDICTS: Mapping[str, Verdict] = {verdict: verdict for verdict in get_args(Verdict)}


def parse_delivery(kind: str, body: bytes) -> WebhookEvent | AccessChanged | None:
    """Parse a delivery; return None for one that does not concern Osiris.

    Raises ValueError (also pydantic's, which is a subclass) when the body is not what GitHub sends.
    """
    payload = json.loads(body)
    if not isinstance(payload, dict):
        raise ValueError("not a JSON object")
    if kind in _ACCESS:
        return _parse_access(kind, _Payload.model_validate(payload))
    if kind not in _ABOUT_ISSUES:
        return None
    delivery = _Payload.model_validate(payload)
    if delivery.repository is None or delivery.sender is None:
        raise ValueError("no repository or no sender")
    return _parse_event(kind, delivery, delivery.repository, delivery.sender)


def read_ordering_key(kind: str, body: bytes) -> str:
    """Return the issue that a delivery is about, as the permanent number of its repository and the
    issue's number; "" for a delivery that is about none, or cannot be read.

    A pull request of Osiris counts as its issue. Its branch names the issue; a comment comes
    without the branch, but with the pull request's text, whose beginning names the issue too.
    """
    if kind not in _ABOUT_ISSUES:
        return ""
    try:
        delivery = _OrderedPayload.model_validate_json(body)
    except ValueError:
        return ""
    if delivery.repository is None:
        return ""
    number = _find_issue_number(delivery)
    return f"{delivery.repository.id or delivery.repository.full_name}#{number}" if number else ""


def _find_issue_number(delivery: _OrderedPayload) -> int:
    if (pull := delivery.pull_request) is not None:
        ours = OUR_BRANCH.match(pull.head.ref)
        return int(ours[1]) if ours else pull.number
    if (issue := delivery.issue) is None:
        return 0
    ours = _OUR_TEXT.match(issue.body or "") if issue.pull_request is not None else None
    return int(ours[1]) if ours else issue.number


def _parse_access(kind: str, payload: _Payload) -> AccessChanged | None:
    if payload.action not in _ACCESS[kind]:
        return None
    if payload.action == "transferred":  # the payload does not name the former account
        return AccessChanged(account="")
    if payload.repository is not None:
        return AccessChanged(account=payload.repository.full_name.partition("/")[0])
    account = payload.installation and payload.installation.account
    return AccessChanged(account=account.login if account else "")


def _parse_event(
    kind: str, payload: _Payload, repository: _Repository, sender: _User
) -> WebhookEvent | None:
    repo = repository.full_name
    common: dict[str, Any] = {
        "repo": repo,
        "repository": repository.id,
        "sender": sender.login,
        "by_bot": sender.type == "Bot",
    }
    match kind, payload:
        case "issues", _Payload(issue=_Issue() as issue):
            return _parse_issue_event(payload, issue, common)
        case "issue_comment", _Payload(
            action="created", issue=_Issue() as issue, comment=_Comment() as comment
        ):
            return Commented(
                **common,
                number=issue.number,
                on_pull=issue.pull_request is not None,
                is_open=issue.state == "open",
                title=issue.title,
                body=issue.body or "",
                comment=comment.id,
                text=comment.body or "",
            )
        case "pull_request", _Payload(
            action="closed" | "reopened" | "synchronize" as how, pull_request=_Pull() as pull
        ):
            return PullStateChanged(
                **common, pull=pull.number, branch=_own_branch(pull, repo), how=how
            )
        case (
            "pull_request_review",
            _Payload(
                action="submitted" | "dismissed",
                pull_request=_Pull() as pull,
                review=_Review() as review,
            ),
        ):
            return _parse_review(payload.action, pull, review, common)
    return None


def _parse_issue_event(
    payload: _Payload, issue: _Issue, common: dict[str, Any]
) -> WebhookEvent | None:
    ref = IssueRef(common["repo"], issue.number)
    match payload:
        case _Payload(action="labeled", label=_Label() as label):
            return Labelled(
                **common, issue=ref, title=issue.title, body=issue.body or "", label=label.name
            )
        case _Payload(action="unlabeled", label=_Label() as label):
            return Unlabelled(**common, issue=ref, label=label.name)
        case _Payload(action="closed"):
            dropped = issue.state_reason in ("not_planned", "duplicate")
            return IssueClosed(**common, issue=ref, not_planned=dropped)
    return None


def _own_branch(pull: _Pull, repo: str) -> str:
    """Return the branch in this repository; "" for a fork, whose branch may have any name."""
    return pull.head.ref if pull.head.repo and pull.head.repo.full_name == repo else ""


def _parse_review(
    action: str, pull: _Pull, review: _Review, common: dict[str, Any]
) -> Reviewed | None:
    state = _VERDICTS.get("dismissed" if action == "dismissed" else review.state.lower())
    if state is None:
        return None
    return Reviewed(
        **common,
        pull=pull.number,
        branch=_own_branch(pull, str(common["repo"])),
        review=review.id,
        node=review.node_id,
        state=state,
        text=review.body or "",
        commit=review.commit_id or "",
    )
