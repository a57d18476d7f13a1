"""Untrusted text as an agent reads it: without what people cannot see, unable to open or close one
of our tags, and with a mark where something was removed or cut."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from osiris.core.markdown_comments import strip_comments
from osiris.core.review import Remark, Review, Thread, ThreadComment, cut_hunk
from osiris.core.sanitize import clean_text, count_hidden

TEXT_LIMIT = 65_536
"""Characters of any one text that are looked at; GitHub keeps no more."""

READ_MORE = "read_review shows it"
_PATH = 1_000  # characters
_COMMENTS = 20  # of a thread: the first, and the last ones
_SUGGESTION = re.compile(r"(?m)^ {0,3}(?:```+|~~~+)[ \t]*suggestion\b")


@dataclass(frozen=True, slots=True)
class BriefText:
    """A text for an agent; `removed` is what people could not see in the original, in words, and
    `cut` the number of characters that are missing at its end."""

    text: str
    removed: str = ""
    cut: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """The room of one thread: characters of each of its comments, and of its part of the diff."""

    comment: int = TEXT_LIMIT
    hunk: int = TEXT_LIMIT
    comments: int = _COMMENTS


WHOLE = Room(comments=1_000)
"""Room for everything that was stored."""


def prepare_text(text: str, most: int = TEXT_LIMIT, more: str = "") -> BriefText:
    """Return at most `most` characters of a text; `more` says where the rest can be read."""
    shown, comments = strip_comments(text[:TEXT_LIMIT])
    hidden = count_hidden(shown)
    removed = _describe_removed(comments, hidden)
    words = escape_tags(shown)
    cut = max(0, len(words) - most) + max(0, len(text) - TEXT_LIMIT)
    marks = []
    if cut:
        where = f"; {more}" if more else ""
        marks.append(f"[{cut} more characters{where}]")
    if removed:
        marks.append(f"[Removed here, because people do not see it: {removed}.]")
    return BriefText("\n\n".join([words[:most], *marks]), removed, cut)


def write_thread(thread: Thread, number: int, room: Room = WHOLE) -> BriefText:
    """Return a thread as a tag with its place, the end of its part of the diff, and its
    comments."""
    comments = thread.comments or (ThreadComment(by="", text=thread.text, is_new=True),)
    shown, left = _choose_comments(comments, room.comments)
    each = [prepare_text(comment.text, room.comment, READ_MORE) for comment in shown]
    parts = [
        _open_thread(thread, number),
        *_write_hunk(thread.hunk, room.hunk),
        *map(_write_comment, shown, each),
    ]
    if left:
        parts.insert(-len(shown) + 1, f"[{left} comments in between are left out; {READ_MORE}]")
    if any(_SUGGESTION.search(comment.text) for comment in shown):
        parts.append(f"[A block marked suggestion is the new text for {_describe_place(thread)}.]")
    removed = ", ".join(dict.fromkeys(text.removed for text in each if text.removed))
    cut = sum(text.cut for text in each)
    return BriefText("\n".join([*parts, "</thread>"]), removed, cut)


def write_remark(remark: Remark, most: int) -> BriefText:
    """Return a person's comment in the conversation as a tag."""
    prepared = prepare_text(remark.text, most)
    opening = f'<remark by="{escape_attribute(remark.by)}">'
    return BriefText(f"{opening}\n{prepared.text}\n</remark>", prepared.removed, prepared.cut)


def escape_tags(text: str) -> str:
    """Return untrusted text, changed so that it cannot open or close one of our tags.

    Hidden characters are removed first, because one inside a tag name would hide the tag from the
    pattern.
    """
    return _TAG.sub("‹", clean_text(text))


def escape_attribute(text: str) -> str:
    """Return untrusted text as an attribute value; it cannot end the attribute."""
    return " ".join(escape_tags(text[:_PATH]).split()).replace('"', "'")


def describe_thread(thread: Thread) -> str:
    """Return the place of a thread for people, such as `app.py:3`."""
    path = escape_attribute(thread.path)
    return path if thread.line is None else f"{path}:{thread.line}"


def find_thread(review: Review, number: int) -> Thread | None:
    """Return a thread by its number, from 1 on."""
    return review.threads[number - 1] if 0 < number <= len(review.threads) else None


def _open_thread(thread: Thread, number: int) -> str:
    attributes = [f'number="{number}" file="{escape_attribute(thread.path)}"']
    if thread.line is None:
        attributes.append('on="the whole file"')
    elif thread.start is None:
        attributes.append(f'line="{thread.line}"')
    else:
        attributes.append(f'lines="{thread.start}-{thread.line}"')
    if thread.side == "LEFT":
        attributes.append('side="before the change"')
    if thread.outdated:
        commit = escape_attribute(thread.outdated[:12])
        attributes.append(f'outdated="the code changed since; the lines are those of {commit}"')
    return f"<thread {' '.join(attributes)}>"


def _describe_place(thread: Thread) -> str:
    if thread.line is None:
        return "the file"
    return f"line {thread.line}" if thread.start is None else f"lines {thread.start}-{thread.line}"


def _write_hunk(hunk: str, room: int) -> Iterator[str]:
    """Yield the part of the diff above a comment: its `@@` line, and as many lines from its end as
    fit."""
    if not hunk:
        return
    head, *lines = escape_tags(cut_hunk(hunk)).split("\n")
    room -= len(head) + 1
    fitting: list[str] = []
    for line in reversed(lines):
        room -= len(line) + 1
        if room < 0:
            break
        fitting.append(line)
    yield head
    if left := len(lines) - len(fitting):
        yield f"[{left} lines of the diff are left out; the file has them]"
    yield from reversed(fitting)
    yield "---"


def _choose_comments(
    comments: Sequence[ThreadComment], most: int
) -> tuple[Sequence[ThreadComment], int]:
    """Return the first comment and the last ones, and how many are left out between them."""
    if len(comments) <= most:
        return comments, 0
    return [comments[0], *comments[1 - most :]], len(comments) - most


def _write_comment(comment: ThreadComment, prepared: BriefText) -> str:
    if not comment.by:
        return prepared.text
    outside = " without write access, so not a request" if comment.is_outside else ""
    new = " in this review" if comment.is_new else ""
    who = f'by="{escape_attribute(comment.by)}"'
    said = f' said="{(new + outside).strip()}"' if new or outside else ""
    return f"<remark {who}{said}>\n{prepared.text}\n</remark>"


def _describe_removed(comments: int, hidden: int) -> str:
    parts = []
    if comments:
        parts.append("1 Markdown comment" if comments == 1 else f"{comments} Markdown comments")
    if hidden:
        parts.append("1 hidden character" if hidden == 1 else f"{hidden} hidden characters")
    return " and ".join(parts)


_TAG = re.compile(
    "(?i)[<\uff1c\ufe64\u1438\u02c2\u276e\u3008\u27e8\u2329\u226a\u300a](?=\\s*+[/\uff0f]?+\\s*+"
    r"(?:issue|review|thread|remark|instructions|left_out|last_failure|[a-z]{0,12}[^\x00-\x7f\s]))"
)
"""The start of one of our tags, or of a tag whose name has non-ASCII letters, which can look like
ours. The brackets are `<` and characters that look like it."""
