"""Everything Osiris says to people, as functions of facts. The harness writes evidence; the model is only quoted."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from osiris.effects import OpenDraftPull, OpenIssue, Push, Reply, Topic
from osiris.events import CommandRan, FileChange, IssueRef, Prepared, Work
from osiris.sanitize import clean_text
from osiris.task import ENDED, State, Task

BODY_LIMIT = 65_536  # characters GitHub takes in a comment or a pull request's body
_ROOM = BODY_LIMIT - 2_000  # what is left for the marker and for what is added around
_ROWS = 30
_QUOTE = 8_000  # characters a quotation may take: it must never push the evidence out

USAGE = """I understand these, at the start of a line:

| command | what it does |
|---|---|
| `/osiris` | work on this issue |
| `/osiris stop` | stop; what was pushed stays |
| `/osiris retry` | go on after a stop, a failure, a pause or a spent budget |
| `/osiris model VENDOR:MODEL` | let another model think from the next step on |
| `/osiris status` | say where the work stands |
| `/osiris help` | this |

In a pull request of mine, submit a review with *Request changes* (or line comments) and I answer it with commits."""


# ── the status comments and the check run ─────────────────────────────────────────────────────────────────────────


def status(task: Task) -> str:
    """The status comment on the issue."""
    return f"**Osiris: {_title(task)}**\n\n{_sentence(task)}"


def pull_status(task: Task) -> str:
    """The status comment on the pull request: the state, and the evidence of the newest work."""
    parts = [status(task)]
    if task.work is not None:
        parts.append(_fold("What the last run did", evidence(task.work)))
    return _cut("\n\n".join(parts))


def check_run(task: Task) -> dict[str, Any] | None:
    """The fields of the check run on the task's head commit; None while a run is at work: it will be another commit."""
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
    summary = pull_status(task)
    output = {"title": _title(task)[:255], "summary": summary}
    return {"status": "completed", "conclusion": verdicts[task.state], "output": output}


def _title(task: Task) -> str:
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


def _sentence(task: Task) -> str:
    """The state in a sentence, and who thinks when a person chose that."""
    chosen = (
        f" {task.model_by} chose the model `{_code(task.model)}`." if task.model and task.state not in ENDED else ""
    )
    return _state(task) + chosen


def _state(task: Task) -> str:
    pull = f"#{task.pull}" if task.pull else "a draft pull request"
    match task.state:
        case State.QUEUED | State.RUNNING | State.PLANNING:
            who = ", ".join(dict.fromkeys(review.by for review in task.reviews))
            brief = f" It answers the review of {who}." if who else ""
            later = " A newer review waits for the next run." if task.waiting else ""
            return f"The result will be {pull}.{brief}{later} `/osiris stop` stops me."
        case State.REVIEW:
            return (
                f"Please review {pull}. *Request changes* or line comments start another round on the same branch; "
                "approve and merge when it is right."
            )
        case State.APPROVED:
            return f"Commit {(task.approved or '')[:7]} is approved. Merge {pull} when you like; I never merge."
        case State.PAUSED:
            again = "`/osiris retry` makes me go on where I stopped; a spent budget is granted again."
            return f"{_half(task.reason)}. {again}"
        case State.DONE:
            return f"{pull} is merged. Thank you."
        case State.FAILED:
            return f"{_half(task.reason)}. `/osiris retry` makes me try again."
        case State.CANCELLED:
            return f"{_half(task.reason)}. `/osiris retry` makes me go on."
        case State.REJECTED:
            return f"{_half(task.reason)}. I will not try this again unless somebody says `/osiris retry`."
        case State.ASKING | State.PLANNED:
            return quoted(task.reason)


def _half(reason: str) -> str:
    """Half a sentence, made to stand at the beginning of one; it may hold words of a model or of a stranger."""
    words = _line(reason)
    return words[:1].upper() + words[1:]


def _line(words: str) -> str:
    return " ".join(plain(words).split()).rstrip(".")[:2000]


# ── one-off replies ───────────────────────────────────────────────────────────────────────────────────────────────


def reply(order: Reply, task: Task | None) -> str:
    match order.topic:
        case Topic.REFUSED:
            return f"Thank you, {order.to}. Only people with write access to this repository can give me work."
        case Topic.HELP:
            unknown = f"I do not know `/osiris {_code(order.detail)}`. " if order.detail else ""
            return unknown + USAGE
        case Topic.STATUS:
            return status(task) if task else USAGE
        case Topic.ANSWER:
            return "I changed nothing in answer to this review. In the agent's words:\n\n" + quoted(order.detail)
        case Topic.BROKEN:
            return f"I did not start: {_line(order.detail)}. Then say `/osiris retry`."
        case Topic.MODEL:
            return f"I did not change the model: {_line(order.detail)}."


# ── the pull request ──────────────────────────────────────────────────────────────────────────────────────────────


def pull_body(order: OpenDraftPull) -> str:
    """What was asked, what was done, the evidence, what was not done, the cost."""
    work = order.work
    parts = [
        f"Closes #{order.issue.number}, asked for by {order.requester}.",
        f"### What was done\n\nIn the agent's words:\n\n{quoted(work.summary)}",
        f"### Evidence\n\nWritten by Osiris from what it saw, not by the model.\n\n{evidence(work)}",
        f"### What was not done\n\n{_not_done(work)}",
        f"### Cost\n\n{cost(work)}",
    ]
    return _cut("\n\n".join(parts))


def cost(work: Work) -> str:
    """Steps, time, model, tokens and money; a price that is not known is said to be so."""
    steps = f"{work.steps} steps in {duration(work.seconds)} with `{_code(work.model)}`"
    if not work.usage.input:
        return f"{steps}."
    tokens = f"{work.usage.input:,} tokens in ({work.usage.cached:,} of them from the vendor's cache)"
    money = "at a price that is not known" if work.usage.usd is None else f"for {work.usage.usd:.2f} US dollars"
    return f"{steps}: {tokens} and {work.usage.output:,} out, {money}."


def evidence(work: Work) -> str:
    read = ", ".join(f"`{_code(path)}`" for path in work.instructions)
    parts = [
        _files(work.files),
        _commands(work.commands),
        _blocked(work.commands, "network.agent"),
        _set_up(work.prepared),
        _weakness(work.prepared),
        cost(work),
        f"Instructions read from the base branch: {read or 'none'}.",
    ]
    return "\n\n".join(filter(None, parts))


def _set_up(prepared: Prepared) -> str:
    """What ran before the agent did, with a way out to the package registries."""
    if not prepared.commands:
        return ""
    result = "the result of an earlier run was used" if prepared.cached else "run before the agent began"
    first = f"Set-up of the base branch ({result}):\n\n{_commands(prepared.commands)}"
    return "\n\n".join(filter(None, [first, _blocked(prepared.commands, "network.setup")]))


def _blocked(commands: Sequence[CommandRan], key: str) -> str:
    """Where commands wanted to go and were not let through, and with which `key` people allow it."""
    times = Counter[tuple[str, int, str]]()
    for blocked in (b for command in commands for b in command.blocked):
        times[blocked.host, blocked.port, blocked.reason] += blocked.times
    rows = [
        f"- blocked: `{_code(host)}:{port}`, {'once' if n == 1 else f'{n} times'}: {_line(reason)}"
        for (host, port, reason), n in times.most_common(_ROWS)
    ]
    if not rows:
        return ""
    if len(times) > _ROWS:
        rows.append(f"- … and {len(times) - _ROWS} more")
    return "\n".join([*rows, "", f"`{key}` in `.github/osiris.yml` of the base branch lets commands out to a host."])


def _weakness(prepared: Prepared) -> str:
    if not prepared.weakness:
        return ""
    return f"⚠️ The sandbox of this run was a weak one, as the operator allows. It lacks: {_line(prepared.weakness)}."


def _files(files: Sequence[FileChange]) -> str:
    rows = [f"| `{_code(file.path)}` | {file.status} | {_counts(file)} |" for file in files[:_ROWS]]
    more = [f"| … and {len(files) - _ROWS} more | | |"] if len(files) > _ROWS else []
    return "\n".join(["| changed file | how | lines |", "|---|---|---|", *rows, *more])


def _counts(file: FileChange) -> str:
    if not file.counted:
        return "not counted"
    return "binary" if file.additions is None else f"+{file.additions} −{file.deletions}"


def _commands(commands: Sequence[CommandRan]) -> str:
    if not commands:
        return "No command was run."
    shown = commands[-_ROWS:]
    first = [f"| … {len(commands) - _ROWS} earlier ones | | |"] if len(commands) > _ROWS else []
    rows = [f"| `{_code(c.command)}` | {_exit(c)} | {duration(c.seconds)} |" for c in shown]
    return "\n".join(["| command | exit code | time |", "|---|---|---|", *first, *rows])


def _exit(command: CommandRan) -> str:
    return "cut off" if command.exit_code is None else str(command.exit_code)


def _not_done(work: Work) -> str:
    lines = []
    if not work.commands:
        lines.append("- Nothing was run, so nothing shows that it works.")
    elif work.commands[-1].exit_code != 0:
        lines.append("- The last command that was run did not succeed.")
    if work.commands and work.edited_last:
        lines.append("- Files were changed after the last command had run.")
    if not any(_TEST.search(file.path) for file in work.files):
        lines.append("- No test was changed or added.")
    return "\n".join([*lines, "- Nothing is merged: that is for a person to do."])


_TEST = re.compile(r"(?i)(?:^|[/_.-])tests?(?:[/_.-]|$)")


def commit_message(order: Push, coauthors: Iterable[str]) -> str:
    """Subject, the agent's summary, and the trailers people and programs rely on."""
    reviewers = ", ".join(dict.fromkeys(review.by for review in order.reviews))
    subject = f"Answer the review of {reviewers}" if reviewers else order.title
    trailers = [
        f"Osiris-Task: {order.issue}",
        f"Osiris-Model: {title(order.work.model)}",
        *(f"Co-authored-by: {person}" for person in coauthors),
    ]
    body = _TRAILER.sub(r"\1 ", harmless(order.work.summary))[:4000].strip()
    return f"{title(subject)[:72]}\n\n{body}\n\n" + "\n".join(trailers) + "\n"


_TRAILER = re.compile(r"(?mi)^([a-z-]+-by|osiris-\w+):")


def still_a_draft(reason: str) -> str:
    return (
        f"It is approved, but I could not take the draft mark off ({plain(reason)}). Please press *Ready for review*."
    )


def issue_body(order: OpenIssue) -> str:
    return f"{plain(order.body)}\n\nRequested by {plain(order.by)} through Osiris."


# ── words that are not ours ───────────────────────────────────────────────────────────────────────────────────────


def plain(text: str) -> str:
    """Foreign text for Markdown: `harmless`, and with no HTML, entity, image, link or footnote of its own."""
    text = re.sub(r"<!--.*?(?:-->|\Z)", "", clean_text(text), flags=re.DOTALL)
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"\](?=[(\[:])", f"]{_JOINER}", text)
    text = re.sub(r"\[(?=\^)", f"[{_JOINER}", text)
    return _disarm(text)


def harmless(text: str) -> str:
    """Foreign text that can mention nobody and refer to, and so close, nothing. It still looks the same."""
    return _disarm(clean_text(text))


def _disarm(text: str) -> str:
    text = re.sub(r"@(?=[A-Za-z0-9])", f"@{_JOINER}", text)
    text = re.sub(r"(?i)(#|\bGH-)(?=\d)", f"\\1{_JOINER}", text)
    text = re.sub(r"(?i)\b(\w+:)(?=//)", f"\\1{_JOINER}", text)
    return re.sub(r"(?i)\b(www|mailto:|xmpp:)(?=[.\w])", f"\\1{_JOINER}", text)


_JOINER = "\u2060"  # the word joiner: it is not seen, and takes the meaning out of what stands before it


def title(text: str) -> str:
    """Foreign text as one line: a pull request's title or a commit's subject."""
    return " ".join(harmless(text).split())


def quoted(text: str) -> str:
    """Foreign text as a quotation."""
    lines = re.sub(r"\n\s*\n+", "\n\n", plain(text).strip()).splitlines()
    return "\n".join(f"> {line}" for line in lines)[:_QUOTE] or "> (nothing)"


def _code(text: str, limit: int = 160) -> str:
    """Foreign text inside a code span in a table."""
    text = " ".join(clean_text(text).split()).replace("`", "'").replace("|", "\\|")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def duration(seconds: float) -> str:
    """1.2 s · 3 min 20 s"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _fold(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _cut(text: str) -> str:
    return text if len(text) <= _ROOM else text[:_ROOM] + "\n\n… cut: it was longer than GitHub takes."


def review_page(url: str, issue: IssueRef, pull: int | None) -> str:
    """Where a person finds the task in a browser."""
    return f"{url.rstrip('/')}/{issue.repo}/" + (f"pull/{pull}" if pull else f"issues/{issue.number}")
