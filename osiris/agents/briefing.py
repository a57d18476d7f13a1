"""The first messages of a run: the system prompt from a text file, and a brief built from facts."""

from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files

from osiris.agents.roles import ENGINEER
from osiris.core.brief_text import (
    READ_MORE,
    BriefText,
    Room,
    describe_thread,
    escape_attribute,
    escape_tags,
    prepare_text,
    write_remark,
    write_thread,
)
from osiris.core.effects import Purpose, StartRun
from osiris.core.ports.models import Message
from osiris.core.ports.repositories import (
    MOST_FILE_SIZE,
    MOST_FILES,
    MOST_PACK_SIZE,
    Instructions,
)
from osiris.core.ports.sandbox import MIB
from osiris.core.review import Remark, Review

ISSUE_FILE = "/tmp/issue.md"  # noqa: S108 — inside the sandbox
"""The file with the whole text of a long issue, inside the sandbox."""

# characters: of the issue's text and of a review's; of one comment, and of one part of the diff
_TEXT = 30_000
_COMMENT = 8_000
_HUNK = 2_500
# characters that all comments and all parts of the diff of a review share in equal parts
_COMMENTS = 120_000
_HUNKS = 60_000
_LEAST = 300  # characters of a comment, however many there are
_REMARKS = 50  # the newest comments of the conversation that are shown
LENGTH = 2
"""The number of messages of a brief."""

_NAMED_PATHS = 50  # protected paths
_NAMED = 5  # threads that are named where something of them was cut

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
    order: StartRun,
    instructions: Instructions,
    protected: Sequence[str] = (),
    prompt: str = ENGINEER.prompt,
) -> list[Message]:
    """Return the first two messages of a transcript: the system prompt, from a file in `prompts/`,
    and the brief, with what was left out of it. `protected` are the paths that work may not
    change."""
    brief = _Brief()
    text = "\n\n".join(brief.write_parts(order, instructions, protected))
    return [
        Message(role="system", text=read_prompt(prompt)),
        Message(role="user", text=text, left_out=tuple(brief.left_out)),
    ]


def build_news(order: StartRun, messages: Sequence[Message]) -> Message | None:
    """Return what of the issue and its conversation is not in a transcript yet, as a message for an
    agent that goes on; None when there is nothing."""
    brief = _Brief()
    told = [message.text for message in messages if message.role == "user"]
    known = [brief.write_issue(order), *brief.write_remarks(order.remarks)]
    news = [part for part in known if not any(part in text for text in told)]
    if not news:
        return None
    head = "People wrote this meanwhile; an issue that stands here was edited."
    return Message(role="user", text="\n\n".join([head, *news]), left_out=tuple(brief.left_out))


def read_prompt(name: str = ENGINEER.prompt) -> str:
    """Return a system prompt; it is the same for every run of a role."""
    return files("osiris.agents").joinpath(f"prompts/{name}").read_text("utf-8")


def is_long(body: str) -> bool:
    """Return whether the text of an issue is longer than its part of a brief."""
    return len(body) > _TEXT


class _Brief:
    """A brief as it is written; `left_out` is what it leaves out, in sentences for the agent and
    for people."""

    def __init__(self) -> None:
        self.left_out: list[str] = []

    def write_parts(
        self, order: StartRun, instructions: Instructions, protected: Sequence[str]
    ) -> Iterator[str]:
        yield _TASKS[order.purpose]
        yield _write_limits(protected)
        if order.failure:
            failure = prepare_text(order.failure, _COMMENT).text
            yield f"<last_failure>\n{failure}\n</last_failure>"
        yield self.write_issue(order)
        yield from self.write_remarks(order.remarks)
        for number, review in enumerate(order.reviews, 1):
            yield self._write_review(review, number)
        for path, text in instructions.texts.items():
            opening = f'<instructions path="{escape_attribute(path)}">'
            yield f"{opening}\n{escape_tags(text)}\n</instructions>"
        self.left_out += [*order.left_out, *instructions.left_out]
        if self.left_out:
            lines = [f"- {escape_tags(sentence)}" for sentence in self.left_out]
            yield "\n".join(["<left_out>", *lines, "</left_out>"])

    def write_issue(self, order: StartRun) -> str:
        title = self._note_removed(prepare_text(order.title), "the issue's title")
        body = prepare_text(order.body, _TEXT, f"the whole text is in {ISSUE_FILE}")
        self._note_removed(body, "the issue")
        if body.cut:
            self.left_out.append(
                f"The issue is long: of its text the brief has the first {_TEXT:,} characters, and"
                " the agent got the whole as a file."
            )
        return f'<issue number="{order.issue.number}">\n{title}\n\n{body.text}\n</issue>'

    def write_remarks(self, remarks: Sequence[Remark]) -> list[str]:
        newest = remarks[-_REMARKS:]
        if left := len(remarks) - len(newest):
            self.left_out.append(f"{left} older comments of the conversation are not shown.")
        room = _divide_room(_COMMENTS, len(newest), _COMMENT)
        written = [write_remark(remark, room) for remark in newest]
        for remark, text in zip(newest, written, strict=True):
            self._note_removed(text, f"a comment of {remark.by}")
            if text.cut:
                self.left_out.append(f"A comment of {remark.by} is cut by {text.cut} characters.")
        return [text.text for text in written]

    def _write_review(self, review: Review, number: int) -> str:
        """Return one review with all its threads.

        Comments are written whole as long as each keeps to its own part of the room, whatever the
        length of others and of the diff.
        """
        text = prepare_text(review.text, _TEXT, READ_MORE)
        self._note_removed(text, f"the review of {review.by}")
        count = len(review.threads)
        room = Room(
            comment=_divide_room(_COMMENTS, count, _COMMENT),
            hunk=_divide_room(_HUNKS, count, _HUNK, least=0),
        )
        threads = [write_thread(thread, n, room) for n, thread in enumerate(review.threads, 1)]
        for thread, written in zip(review.threads, threads, strict=True):
            self._note_removed(written, f"the comment on {describe_thread(thread)}")
        self._note_cuts(review, text, threads)
        opening = f'<review number="{number}" by="{escape_attribute(review.by)}">'
        parts = [f"{opening}\n{text.text}", *(thread.text for thread in threads)]
        return "\n\n".join(parts) + "\n</review>"

    def _note_cuts(self, review: Review, text: BriefText, threads: Iterable[BriefText]) -> None:
        cut = [
            describe_thread(thread)
            for thread, written in zip(review.threads, threads, strict=True)
            if written.cut
        ]
        if text.cut:
            cut.insert(0, "its text")
        if cut:
            more = f" and {len(cut) - _NAMED} more" if len(cut) > _NAMED else ""
            self.left_out.append(
                f"The review of {review.by} is long: the brief has only the beginning of"
                f" {', '.join(cut[:_NAMED])}{more}; the agent can read the rest with read_review."
            )
        if review.more_threads:
            self.left_out.append(
                f"{review.more_threads} more threads of the review of {review.by} were not read."
            )

    def _note_removed(self, prepared: BriefText, source: str) -> str:
        """Note what was removed from a text, and return the text."""
        if prepared.removed:
            removed = f"{prepared.removed}, which people do not see"
            self.left_out.append(f"Removed from {source}: {removed}.")
        return prepared.text


def _write_limits(protected: Sequence[str]) -> str:
    """Return what work is refused for, so that an agent need not learn it by a refusal."""
    size = f"more than {MOST_FILES:,} changed files, a file above {MOST_FILE_SIZE // MIB} MiB"
    limits = f"Work is refused with {size}, or above {MOST_PACK_SIZE // MIB} MiB packed."
    if not protected:
        return limits
    shown = ", ".join(f"`{escape_attribute(path)}`" for path in protected[:_NAMED_PATHS])
    more = f" and {len(protected) - _NAMED_PATHS} more" if len(protected) > _NAMED_PATHS else ""
    return f"{limits} So is a change of protected paths, which only people change: {shown}{more}."


def _divide_room(room: int, count: int, most: int, least: int = _LEAST) -> int:
    """Return the part of `room` that each of `count` texts gets."""
    return max(least, min(most, room // max(1, count)))
