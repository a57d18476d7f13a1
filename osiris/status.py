"""What the operator's commands show and ask for: tasks, failures, one task's story, and the doctor."""

import asyncio
import contextlib
import getpass
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import SQLAlchemyError

from osiris import bootstrap
from osiris import events as e
from osiris.bot.comments import review_page
from osiris.config.settings import Settings
from osiris.errors import Refused
from osiris.ports import Message, Probe
from osiris.queue.database import connect
from osiris.queue.intake import Intake
from osiris.queue.local import LocalWake
from osiris.queue.store import OWN, Store
from osiris.queue.views import Line, Step, TaskLine, Views
from osiris.task import ENDED, UNDER_REVIEW, State

_RESTING = (*ENDED, *UNDER_REVIEW, State.ASKING, State.PLANNED, State.PAUSED)
_LOOK = 0.3  # seconds between two looks at the database
_PATIENCE = 3.0  # seconds to wait for a worker to take something up

APP_PERMISSIONS = {
    "contents": "write",
    "pull_requests": "write",
    "issues": "write",
    "checks": "write",
    "metadata": "read",
}
APP_EVENTS = ("issues", "issue_comment", "pull_request", "pull_request_review")


def console() -> Console:
    """Colours on a terminal, plain lines off it."""
    return Console(soft_wrap=True, highlight=False)


@contextlib.asynccontextmanager
async def _views(settings: Settings) -> AsyncIterator[Views]:
    if not settings.database_url and not (settings.osiris_data_dir / "osiris.db").exists():
        raise Refused(f"there is no database in {settings.osiris_data_dir} yet; `osiris serve` makes it")
    engine = connect(settings.database)
    try:
        yield Views(engine)
    except SQLAlchemyError as error:
        told = str(getattr(error, "orig", error)).splitlines()[0]
        raise Refused(f"the database cannot be read ({told}); `osiris migrate` brings it up to date") from None
    finally:
        await engine.dispose()


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def list_tasks(settings: Settings, *, as_json: bool) -> None:
    async with _views(settings) as views:
        lines = await views.tasks()
    if as_json:
        _json([_summary(settings, line) for line in lines])
        return
    table = Table("ID", "ISSUE", "STATE", "PULL", "MOVED", "TITLE", box=None, pad_edge=False)
    for line in lines:
        task = line.task
        pull = f"#{task.pull}" if task.pull else ""
        table.add_row(str(line.id), str(task.issue), task.state.value, pull, _ago(line.updated), Text(task.title))
    console().print(table if lines else "no tasks yet: label an issue, or `osiris request`")


async def list_failures(settings: Settings, *, as_json: bool) -> None:
    async with _views(settings) as views:
        failures = await views.failures()
    if as_json:
        _json([asdict(failure) for failure in failures])
        return
    table = Table("WHAT", "ID", "WHEN", "WHY", box=None, pad_edge=False)
    for failure in failures:
        table.add_row(failure.what, failure.id, _ago(failure.at), Text(failure.error))
    console().print(table if failures else "nothing has failed")


async def show(settings: Settings, id: str, *, as_json: bool) -> None:
    async with _views(settings) as views:
        line = await _find(views, id)
        story, steps = await views.story(line.id), await views.steps(line.id)
    if as_json:
        told = [asdict(one) for one in story]
        _json({**_summary(settings, line), "journal": told, "steps": [asdict(step) for step in steps]})
        return
    _print_head(settings, line)
    for _at, words in sorted([*map(_told, story), *filter(None, map(_step, steps))], key=lambda pair: pair[0]):
        console().print(Text(words))


async def watch(settings: Settings, id: str, *, as_json: bool) -> None:
    """Print what is new until the task waits for a person or has ended."""
    async with _views(settings) as views:
        line, seen, at = await _find(views, id), 0, 0.0
        if not as_json:
            _print_head(settings, line)
        while True:
            story, steps = await views.story(line.id, seen), await views.steps(line.id, at)
            seen, at = max([seen, *(one.seq for one in story)]), max([at, *(step.at for step in steps)])
            _print_new(story, steps, as_json=as_json)
            line = await _find(views, id)
            if line.task.state in _RESTING and not line.waiting:
                break
            await asyncio.sleep(_LOOK)
    if not as_json:
        _print_head(settings, line)


def _print_new(story: list[Line], steps: list[Step], *, as_json: bool) -> None:
    if as_json:
        for told in (*map(asdict, story), *map(asdict, steps)):
            print(json.dumps(told), flush=True)
        return
    for _at, words in sorted([*map(_told, story), *filter(None, map(_step, steps))], key=lambda pair: pair[0]):
        console().print(Text(words))


def _print_head(settings: Settings, line: TaskLine) -> None:
    task, out = line.task, console()
    out.print(Text(f"{line.id}  {task.issue}  {task.title}", style="bold"))
    out.print(Text(f"   {task.state.value}" + (f": {task.reason}" if task.reason else "")))
    out.print(Text(f"   {review_page(settings.github_url, task.issue, task.pull)}"))


async def _find(views: Views, id: str) -> TaskLine:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)#(\d{1,15})", id)
    if not match and not re.fullmatch(r"\d{1,15}", id):
        raise Refused(f"{id!r} is no task: give its number from `osiris task list`, or owner/name#N")
    line = await views.task(e.IssueRef(match[1], int(match[2])) if match else int(id))
    if line is None:
        raise Refused(f"there is no task {id}; `osiris task list` shows those there are")
    return line


def _summary(settings: Settings, line: TaskLine) -> dict[str, Any]:
    task = asdict(line.task)
    url = review_page(settings.github_url, line.task.issue, line.task.pull)
    return {"id": line.id, "url": url, "updated": line.updated, "waiting_orders": line.waiting, **task}


def _told(line: Line) -> tuple[float, str]:
    match line.kind:
        case "decided":
            orders = ", ".join(line.detail["orders"]) or "nothing to do"
            return line.at, f"{_clock(line.at)}    → {line.detail['state']}: {orders}"
        case "done":
            refused = f" refused: {line.detail['refused']}" if "refused" in line.detail else " done"
            return line.at, f"{_clock(line.at)}    {line.what}{refused}"
    return line.at, f"{_clock(line.at)}  {line.what}"


def _step(step: Step) -> tuple[float, str] | None:
    message: Message = step.message
    first = message.text.partition("\n")[0][:100]
    match message.role:
        case "assistant":
            calls = "; ".join(f"{call.name} {_short(dict(call.args))}" for call in message.calls)
            return step.at, f"{_clock(step.at)}      {first + '  ' if first else ''}{calls}"
        case "tool":
            return step.at, f"{_clock(step.at)}        {first}"
    return None


def told_steps(steps: list[Step]) -> list[str]:
    """A transcript's messages, a line each."""
    return [told[1].partition("  ")[2] for step in steps if (told := _step(step))]


def _short(args: dict[str, Any]) -> str:
    """The first argument says what a call is about: a path, a pattern, a command, a summary."""
    words = " ".join(str(next(iter(args.values()), "")).split())
    return words if len(words) <= 70 else words[:69] + "…"


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).strftime("%H:%M:%S")


def _ago(at: float) -> str:
    seconds = max(0, int(time.time() - at))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2))


# ── asking ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def cancel(settings: Settings, id: str, *, as_json: bool) -> None:
    await _ask(settings, id, e.StopRequested, as_json=as_json)


async def retry(settings: Settings, id: str, *, as_json: bool) -> None:
    await _ask(settings, id, e.RetryRequested, as_json=as_json)


async def _ask(
    settings: Settings, id: str, wish: type[e.StopRequested] | type[e.RetryRequested], *, as_json: bool
) -> None:
    async with _views(settings) as views:
        line = await _find(views, id)
    operator = e.Actor(getpass.getuser(), e.Role.ADMIN)  # who can write to the database is the operator
    taken = await _note(settings, wish(issue=line.task.issue, actor=operator))
    async with _views(settings) as views:
        line = await _find(views, id)
    if as_json:
        _json({**_summary(settings, line), "taken_up": taken})
    else:
        console().print(f"{line.task.issue} is now {line.task.state.value}" if taken else _LATER)


_LATER = "noted; it takes effect as soon as `osiris serve` runs with all its settings"


async def file_request(settings: Settings, text: str, repo: str) -> None:
    """File a request under the operator's name. Raises Refused for one that cannot be filed."""
    title, _, body = text.strip().partition("\n")
    if not title:
        raise Refused("say what is to be done")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise Refused(f"--repo is to be owner/name, not {repo!r}")
    key = uuid4().hex
    made = e.RequestMade(key=key, repo=repo, title=title[:250], body=body.strip() or title, by=getpass.getuser())
    await bootstrap.prepare(settings, engine := connect(settings.database))
    await engine.dispose()
    taken = await _note(settings, made)
    console().print(f"taken up; the issue will appear in {repo}" if taken else _LATER)


async def _note(settings: Settings, event: e.Event) -> bool:
    """Put an event into the inbox; True when a worker took it up within a few seconds."""
    store, key = Store(engine := connect(settings.database)), f"operator/{uuid4().hex}"
    try:
        await Intake(store, LocalWake()).note(key, event)
        views, until = Views(engine), time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            if await views.handled(OWN, key):
                return True
            await asyncio.sleep(_LOOK)
        return False
    finally:
        await store.close()


# ── the doctor ────────────────────────────────────────────────────────────────────────────────────────────────────


async def doctor(settings: Settings, *, as_json: bool) -> bool:
    """Print one line for each thing Osiris needs; True when all that is needed is there."""
    probes = await _examine(settings)
    healthy = all(probe.ok or not probe.needed for probe in probes)
    if as_json:
        _json({"healthy": healthy, "probes": [asdict(probe) for probe in probes]})
        return healthy
    out = console()
    for probe in probes:
        mark, style = ("ok  ", "green") if probe.ok else ("FAIL", "red") if probe.needed else ("weak", "yellow")
        detail = f": {probe.detail}" if probe.detail else ""
        out.print(Text(mark, style=style), Text(f"{probe.name}{detail}"))
        if not probe.ok and probe.fix:
            out.print(Text(f"     → {probe.fix}"))
    return healthy


async def _examine(settings: Settings) -> list[Probe]:
    try:
        osiris = bootstrap.build(settings)
        await bootstrap.prepare(osiris.settings, osiris.engine)
    except Refused as refused:
        return [Probe(name="settings", ok=False, detail=str(refused))]
    try:
        readiness = bootstrap.Readiness(osiris.settings, osiris.store, osiris.sandbox)
        github = await bootstrap.github_probes(osiris, APP_PERMISSIONS, APP_EVENTS)
        return [*(await readiness()), *github]
    finally:
        await osiris.store.close()
