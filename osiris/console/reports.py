"""Commands that show something: lists of tasks and failures, one task's history, and a task
followed live."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from osiris.bot.github.comments import review_url
from osiris.config.settings import Settings
from osiris.console.support import (
    LOOK,
    find_task,
    make_console,
    make_safe,
    open_views,
    print_json,
    summarize_task,
)
from osiris.core.ports.models import Message
from osiris.core.ports.task_reader import AuditEntry, Step, TaskSummary, WaitingOrder
from osiris.core.sanitize import clean_text
from osiris.core.task import ENDED, UNDER_REVIEW, State

_MOST_REASON = 2_000  # characters of a reason
_RESTING = (*ENDED, *UNDER_REVIEW, State.ASKING, State.PLANNED, State.PAUSED)


async def list_tasks(settings: Settings, *, as_json: bool) -> None:
    async with open_views(settings) as views:
        lines = await views.list_tasks()
    if as_json:
        print_json([summarize_task(settings, line) for line in lines])
        return
    table = Table("ID", "ISSUE", "STATE", "PULL", "MOVED", "TITLE", box=None, pad_edge=False)
    for line in lines:
        task = line.task
        pull = f"#{task.pull}" if task.pull else ""
        cells = (line.id, task.issue, task.state.value, pull, _format_age(line.updated), task.title)
        table.add_row(*map(_format_cell, cells))
    make_console().print(table if lines else "no tasks yet: label an issue, or `osiris request`")


async def list_failures(settings: Settings, *, as_json: bool) -> None:
    async with open_views(settings) as views:
        failures = await views.list_failures()
    if as_json:
        print_json([asdict(failure) for failure in failures])
        return
    table = Table("WHAT", "ID", "WHEN", "WHY", box=None, pad_edge=False)
    for failure in failures:
        table.add_row(
            *map(_format_cell, (failure.what, failure.id, _format_age(failure.at), failure.error))
        )
    make_console().print(table if failures else "nothing has failed")


def _format_cell(value: object) -> Text:
    """Return a table's cell: one line, as a Text, so that brackets in it are not markup."""
    return Text(make_safe(value))


async def show_task(settings: Settings, id: str, *, as_json: bool) -> None:
    async with open_views(settings) as views:
        line = await find_task(views, id)
        story = await views.read_audit_log(line.id)
        steps = await views.list_steps(line.id)
        waiting = await views.list_waiting(line.id)
    if as_json:
        told = {
            "journal": [asdict(one) for one in story],
            "steps": [asdict(step) for step in steps],
        }
        print_json(
            {**summarize_task(settings, line), "waiting": [asdict(one) for one in waiting], **told}
        )
        return
    _print_header(settings, line)
    for _at, words in sorted(
        [*map(_format_entry, story), *filter(None, map(_format_step, steps))],
        key=lambda pair: pair[0],
    ):
        make_console().print(Text(words))
    for one in waiting:
        make_console().print(Text(f"   {_describe_waiting(one)}"))


async def show_brief(settings: Settings, id: str, *, as_json: bool) -> None:
    """Print what the agent of the newest run was told, as it was told: its brief, and what came
    later."""
    async with open_views(settings) as views:
        line = await find_task(views, id)
        steps = await views.list_steps(line.id)
    told = [step for step in steps if step.run == steps[-1].run and step.message.role == "user"]
    if as_json:
        print_json([asdict(step) for step in told])
        return
    for step in told:
        at = datetime.fromtimestamp(step.at).strftime("%Y-%m-%d %H:%M:%S")
        print(f"── {make_safe(step.run)}, {at}\n\n{clean_text(step.message.text)}\n")
    if not told:
        print("no agent was given a brief yet")


async def watch_task(settings: Settings, id: str, *, as_json: bool) -> None:
    """Print new entries until the task waits for a person or has ended."""
    async with open_views(settings) as views:
        line = await find_task(views, id)
        seen = 0
        at = 0.0
        if not as_json:
            _print_header(settings, line)
        while True:
            story = await views.read_audit_log(line.id, seen)
            steps = await views.list_steps(line.id, at)
            seen = max([seen, *(one.seq for one in story)])
            at = max([at, *(step.at for step in steps)])
            _print_new_lines(story, steps, as_json=as_json)
            line = await find_task(views, id)
            if line.task.state in _RESTING and not line.waiting:
                break
            await asyncio.sleep(LOOK)
    if not as_json:
        _print_header(settings, line)


def _print_new_lines(story: Sequence[AuditEntry], steps: Sequence[Step], *, as_json: bool) -> None:
    if as_json:
        for told in (*map(asdict, story), *map(asdict, steps)):
            print(json.dumps(told), flush=True)
        return
    for _at, words in sorted(
        [*map(_format_entry, story), *filter(None, map(_format_step, steps))],
        key=lambda pair: pair[0],
    ):
        make_console().print(Text(words))


def _print_header(settings: Settings, line: TaskSummary) -> None:
    task = line.task
    out = make_console()
    why = f": {make_safe(task.reason, _MOST_REASON)}" if task.reason else ""
    page = review_url(settings.github_url, task.issue, task.pull)
    out.print(Text(f"{line.id}  {make_safe(task.issue)}  {make_safe(task.title)}", style="bold"))
    out.print(Text(f"   {task.state.value}{why}"))
    out.print(Text(f"   {make_safe(page)}"))


def _describe_waiting(one: WaitingOrder) -> str:
    what = make_safe(one.what)
    why = f": {make_safe(one.why, _MOST_REASON)}" if one.why else ""
    if one.until is None:
        return f"{what} is parked{why}; `osiris task retry` requeues it"
    if one.worker:
        return f"{what} is being done by {make_safe(one.worker)}"
    later = f" until {_format_clock(one.until)}" if one.until > time.time() else " for its turn"
    return f"{what} waits{later}{why}"


def _format_entry(line: AuditEntry) -> tuple[float, str]:
    what = make_safe(line.what)
    match line.kind:
        case "decided":
            orders = ", ".join(line.detail["orders"]) or "nothing to do"
            decided = make_safe(f"{line.detail['state']}: {orders}", _MOST_REASON)
            return line.at, f"{_format_clock(line.at)}    → {decided}"
        case "done":
            ends = [
                f"{how}: {make_safe(line.detail[how], _MOST_REASON)}"
                for how in ("refused", "parked")
                if how in line.detail
            ]
            return line.at, f"{_format_clock(line.at)}    {what} {ends[0] if ends else 'done'}"
    who = (line.detail.get("actor") or {}).get("login") or line.detail.get("by")
    return line.at, f"{_format_clock(line.at)}  {what}" + (
        f" ({make_safe(who, 100)})" if who else ""
    )


def _format_step(step: Step, *, said: bool = True) -> tuple[float, str] | None:
    message: Message = step.message
    first = _cut_first_line(message.text)
    match message.role:
        case "assistant":
            calls = "; ".join(
                f"{make_safe(c.name, 100)} {_summarize_args(dict(c.args))}" for c in message.calls
            )
            words = f"{first}  " if first and said else ""
            return step.at, f"{_format_clock(step.at)}      {words}{calls}"
        case "tool":
            return step.at, f"{_format_clock(step.at)}        {first}"
    return None


def format_steps(steps: Sequence[Step], *, said: bool = True) -> list[str]:
    """Return a transcript's messages, one line each, with or without what the model wrote besides
    its calls."""
    return [told[1].partition("  ")[2] for step in steps if (told := _format_step(step, said=said))]


def _cut_first_line(text: str) -> str:
    return " ".join(clean_text(text).partition("\n")[0].split())[:100]


def _summarize_args(args: dict[str, Any]) -> str:
    """Return the first argument, which shows what a call is about: a path, a pattern, a command, a
    summary."""
    words = " ".join(clean_text(str(next(iter(args.values()), ""))).split())
    return words if len(words) <= 70 else words[:69] + "…"


def _format_clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def _format_age(at: float) -> str:
    seconds = max(0, int(time.time() - at))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
