"""The first messages of a run: the system prompt from a text file, and a brief built from facts."""

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files

from osiris.agents.roles import ENGINEER
from osiris.core.effects import Purpose, StartRun
from osiris.core.events import Review, Thread
from osiris.core.ports.models import Message
from osiris.core.sanitize import clean_text, cut_text

# characters of untrusted text: of an issue, a review's text, its threads, an instructions file
_LIMIT = 30_000
# characters: of the diff hunk above a comment, of a comment, of a path
_HUNK = 2_000
_COMMENT = 8_000
_PATH = 1_000

_TASKS = {
    Purpose.PLAN: "Plan the work for this issue.",
    Purpose.BUILD: "Work on this issue.",
    Purpose.REVISE: (
        "Your pull request for this issue was reviewed. Answer the review with changes to the code."
    ),
    Purpose.FIX_CHECKS: (
        "The checks of your pull request for this issue fail. Find out why and fix it."
    ),
    Purpose.RESOLVE_CONFLICT: (
        "Your branch for this issue conflicts with its base. Resolve the conflict."
    ),
}


def build_messages(
    order: StartRun, instructions: Mapping[str, str], prompt: str = ENGINEER.prompt
) -> list[Message]:
    """Return the first two messages of a transcript: the system prompt, from a file in `prompts/`,
    and the brief."""
    return [
        Message(role="system", text=read_prompt(prompt)),
        Message(role="user", text="\n\n".join(_write_brief(order, instructions))),
    ]


def read_prompt(name: str = ENGINEER.prompt) -> str:
    """Return a system prompt; it is the same for every run of a role."""
    return files("osiris.agents").joinpath(f"prompts/{name}").read_text("utf-8")


def _write_brief(order: StartRun, instructions: Mapping[str, str]) -> Iterator[str]:
    yield _TASKS[order.purpose]
    body = _strip_comments(order.body[:_LIMIT])
    head = f'<issue number="{order.issue.number}">'
    yield f"{head}\n{_escape_tags(order.title)}\n\n{_escape_tags(body)}\n</issue>"
    for review in order.reviews:
        yield _write_review(review)
    for path, text in instructions.items():
        yield (
            "<instructions"
            f' path="{_escape_attribute(path)}">\n{_escape_tags(text)}\n</instructions>'
        )


def _write_review(review: Review) -> str:
    """Return one review with as many of its threads as fit.

    Comments take precedence over code: if a thread does not fit, it is shown without its hunk.
    """
    shown = []
    room = _LIMIT
    for thread in review.threads:
        for hunk in (_cut_hunk(thread.hunk), ""):
            text = _write_thread(thread, hunk)
            if len(text) <= room:
                break
        else:
            break
        shown.append(text)
        room -= len(text)
    if left := len(review.threads) - len(shown):
        shown.append(f"[{left} more comments of this review are not shown here.]")
    words = _escape_tags(_strip_comments(review.text[:_LIMIT]))
    return (
        f'<review by="{_escape_attribute(review.by)}">\n{words}\n'
        + "\n\n".join(shown)
        + "\n</review>"
    )


def _write_thread(thread: Thread, hunk: str) -> str:
    words = _escape_tags(cut_text(_strip_comments(thread.text[:_LIMIT]), _COMMENT))
    opening = f'<thread file="{_escape_attribute(thread.path)}" line="{thread.line or "?"}">'
    return f"{opening}\n{_escape_tags(hunk)}\n---\n{words}\n</thread>"


def _cut_hunk(hunk: str) -> str:
    """Return the end of a hunk, where the comment is attached.

    The agent can read the part before it in the file.
    """
    return hunk if len(hunk) <= _HUNK else f"…{hunk[-_HUNK:]}"


def _strip_comments(text: str) -> str:
    """Return text without HTML comments, which GitHub does not render.

    A comment inside a code block is rendered, so it is kept.
    """
    parts = _FENCED.split(text)  # every second part is a code block
    found = sum(part.count("<!--") for part in parts[::2])
    if not found:
        return text
    parts[::2] = [_COMMENTED.sub("", part) for part in parts[::2]]
    return (
        "".join(parts) + f"\n\n[{found} HTML comments, which GitHub does not show, were left out.]"
    )


def _escape_tags(text: str) -> str:
    """Return untrusted text, changed so that it cannot open or close one of our tags.

    Hidden characters are removed first, because one inside a tag name would hide the tag from the
    pattern.
    """
    return _TAG.sub("‹", clean_text(text[:_LIMIT]))


def _escape_attribute(text: str) -> str:
    """Return untrusted text as an attribute value; it cannot end the attribute."""
    return " ".join(_escape_tags(text[:_PATH]).split()).replace('"', "'")


_FENCED = re.compile(r"(?ms)(^ {0,3}(?:```|~~~).*?(?:^ {0,3}(?:```|~~~)[^\n]*$|\Z))")
_COMMENTED = re.compile(r"(?s)<!--.*?(?:-->|\Z)")
_TAG = re.compile(
    "(?i)[<\uff1c\ufe64\u1438\u02c2\u276e\u3008\u27e8\u2329\u226a\u300a](?=\\s*+[/\uff0f]?+\\s*+"
    r"(?:issue|review|thread|instructions|[a-z]{0,12}[^\x00-\x7f\s]))"
)
"""The start of one of our tags, or of a tag whose name has non-ASCII letters, which can look like
ours. The brackets are `<` and characters that look like it."""
