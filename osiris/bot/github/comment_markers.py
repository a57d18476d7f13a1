"""Hidden marks: how Osiris knows again what it made at GitHub itself."""

import hashlib
import re

from osiris.core.events import IssueRef


def build_marker(issue: IssueRef, kind: str) -> str:
    return f"<!-- osiris:task={issue} kind={_encode_kind(kind)} -->"


def is_marked(body: str, issue: IssueRef, kind: str) -> bool:
    """Whether a comment ends with this marker; the repository may have had another name when it was
    written."""
    mark = rf"<!-- osiris:task=\S*#{issue.number} kind={_encode_kind(kind)} -->\s*\Z"
    return re.search(mark, body) is not None


def _encode_kind(kind: str) -> str:
    return kind if kind == "status" else f"reply-{hash_key(kind)}"


def parse_number(task: str) -> str:
    """The issue's number in the name of a task, whatever its repository was called then."""
    return task.rpartition("#")[2]


def hash_key(key: str) -> str:
    """A marker must not be breakable by what stands in it."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
