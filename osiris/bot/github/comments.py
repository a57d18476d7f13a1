"""Text that Osiris writes for people, as functions of facts. The harness writes the evidence; the
model is only quoted."""

import re
from collections.abc import Iterable
from typing import Any

from osiris.bot.github.escaping import (
    clip_page,
    clip_text,
    disarm_text,
    escape_code,
    escape_markdown,
    name_people,
    one_line,
    quote_text,
)
from osiris.bot.github.escaping import format_title as format_title
from osiris.bot.github.evidence import write_cost, write_evidence, write_not_done
from osiris.core.effects import OpenDraftPull, OpenIssue, Push, Reply, Topic
from osiris.core.events import Authentication, IssueRef
from osiris.core.task import ENDED, UNDER_REVIEW, State, Task
from osiris.core.work import Work

BODY_LIMIT = 65_536  # characters that GitHub accepts in a comment or a pull request's body
_ROOM = BODY_LIMIT - 2_000  # the rest is for the marker and other additions

USAGE = """I understand these, at the start of a line:

| command | what it does |
|---|---|
| `/osiris` | work on this issue |
| `/osiris stop` | stop; what was pushed stays |
| `/osiris retry` | go on after a stop, a failure, a pause or a spent budget |
| `/osiris model VENDOR:MODEL` | let another model think from the next step on |
| `/osiris status` | say where the work stands |
| `/osiris help` | this |

In a pull request of mine, submit a review with *Request changes* (or line comments) and I answer it
with commits."""


# ── the status comments and the check run ─────────────────────────────────────────────────────────


def write_status(task: Task) -> str:
    """Return the status comment of the issue."""
    return f"**Osiris: {_write_title(task)}**\n\n{_write_sentence(task)}"


def write_pull_status(task: Task) -> str:
    """Return the status comment of the pull request: the state, and the evidence of the newest
    work."""
    words = write_status(task)
    if task.work is None:
        return clip_page(words, _ROOM)
    fold = _fold_section("What the last run did", "")
    room = _ROOM - len(words) - len(fold) - 2
    return f"{words}\n\n{_fold_section('What the last run did', write_evidence(task.work, room))}"


def build_check_run(task: Task) -> dict[str, Any] | None:
    """Return the fields of the check run on the task's head commit; None while a run is active,
    because it will produce another commit."""
    verdicts = {
        State.REVIEW: "neutral",
        State.APPROVED: "success",
        State.DONE: "success",
        State.FAILED: "failure",
        State.PAUSED: "action_required",
        State.CANCELLED: "cancelled",
        State.REJECTED: "cancelled",
    }
    if task.state not in verdicts:
        return None
    summary = write_pull_status(task)
    output = {"title": _write_title(task)[:255], "summary": summary}
    return {"status": "completed", "conclusion": verdicts[task.state], "output": output}


def _write_title(task: Task) -> str:
    titles = {
        State.QUEUED: "noted, I will start soon",
        State.PLANNING: "planning",
        State.PLANNED: "the plan waits for approval",
        State.ASKING: "I have a question",
        State.RUNNING: "working on it" if task.run == 1 else f"working on it, run {task.run}",
        State.REVIEW: "ready for review",
        State.APPROVED: f"approved by {task.approved_by}",
        State.PAUSED: "paused",
        State.DONE: "merged",
        State.FAILED: "I could not finish",
        State.CANCELLED: "stopped",
        State.REJECTED: "closed without merging",
    }
    return titles[task.state]


def _write_sentence(task: Task) -> str:
    """Return a sentence on the state, and on the model if a person chose it."""
    chosen = (
        f" {task.model_by} chose the model `{escape_code(task.model)}`."
        if task.model and task.state not in ENDED
        else ""
    )
    return _describe_state(task) + chosen


def _describe_state(task: Task) -> str:
    pull = f"#{task.pull}" if task.pull else "a draft pull request"
    match task.state:
        case State.QUEUED | State.RUNNING | State.PLANNING:
            who = name_people(review.by for review in task.reviews)
            brief = f" It answers the review of {who}." if who else ""
            later = " A newer review waits for the next run." if task.waiting else ""
            return f"The result will be {pull}.{brief}{later} `/osiris stop` stops me."
        case State.REVIEW:
            return (
                f"Please review {pull}. *Request changes* or line comments start another round on"
                " the same branch; approve and merge when it is right."
            )
        case State.APPROVED:
            return (
                f"Commit {(task.approved or '')[:7]} is approved. Merge {pull} when you like; I"
                " never merge."
            )
        case State.PAUSED:
            again = (
                "`/osiris retry` makes me go on where I stopped; a spent budget is granted again."
            )
            return f"{_capitalize_reason(task.reason)}. {again}"
        case State.DONE:
            return f"{pull} is merged. Thank you."
        case State.FAILED:
            return f"{_capitalize_reason(task.reason)}. `/osiris retry` makes me try again."
        case State.CANCELLED:
            return f"{_capitalize_reason(task.reason)}. `/osiris retry` makes me go on."
        case State.REJECTED:
            return (
                f"{_capitalize_reason(task.reason)}. I will not try this again unless somebody says"
                " `/osiris retry`."
            )
        case State.ASKING | State.PLANNED:
            return quote_text(task.reason)


def _capitalize_reason(reason: str) -> str:
    """Return a reason with a capital letter, to begin a sentence with. It may contain text of a
    model or a stranger."""
    words = one_line(reason)
    return words[:1].upper() + words[1:]


# ── one-off replies ───────────────────────────────────────────────────────────────────────────────


def write_reply(order: Reply, task: Task | None) -> str:
    match order.topic:
        case Topic.REFUSED:
            return (
                f"Thank you, {order.to}. Only people with write access to this repository can give"
                " me work."
            )
        case Topic.HELP:
            unknown = (
                f"I do not know `/osiris {escape_code(order.detail)}`. " if order.detail else ""
            )
            return unknown + USAGE
        case Topic.STATUS:
            return write_status(task) if task else USAGE
        case Topic.ANSWER:
            return (
                "I changed nothing in answer to this review. In the agent's words:\n\n"
                + quote_text(order.detail)
            )
        case Topic.BROKEN:
            return f"I did not start: {one_line(order.detail)}. {_write_way_on(order, task)}"
        case Topic.PLAIN_COMMENT:
            return _explain_commands(task)
        case Topic.MODEL:
            return f"I did not change the model: {one_line(order.detail)}."


def _write_way_on(order: Reply, task: Task | None) -> str:
    """Return what starts the work after the repository's policy was mended."""
    if order.on_pull:
        return "Then submit the review again."
    if task is None or task.state in (State.DONE, *UNDER_REVIEW):
        return "Then say `/osiris`."
    return "Then say `/osiris retry`."


def _explain_commands(task: Task | None) -> str:
    """Return the answer to words that start nothing."""
    said = "A comment alone starts nothing; my next run reads it."
    pull = f" of #{task.pull}" if task and task.pull else ""
    review = f"a review{pull} with *Request changes* or line comments"
    match task.state if task else None:
        case State.REVIEW | State.APPROVED:
            return f"{said} To start one, submit {review}."
        case State.QUEUED | State.PLANNING | State.RUNNING if task and task.pull:
            return f"{said} I am at work now; to start another run after this, submit {review}."
        case State.QUEUED | State.PLANNING | State.RUNNING:
            again = "`/osiris stop` and then `/osiris retry` starts again with it"
            return f"{said} I am at work now; {again}."
    return f"{said} To start one, say `/osiris retry`."


# ── the pull request ──────────────────────────────────────────────────────────────────────────────


def write_pull_body(order: OpenDraftPull) -> str:
    """Return the body of the pull request: the request, the work, the evidence, what was not done,
    and the cost."""
    work = order.work
    first = [
        f"Closes #{order.issue.number}, asked for by {name_people([order.requester])}.",
        f"### What was done\n\nIn the agent's words:\n\n{quote_text(work.summary)}",
        "### Evidence\n\nWritten by Osiris from what it saw, not by the model.",
    ]
    last = [f"### What was not done\n\n{write_not_done(work)}", f"### Cost\n\n{format_cost(work)}"]
    # the tables get the remaining room
    room = _ROOM - sum(len(part) + 2 for part in (*first, *last))
    return "\n\n".join([*first, write_evidence(work, room), *last])


def format_cost(work: Work) -> str:
    """Return what a run cost."""
    return write_cost(work)


def format_evidence(work: Work) -> str:
    """Return what the harness saw of a run."""
    return write_evidence(work)


def write_commit_message(order: Push, coauthors: Iterable[str]) -> str:
    """Return the commit message: the subject, the agent's summary, and the trailers that people and
    programs rely on."""
    reviewers = name_people(review.by for review in order.reviews)
    subject = f"Answer the review of {reviewers}" if reviewers else order.title
    trailers = [
        f"Osiris-Task: {order.issue}",
        f"Osiris-Model: {clip_text(format_title(order.work.model), 300)}",
        *(f"Co-authored-by: {person}" for person in coauthors),
    ]
    body = _TRAILER.sub(r"\1 ", disarm_text(order.work.summary))[:4000].strip()
    return f"{format_title(subject)[:72]}\n\n{body}\n\n" + "\n".join(trailers) + "\n"


_TRAILER = re.compile(r"(?mi)^([a-z-]+-by|osiris-\w+):")


def write_draft_notice(reason: str) -> str:
    trouble = f"It is approved, but I could not take the draft mark off ({one_line(reason)})"
    return f"{trouble}. Please press *Ready for review*."


def write_issue_body(order: OpenIssue) -> str:
    name = one_line(order.principal.name, 300)
    if order.principal.authentication is Authentication.OPERATOR:
        asked_by = f"Requested by {name}, the operator of this Osiris, on its command line."
    else:
        asked_by = f"Requested by {name} through Osiris."
    return f"{clip_page(escape_markdown(order.body), _ROOM - len(asked_by) - 2)}\n\n{asked_by}"


def _fold_section(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def review_url(url: str, issue: IssueRef, pull: int | None) -> str:
    """Return the URL of the task's pull request or issue."""
    return f"{url.rstrip('/')}/{issue.repo}/" + (
        f"pull/{pull}" if pull else f"issues/{issue.number}"
    )
