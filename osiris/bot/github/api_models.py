"""Models of GitHub's REST answers with only the fields that Osiris reads."""

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from osiris.core.errors import Refused
from osiris.core.review import Side

Verdict = Literal["approved", "changes_requested", "commented", "dismissed"]
"""The verdict of a review; `dismissed` means that it was taken back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSnapshot:
    """A pull request as it is now. `branch` is "" when it is in a fork, `merged_by` is "" while it
    is not merged.

    `closed` (also set by a merge) and `updated` are times in GitHub's notation.
    """

    number: int
    node: str
    open: bool
    merged: bool
    draft: bool
    head: str
    branch: str
    merged_by: str
    closed: str
    updated: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueSnapshot:
    """An issue as it is now, or the conversation of the pull request with that number. Labels are
    in lower case.

    `node` is its permanent id. `closed` (in GitHub's notation) and `closed_by` are "" while it is
    open; `dropped` is True when it was closed as not planned.
    """

    node: str
    title: str
    body: str
    open: bool
    labels: frozenset[str]
    closed: str = ""
    closed_by: str = ""
    dropped: bool = False

    @property
    def closed_at(self) -> float:
        """The time of closing in seconds since 1970; 0.0 while it is open."""
        return parse_time(self.closed) if self.closed else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedReview:
    """A submitted review; `id` and `node` are its two ids on GitHub."""

    id: int
    node: str
    by: str
    by_bot: bool
    verdict: Verdict
    text: str
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewComment:
    """A line comment; `top` is the id of the first comment of its thread, `review` the id of the
    review that it belongs to.

    `line` and `start` are None where the commit no longer has these lines; the `original` ones are
    those of `commit`, on which it was made, and None for a comment on the whole file.
    """

    id: int
    top: int
    review: int
    by: str
    text: str
    path: str
    hunk: str
    side: Side
    line: int | None
    start: int | None
    original_line: int | None
    original_start: int | None
    commit: str
    is_on_file: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationComment:
    """A comment below an issue or pull request."""

    by: str
    by_bot: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelChange:
    """A label that was added (`on`) or removed, at `at` (seconds since 1970); `id` is GitHub's id
    of that event."""

    id: int
    on: bool
    by: str
    by_bot: bool
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryStatus:
    """The present name of a repository, and why it cannot be written ("" when it can).

    `at` is GitHub's clock, in seconds since 1970.
    """

    repo: str
    problem: str = ""
    at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TouchedItems:
    """The issues and pull requests of a repository that were touched: number -> time in GitHub's
    notation.

    `is_unchanged` is True when the list equals that of the previous request, `is_renamed` when the
    repository has another name. `at` is GitHub's clock, in seconds since 1970.
    """

    rows: dict[int, str]
    etag: str
    at: float
    is_unchanged: bool = False
    is_renamed: bool = False


def parse_pull(data: dict[str, Any]) -> PullSnapshot:
    return PullSnapshot(
        number=data["number"],
        node=data["node_id"],
        open=data["state"] == "open",
        merged=bool(data.get("merged") or data.get("merged_at")),
        draft=data["draft"],
        head=data["head"]["sha"],
        branch=data["head"]["ref"] if _is_same_repository(data) else "",
        merged_by=parse_login(data.get("merged_by")),
        closed=data["closed_at"] or "",
        updated=data["updated_at"],
    )


def _is_same_repository(pull: dict[str, Any]) -> bool:
    """Return whether the branch is in this repository; the branch of a fork may have any name."""
    home = pull["base"]["repo"]["full_name"]
    head = pull["head"]["repo"]
    return bool(head) and head["full_name"] == home


def parse_login(user: dict[str, Any] | None) -> str:
    """Return the login; for a deleted account, GitHub's placeholder "ghost"."""
    return str(user["login"]) if user else "ghost"


def parse_issue(data: dict[str, Any]) -> IssueSnapshot:
    return IssueSnapshot(
        node=data["node_id"],
        title=data["title"],
        body=data["body"] or "",
        open=data["state"] == "open",
        labels=frozenset(label["name"].casefold() for label in data["labels"]),
        closed=data["closed_at"] or "",
        closed_by=parse_login(data.get("closed_by")) if data["closed_at"] else "",
        dropped=data.get("state_reason") in ("not_planned", "duplicate"),
    )


def parse_review(data: dict[str, Any]) -> SubmittedReview | None:
    """Parse a review; None for a pending one, which only its author can see."""
    verdict = data["state"].lower()
    if verdict not in ("approved", "changes_requested", "commented", "dismissed"):
        return None
    return SubmittedReview(
        id=data["id"],
        node=data["node_id"],
        by=parse_login(data["user"]),
        by_bot=_is_bot(data["user"]),
        verdict=verdict,
        text=data["body"] or "",
        commit=data["commit_id"] or "",
    )


def _is_bot(user: dict[str, Any] | None) -> bool:
    return user is not None and user.get("type") == "Bot"


def parse_label_change(event: dict[str, Any], label: str) -> LabelChange | None:
    """Parse the change of a label (in lower case) from an issue event; None for another event."""
    on = event["event"] == "labeled"
    if (not on and event["event"] != "unlabeled") or event["label"]["name"].casefold() != label:
        return None
    actor = event["actor"]
    return LabelChange(
        id=event["id"],
        on=on,
        by=parse_login(actor),
        by_bot=_is_bot(actor),
        at=parse_time(event["created_at"]),
    )


def parse_line_comment(data: dict[str, Any]) -> ReviewComment:
    return ReviewComment(
        id=data["id"],
        top=data.get("in_reply_to_id") or data["id"],
        review=data.get("pull_request_review_id") or 0,
        by=parse_login(data["user"]),
        text=data["body"],
        path=data["path"],
        hunk=data["diff_hunk"],
        side="LEFT" if data.get("side") == "LEFT" else "RIGHT",
        line=data.get("line"),
        start=data.get("start_line"),
        original_line=data.get("original_line"),
        original_start=data.get("original_start_line"),
        commit=data["original_commit_id"],
        is_on_file=data.get("subject_type") == "file",
    )


def parse_comment(data: dict[str, Any]) -> ConversationComment:
    by_bot = _is_bot(data["user"])
    return ConversationComment(by=parse_login(data["user"]), by_bot=by_bot, text=data["body"] or "")


def parse_time(moment: str) -> float:
    """Parse a time in GitHub's notation into seconds since 1970."""
    return datetime.fromisoformat(moment).timestamp()


def decode_file(found: Any, path: str) -> str:
    """Return the text of a file from a `GET /contents` answer in the object form. Raises Refused.

    Above 1 MB GitHub gives no content in this form, which also keeps Osiris from reading huge
    files. https://docs.github.com/en/rest/repos/contents#get-repository-content
    """
    if found.get("type") != "file":
        raise Refused(f"`{path}` is not a file; fix it on the default branch")
    if found.get("encoding") != "base64":
        raise Refused(f"`{path}` is larger than 1 MB; fix it on the default branch")
    return base64.b64decode(found["content"]).decode("utf-8", "replace")
