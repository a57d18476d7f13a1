"""The content of the review page for a pull request: the timeline, the checks, and the diff with
its comments."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

from osiris.devhub import diffs, pulls
from osiris.devhub.git_repository import Change
from osiris.devhub.models import (
    CheckRun,
    Comment,
    Issue,
    Note,
    Pull,
    PullReview,
    ReviewThread,
    User,
)

MOST_ROWS = 2_000
MOST_TEXT = 400_000


@dataclass(frozen=True, kw_only=True)
class DiffLine:
    """A line of a diff with its colours; `side` and `line` are the position for a comment on it."""

    kind: str
    old: int | None
    new: int | None
    html: Markup
    side: str
    line: int | None
    threads: list[ReviewThread] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class DiffFile:
    """A changed file; when there is nothing to show, `rows` is empty and `note` has the reason.
    `apart` are the threads that are outdated or on the whole file."""

    change: Change
    rows: list[DiffLine]
    note: str = ""
    apart: list[ReviewThread] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TimelineEntry:
    """An entry in the timeline of an issue or pull request."""

    kind: str
    at: float
    id: int
    what: Comment | PullReview | Note


def build_timeline(issue: Issue) -> list[TimelineEntry]:
    """Return comments, reviews and notes in the order of their times, without the reviews that only
    wrap a reply."""
    entries = [
        TimelineEntry(kind="comment", at=one.created, id=one.id, what=one) for one in issue.comments
    ]
    entries += [
        TimelineEntry(kind="note", at=one.at, id=one.id, what=one)
        for one in issue.timeline
        if one.text
    ]
    for review in issue.pull.reviews if issue.pull else []:
        replies = (
            review.comments
            and all(comment.reply_to for comment in review.comments)
            and not review.body
        )
        if review.submitted is not None and not replies:
            entries.append(
                TimelineEntry(kind="review", at=review.submitted, id=review.id, what=review)
            )
    return sorted(entries, key=lambda entry: (entry.at, entry.id))


def list_latest_checks(pull: Pull) -> list[CheckRun]:
    """Return the latest run of each name on the head commit."""
    return list(
        {
            (run.app.slug, run.name): run for run in pull.repo.checks if run.sha == pull.head_sha
        }.values()
    )


def build_diff(pull: Pull, viewer: User | None) -> list[DiffFile]:
    base = pulls.find_fork_point(pull)
    threads = _group_threads(pull, viewer)
    return [
        _build_file(pull, base, change, threads.get(change.path, []))
        for change in pulls.list_changes(pull)
    ]


def _group_threads(pull: Pull, viewer: User | None) -> dict[str, list[ReviewThread]]:
    """Return the threads that this person may see, by path: only their author sees pending ones."""
    found = defaultdict(list)
    for thread in pull.threads:
        top = thread.comments[0]
        if not top.review.pending or top.author is viewer:
            found[top.path].append(thread)
    return found


def _build_file(pull: Pull, base: str, change: Change, threads: list[ReviewThread]) -> DiffFile:
    tops = [thread.comments[0] for thread in threads]
    apart = [top.thread for top in tops if top.is_outdated or top.is_on_file]
    if change.patch is None:
        same = change.status == "renamed"
        return DiffFile(
            change=change,
            rows=[],
            note="Renamed without a change" if same else "No text to show",
            apart=apart,
        )
    rows = diffs.parse_patch(change.patch)
    if len(rows) > MOST_ROWS:
        return DiffFile(
            change=change,
            rows=[],
            note=f"{len(rows):,} lines: too many to show here",
            apart=apart,
        )
    git = pull.repo.git
    old = _highlight_lines(git.read_file(base, change.old_path), change.old_path)
    new = _highlight_lines(git.read_file(pull.head_sha, change.path), change.path)
    return DiffFile(change=change, rows=list(_build_lines(rows, old, new, threads)), apart=apart)


def _build_lines(
    rows: list[diffs.PatchLine], old: list[Markup], new: list[Markup], threads: list[ReviewThread]
) -> Iterator[DiffLine]:
    for row in rows:
        side = "LEFT" if row.kind == "removed" else "RIGHT"
        line = row.get_line_number(side)
        here = [
            one
            for one in threads
            if (one.comments[0].side, one.comments[0].line) == (side, line) and line
        ]
        source = old if side == "LEFT" else new
        html = source[line - 1] if line and line <= len(source) else escape(row.text)
        yield DiffLine(
            kind=row.kind, old=row.old, new=row.new, html=html, side=side, line=line, threads=here
        )


def _highlight_lines(data: bytes | None, path: str) -> list[Markup]:
    """Return a file's lines as coloured HTML; empty when it is not text that splits as in git."""
    if data is None or len(data) > MOST_TEXT:
        return []
    code = data.decode(errors="replace")
    try:
        lexer = get_lexer_for_filename(path, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return [escape(line) for line in code.split("\n")]
    formatter: Any = HtmlFormatter(nowrap=True)
    lines = highlight(code, lexer, formatter).split("\n")
    plain = code.split("\n")
    # a lexer treats a lone carriage return as the end of a line, git does not
    if abs(len(lines) - len(plain)) > 1 or "\r" in code.replace("\r\n", ""):
        return [escape(line) for line in plain]
    return [Markup(line) for line in lines]  # noqa: S704 — pygments escapes the code it colours


def build_code_css() -> str:
    """Return the CSS for the colours of code, for the light and the dark theme."""
    light = _list_color_rules("friendly")
    dark = _list_color_rules("github-dark")
    return (
        "\n".join(light) + "\n@media (prefers-color-scheme: dark) {\n" + "\n".join(dark) + "\n}\n"
    )


def _list_color_rules(style: str) -> list[str]:
    """Return the rules for a style's tokens only: no backgrounds, no line numbers."""
    formatter: Any = HtmlFormatter(style=style)
    css: str = formatter.get_style_defs(".code")
    return [
        line for line in css.splitlines() if line.startswith(".code .") and "background" not in line
    ]
