"""What a run is told: the prompt as a text file, and its brief made of facts."""

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files

from osiris.effects import Purpose, StartRun
from osiris.events import Review
from osiris.ports import Message
from osiris.sanitize import clean_text

_LIMIT = 30_000  # characters of foreign text in one brief

_TASKS = {
    Purpose.PLAN: "Plan the work for this issue.",
    Purpose.BUILD: "Work on this issue.",
    Purpose.REVISE: "Your pull request for this issue was reviewed. Answer the review with changes to the code.",
    Purpose.FIX_CHECKS: "The checks of your pull request for this issue fail. Find out why and fix it.",
    Purpose.RESOLVE_CONFLICT: "Your branch for this issue conflicts with its base. Resolve the conflict.",
}


def messages(order: StartRun, instructions: Mapping[str, str]) -> list[Message]:
    """The first two messages of a transcript."""
    return [
        Message(role="system", text=prompt()),
        Message(role="user", text="\n\n".join(_brief(order, instructions))),
    ]


def prompt() -> str:
    """What every agent is told first."""
    return files("osiris.agents").joinpath("prompts/engineer.md").read_text("utf-8")


def _brief(order: StartRun, instructions: Mapping[str, str]) -> Iterator[str]:
    yield _TASKS[order.purpose]
    yield f'<issue number="{order.issue.number}">\n{_inert(order.title)}\n\n{_inert(order.body)}\n</issue>'
    for review in order.reviews:
        yield _review(review)
    for path, text in instructions.items():
        yield f'<instructions path="{_attribute(path)}">\n{_inert(text)}\n</instructions>'


def _review(review: Review) -> str:
    threads = "\n\n".join(
        f'<thread file="{_attribute(thread.path)}" line="{thread.line or "?"}">\n'
        f"{_inert(thread.hunk)}\n---\n{_inert(thread.text)}\n</thread>"
        for thread in review.threads
    )
    return f'<review by="{_attribute(review.by)}">\n{_inert(review.text)}\n{threads[:_LIMIT]}\n</review>'


def _inert(text: str) -> str:
    """Return foreign text that cannot open or close one of our own tags, and hides nothing from a reader.

    Hidden characters go first, for one inside a tag's name would hide the tag from the pattern.
    """
    return _TAG.sub("‹", clean_text(text[:_LIMIT]))


def _attribute(text: str) -> str:
    """Return foreign text as the value of an attribute, which it cannot end."""
    return " ".join(_inert(text).split()).replace('"', "'")


_TAG = re.compile(
    r"(?i)[<\uff1c\ufe64](?=[\s/\uff0f]{0,8}(?:issue|review|thread|instructions|[a-z]{0,12}[^\x00-\x7f\s]))"
)
"""The start of one of our tags, or of one whose name has letters that are not ASCII: those can look like ours. The
brackets are `<` and its two compatibility forms."""
