"""Shared parts of the operator's commands: the console, read access to the database, and finding a
task."""

import contextlib
import getpass
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from sqlalchemy.exc import SQLAlchemyError

from osiris.bot.github.comments import review_url
from osiris.config.settings import Settings
from osiris.core import events as e
from osiris.core.errors import Refused
from osiris.core.ports.task_reader import TaskReader, TaskSummary
from osiris.core.sanitize import clean_text, cut_text
from osiris.queue.database import connect
from osiris.queue.read_models import ReadModels

LOOK = 0.3  # seconds between two polls of the database


def make_safe(text: object, most: int = 500) -> str:
    """Return untrusted text as one line for a terminal, without control sequences."""
    return cut_text(" ".join(clean_text(str(text)).split()), most)


def get_operator_name() -> str:
    """Return the login name of the user who runs the command; "user-NUMBER" if this machine has no
    name for the user."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container the user id may be any number
        return f"user-{os.getuid()}"


def make_console() -> Console:
    """Return a console with colors on a terminal, and plain lines elsewhere."""
    return Console(soft_wrap=True, highlight=False)


@contextlib.asynccontextmanager
async def open_views(settings: Settings) -> AsyncIterator[TaskReader]:
    if (
        settings.is_embedded
        and not settings.database_url.get_secret_value()
        and not (settings.osiris_data_dir / "osiris.db").exists()
    ):
        raise Refused(
            f"there is no database in {settings.osiris_data_dir} yet; `osiris serve` makes it"
        )
    engine = connect(settings.database)
    try:
        yield ReadModels(engine)
    except SQLAlchemyError as error:
        told = str(getattr(error, "orig", error)).partition("\n")[0]
        raise Refused(
            f"the database cannot be read ({told}); `osiris migrate` brings it up to date"
        ) from None
    finally:
        await engine.dispose()


async def find_task(views: TaskReader, id: str) -> TaskSummary:
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)#(\d{1,15})", id)
    if not match and not re.fullmatch(r"\d{1,15}", id):
        raise Refused(
            f"{id!r} is not a task: give its number from `osiris task list`, or owner/name#N"
        )
    line = await views.find_task(e.IssueRef(match[1], int(match[2])) if match else int(id))
    if line is None:
        raise Refused(f"there is no task {id}; `osiris task list` shows those there are")
    return line


def summarize_task(settings: Settings, line: TaskSummary) -> dict[str, Any]:
    task = asdict(line.task)
    url = review_url(settings.github_url, line.task.issue, line.task.pull)
    return {
        "id": line.id,
        "url": url,
        "updated": line.updated,
        "waiting_orders": line.waiting,
        **task,
    }


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))
