"""Runs a repository's one check command for every pushed commit, one at a time, as an app of the
hub's own."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import yaml

from osiris.core.errors import OsirisError
from osiris.devhub.models import App, CheckRun, HubEvent, Repo
from osiris.devhub.world import World

RunCheck = Callable[[Path, str, str], Awaitable[tuple[int | None, str]]]
FILE = ".github/devhub-ci.yml"
LONGEST = 60_000
NO_COMMIT = "0" * 40


class CheckRunner:
    """Listens for pushes, and works through them in order."""

    def __init__(self, world: World, run_check: RunCheck) -> None:
        self._world = world
        self._run_check = run_check
        self._queue: asyncio.Queue[tuple[CheckRun, str]] = asyncio.Queue()
        self._app: App | None = None
        self._worker = asyncio.create_task(self._process_queue())
        world.listeners.append(self.on_event)

    def on_event(self, happening: HubEvent) -> None:
        if happening.event != "push" or happening.subject["after"] == NO_COMMIT:
            return
        sha: str = happening.subject["after"]
        command = read_command(happening.repo, sha)
        if command:
            run = self._world.start_check(
                happening.repo, self._get_app(), sha, "ci", status="in_progress"
            )
            self._queue.put_nowait((run, command))

    def _get_app(self) -> App:
        if self._app is None:
            self._app = self._world.add_app(
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
        except OsirisError as error:  # there is no place to run it in: the check says so
            code = None
            output = str(error)
        said = f"`{command}` " + (
            "could not be finished" if code is None else f"ended with exit code {code}"
        )
        self._world.update_check(
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
    """The `command:` of the commit's own file, empty when there is none."""
    text = repo.git.read_file(sha, FILE)
    if text is None:
        return ""
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError:
        return ""
    command = settings.get("command") if isinstance(settings, dict) else None
    return command if isinstance(command, str) else ""
