"""The places of review comments: finding them in the diff of a pull request, and moving them with
the code when somebody pushes."""

from collections.abc import Sequence
from dataclasses import dataclass

from osiris.devhub import diffs
from osiris.devhub.errors import anchor_error
from osiris.devhub.git_repository import Change
from osiris.devhub.models import LineComment, Pull


@dataclass(frozen=True, kw_only=True)
class LineAnchor:
    """A new comment on a line of the diff, on the lines from `start_line` on, or on a whole file
    (then `line` is None)."""

    path: str
    body: str
    line: int | None
    side: str = "RIGHT"
    start_line: int | None = None
    start_side: str | None = None

    @property
    def first_side(self) -> str:
        """The side of the first line of a range; by default that of the last one."""
        return self.start_side or self.side


@dataclass(frozen=True, kw_only=True)
class Place:
    """The diff above a comment, and its position there."""

    hunk: str
    position: int


def locate_anchor(changes: Sequence[Change], anchor: LineAnchor, *, in_review: bool) -> Place:
    """Return the place of a new comment. Raise ApiError with the words that GitHub has for a
    comment of a review, or for a single one."""
    patches = {change.path: change.patch or "" for change in changes}
    if anchor.path not in patches:
        raise anchor_error("path", "could not be resolved", in_review=in_review)
    patch = patches[anchor.path]
    if anchor.line is None:
        return Place(hunk=patch, position=1)
    found = diffs.find_hunk(patch, anchor.line, anchor.side)
    if found is None:
        raise anchor_error("line", "must be part of the diff", in_review=in_review)
    hunk, position = found
    if anchor.start_line is not None:
        _check_range(anchor, anchor.start_line, anchor.line, hunk, in_review)
    return Place(hunk=hunk, position=position)


def _check_range(anchor: LineAnchor, start: int, last: int, hunk: str, in_review: bool) -> None:
    """Raise ApiError unless the first line of a range is above the last one, in the same hunk."""
    if anchor.first_side == anchor.side and start >= last:
        raise anchor_error("start_line", "must precede the end line.", in_review=in_review)
    # the hunk ends with the last line
    if diffs.find_hunk(hunk, start, anchor.first_side) is None:
        problem = "must be part of the same hunk as the line."
        raise anchor_error("start_line", problem, in_review=in_review)


# ── following pushes ──


def move_comments(pull: Pull, changes: Sequence[Change]) -> None:
    """Move the comments of a pull request with their lines to its new head commit. A comment whose
    lines were changed, or are not in the diff any more, becomes outdated."""
    by_path = {change.path: change for change in changes}
    for comment in (comment for thread in pull.threads for comment in thread.comments):
        if comment.is_outdated:
            continue
        _move_comment(pull, comment, by_path.get(comment.path))
        comment.commit = pull.head_sha


def _move_comment(pull: Pull, comment: LineComment, change: Change | None) -> None:
    """Move one comment; `change` is that of its file, or None when there is none any more."""
    if comment.line is None:
        comment.position = 1 if change else None
        return
    moved = _map_lines(pull, comment, change, comment.line) if change else None
    if change and moved:
        start, line = moved
        if (found := diffs.find_hunk(change.patch or "", line, comment.side)) is not None:
            comment.start_line = start
            comment.line = line
            comment.position = found[1]
            return
    comment.start_line = None
    comment.line = None
    comment.position = None


def _map_lines(
    pull: Pull, comment: LineComment, change: Change, last: int
) -> tuple[int | None, int] | None:
    """Return the new numbers of the first line (None unless the comment has a range) and the last
    one; None when one of the lines was changed."""
    moved = _diff_side(pull, comment, change, comment.side)
    line = diffs.map_line(moved, last)
    first = comment.start_line
    if line is None or first is None:
        return None if line is None else (None, line)
    if comment.start_side not in (None, comment.side):
        start = diffs.map_line(_diff_side(pull, comment, change, comment.start_side), first)
        return None if start is None else (start, line)
    # all lines of the range must be there, without others between them
    shift = line - last
    if any(diffs.map_line(moved, number) != number + shift for number in range(first, last)):
        return None
    return first + shift, line


def _diff_side(pull: Pull, comment: LineComment, change: Change, side: str | None) -> str:
    """Return what changed on one side of the diff since the comment's commit. The left side only
    changes when the pull request takes in commits of its base."""
    git = pull.repo.git
    if side == "RIGHT":
        return git.diff_path(comment.commit, pull.head_sha, comment.path)
    before = git.find_merge_base(pull.base_sha, comment.commit) or pull.base_sha
    after = git.find_merge_base(pull.base_sha, pull.head_sha) or pull.base_sha
    return git.diff_path(before, after, change.old_path)
