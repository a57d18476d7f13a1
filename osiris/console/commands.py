"""Commands that request something: they add the operator's request to the inbox, like
everyone's."""

import asyncio
import re
import time
from uuid import uuid4

from rich.text import Text

from osiris.config.settings import Settings
from osiris.console.support import (
    LOOK,
    find_task,
    get_operator_name,
    make_console,
    make_safe,
    open_views,
    print_json,
    summarize_task,
)
from osiris.core import events as e
from osiris.core.errors import Refused
from osiris.data_folder import prepare_storage
from osiris.queue.database import connect
from osiris.queue.in_process import LocalWake
from osiris.queue.inbox import DatabaseInbox
from osiris.queue.inbox_rows import OWN
from osiris.queue.read_models import ReadModels
from osiris.queue.task_store import Store

_PATIENCE = 3.0  # seconds to wait for a worker to process the request


async def cancel_task(settings: Settings, id: str, *, as_json: bool) -> None:
    await _send_command(settings, id, e.StopRequested, as_json=as_json)


async def retry_task(settings: Settings, id: str, *, as_json: bool) -> None:
    await _send_command(settings, id, e.RetryRequested, as_json=as_json)


async def _send_command(
    settings: Settings,
    id: str,
    request: type[e.StopRequested] | type[e.RetryRequested],
    *,
    as_json: bool,
) -> None:
    async with open_views(settings) as views:
        line = await find_task(views, id)
    # anyone who can write to the database is the operator
    operator = e.Actor(get_operator_name(), e.Role.ADMIN)
    taken = await _append_event(settings, request(issue=line.task.issue, actor=operator))
    async with open_views(settings) as views:
        line = await find_task(views, id)
    if as_json:
        print_json({**summarize_task(settings, line), "taken_up": taken})
    else:
        now = f"{make_safe(line.task.issue)} is now {line.task.state.value}"
        make_console().print(Text(now if taken else _LATER))


_LATER = "noted; it takes effect as soon as `osiris serve` runs with all its settings"


async def file_request(settings: Settings, text: str, repo: str) -> None:
    """File a request under the operator's name. Raises Refused for an invalid one."""
    title, _, body = text.strip().partition("\n")
    if not title:
        raise Refused("describe what to do")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise Refused(f"--repo must be owner/name, not {repo!r}")
    key = uuid4().hex
    made = e.RequestMade(
        key=key,
        repo=repo,
        title=title[:250],
        body=body.strip() or title,
        principal=e.Principal(name=get_operator_name(), authentication=e.Authentication.OPERATOR),
    )
    await prepare_storage(settings, engine := connect(settings.database))
    await engine.dispose()
    taken = await _append_event(settings, made)
    appears = f"accepted; the issue will appear in {make_safe(repo)}"
    make_console().print(Text(appears if taken else _LATER))


async def _append_event(settings: Settings, event: e.Event) -> bool:
    """Add an event to the inbox; return True when a worker processed it within a few seconds."""
    store = Store(engine := connect(settings.database))
    key = f"operator/{uuid4().hex}"
    try:
        await DatabaseInbox(store, LocalWake()).accept_fact(key, event)
        views = ReadModels(engine)
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            if await views.is_handled(OWN, key):
                return True
            await asyncio.sleep(LOOK)
        return False
    finally:
        await store.close()
