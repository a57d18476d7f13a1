"""Hidden markers by which Osiris recognizes what it created on GitHub."""

import hashlib
import re

from osiris.core.events import IssueRef


def build_marker(issue: IssueRef, kind: str) -> str:
    return f"<!-- osiris:task={issue} kind={_encode_kind(kind)} -->"


def is_marked(body: str, issue: IssueRef, kind: str) -> bool:
    """Return whether a comment ends with this marker. The repository may have had another name when
    it was written."""
    mark = rf"<!-- osiris:task=\S*#{issue.number} kind={_encode_kind(kind)} -->\s*\Z"
    return re.search(mark, body) is not None


def _encode_kind(kind: str) -> str:
    return kind if kind == "status" else f"reply-{hash_key(kind)}"


def parse_number(task: str) -> str:
    """Return the issue number in the name of a task, under any name of the repository."""
    return task.rpartition("#")[2]


def hash_key(key: str) -> str:
    """Return a hash of `key`, so that no character in it can break the marker."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
