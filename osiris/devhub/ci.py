"""The hub's CI: it runs the check command of a repository for every pushed commit, one at a time,
as an App of the hub itself."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import yaml

from osiris.core.errors import OsirisError
from osiris.devhub import check_runs, installations
from osiris.devhub.models import App, CheckRun, HubEvent, Repo
from osiris.devhub.world import World

RunCheck = Callable[[Path, str, str], Awaitable[tuple[int | None, str]]]
FILE = ".github/devhub-ci.yml"
LONGEST = 60_000
NO_COMMIT = "0" * 40


class CheckRunner:
    """A runner of checks that listens for pushes and processes them in order."""

    def __init__(self, world: World, run_check: RunCheck) -> None:
        self._world = world
        self._run_check = run_check
        self._queue: asyncio.Queue[tuple[CheckRun, str]] = asyncio.Queue()
        self._app: App | None = None
        self._worker = asyncio.create_task(self._process_queue())
        world.listeners.append(self.on_event)

    def on_event(self, event: HubEvent) -> None:
        if event.event != "push" or event.subject["after"] == NO_COMMIT:
            return
        sha: str = event.subject["after"]
        command = read_command(event.repo, sha)
        if command:
            run = check_runs.start_check(
                self._world, event.repo, self._get_app(), sha, "ci", status="in_progress"
            )
            self._queue.put_nowait((run, command))

    def _get_app(self) -> App:
        if self._app is None:
            self._app = installations.add_app(
                self._world,
                slug="devhub-actions",
                webhook_url="",
                webhook_secret="",
                permissions={"checks": "write", "contents": "read"},
                events=(),
            )
        return self._app

    async def _process_queue(self) -> None:
        while True:
            run, command = await self._queue.get()
            try:
                await self._run_queued_check(run, command)
            finally:
                self._queue.task_done()

    async def _run_queued_check(self, run: CheckRun, command: str) -> None:
        try:
            code, output = await self._run_check(run.suite.repo.git.path, run.sha, command)
        except OsirisError as error:  # there is no sandbox to run it in: the check reports that
            code = None
            output = str(error)
        said = f"`{command}` " + (
            "could not be finished" if code is None else f"ended with exit code {code}"
        )
        check_runs.update_check(
            self._world,
            run,
            conclusion="success" if code == 0 else "failure",
            output={
                "title": "passed" if code == 0 else "failed",
                "summary": said,
                "text": output[-LONGEST:],
            },
        )

    async def wait_until_checked(self) -> None:
        """Wait until every push so far has been checked."""
        done = asyncio.ensure_future(self._queue.join())
        await asyncio.wait([done, self._worker], return_when=asyncio.FIRST_COMPLETED)
        done.cancel()
        if self._worker.done():
            self._worker.result()

    async def close(self) -> None:
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)


def read_command(repo: Repo, sha: str) -> str:
    """Return the `command:` of the file in the commit; "" when there is none."""
    text = repo.git.read_file(sha, FILE)
    if text is None:
        return ""
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    command = settings.get("command") if isinstance(settings, dict) else None
    return command if isinstance(command, str) else ""
