"""Reviews of a pull request: what a person says, with the threads of line comments."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["LEFT", "RIGHT"]
"""The file before the change (LEFT) or after it, as GitHub names the sides of a diff."""

_HUNK_LINES = 20
_HUNK_LINE = 500  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadComment:
    """A comment of a thread. `is_new`: it belongs to the review that is answered; `is_outside`: its
    author has no write access."""

    by: str
    text: str
    is_new: bool = False
    is_outside: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Thread:
    """Line comments on one place, first to last, with the part of the diff that they belong to.

    `line` is the last line of that place, and `start` the first (None: the same); both are None for
    comments on the whole file. When the code was changed since, `outdated` is the commit whose
    lines these are, else "". `text` is the comment in a thread that an earlier version stored.
    """

    path: str
    line: int | None
    hunk: str
    text: str = ""
    start: int | None = None
    side: Side = "RIGHT"
    outdated: str = ""
    comments: tuple[ThreadComment, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """A complete submitted review: the brief of one run. `more_threads` is the number of its
    threads that were not read."""

    by: str
    text: str
    threads: tuple[Thread, ...] = ()
    more_threads: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark:
    """A comment in the conversation of an issue or pull request, by a person with write access."""

    by: str
    text: str


def cut_hunk(hunk: str) -> str:
    """Return the `@@` line of a hunk and the last 20 lines before the comment; a line says how many
    are left out, and each has at most 500 characters."""
    head, *lines = hunk.split("\n")
    left = len(lines) - _HUNK_LINES
    if left > 1:  # the line that says so takes the place of one
        noun = "lines of the diff are left out; the file has them"
        lines = [f"[{left} {noun}]", *lines[-_HUNK_LINES:]]
    return "\n".join(_cut_line(line) for line in (head, *lines))


def _cut_line(line: str) -> str:
    return line if len(line) <= _HUNK_LINE else f"{line[:_HUNK_LINE]}…"
