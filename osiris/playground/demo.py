"""The demo: a maintainer labels an issue, an agent works on it, a person reviews twice and
merges."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from osiris.bootstrap import Osiris
from osiris.console.reports import format_steps
from osiris.core.errors import Refused
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.options import SandboxOptions

REPO = "acme/shop"
_TITLE = "Adding an article twice loses the first quantity"
_BODY = """\
```python
cart.add("pen", 120)
cart.add("pen", 120, quantity=2)
cart.quantity("pen")   # 2, should be 3
```
"""


async def play_demo(*, keep: bool) -> None:
    """Run the complete workflow with real devhub, webhooks, database, sandbox and git.

    Nothing of it stays on this machine, however it ends; with `keep` it goes on until Ctrl-C or
    SIGTERM. Raises Refused when it is not possible.
    """
    stop_with_sigterm()
    out = Console(soft_wrap=True, highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="osiris-demo-"))
    folder.chmod(0o711)
    logging.disable(logging.INFO)
    jail = BubblewrapSandbox(folder / "ci", Path, SandboxOptions(weak=True, network="none"))
    people = {"alice": "maintain", "bob": "write"}
    try:
        sample = Path(str(files("osiris.playground") / "sample"))
        script = files("osiris.playground") / "script.yml"
        async with (
            start_environment(
                folder,
                repo=REPO,
                files=read_tree(sample),
                people=people,
                model=f"scripted:{script}",
                sandbox=jail,
            ) as environment,
            environment.run_osiris() as osiris,
        ):
            pull = await Demo(environment, osiris, out).run()
            _print_farewell(out, environment, pull, folder, keep=keep)
            if keep:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stop_with_sigterm() -> None:
    """Let SIGTERM cancel the current task, as Ctrl-C does, so that it cleans up."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the contents of the files below a folder, by their relative paths."""
    paths = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Demo:
    """The steps of the demo, each announced as it happens."""

    def __init__(self, environment: Environment, osiris: Osiris, out: Console) -> None:
        self._environment = environment
        self._osiris = osiris
        self._out = out
        self._seen = 0.0

    async def run(self) -> int:
        async with (
            self._environment.get_person("alice") as alice,
            self._environment.get_person("bob") as bob,
        ):
            self._print_act(
                "1",
                f"a small GitHub runs on {self._environment.hub.url}, with the repository {REPO}",
            )
            issue = await alice.file_issue(_TITLE, _BODY)
            await alice.add_label(issue)
            self._print_act(
                "2", f"alice filed issue #{issue} and gave it the label osiris: “{_TITLE}”"
            )
            async with self._show_progress():
                await self._environment.wait_until_settled(self._osiris.store)
            pull = (await self._list_pulls(alice))[0]["number"]
            self._print_act("3", f"Osiris opened draft pull request #{pull}, with its evidence")
            thread = {
                "path": "shop/cart.py",
                "line": 13,
                "body": "Another price must be refused. With a test, please.",
            }
            await bob.submit_review(pull, "REQUEST_CHANGES", "Good. One case is missing.", [thread])
            self._print_act("4", f"bob asked for changes, at a line: “{thread['body']}”")
            async with self._show_progress():
                await self._environment.wait_until_settled(self._osiris.store)
            commits = await bob.send_request("GET", f"/pulls/{pull}/commits")
            self._print_act(
                "5", f"Osiris answered on the same pull request: {len(commits)} commits now"
            )
            await bob.submit_review(pull, "APPROVE", "Thank you.")
            await self._environment.wait_until_settled(self._osiris.store)
            await self._environment.hub.wait_until_checked()
            await bob.merge_pull(pull)
            await self._environment.wait_until_settled(self._osiris.store)
            await self._check_end(alice, issue)
            return int(pull)

    async def _list_pulls(self, person: Person) -> list[dict[str, Any]]:
        found = await person.list_pulls()
        if not found:
            [line] = await self._osiris.read_models.list_tasks()
            raise Refused(f"the demo stopped: {line.task.reason or line.task.state}")
        return found

    async def _check_end(self, alice: Person, issue: int) -> None:
        [line] = await self._osiris.read_models.list_tasks()
        if line.task.state != "done":
            raise Refused(f"the demo ended in the state {line.task.state}: {line.task.reason}")
        state = (await alice.send_request("GET", f"/issues/{issue}"))["state"]
        self._print_act(
            "6", f"bob approved and merged; issue #{issue} is {state}, the task is done"
        )

    @contextlib.asynccontextmanager
    async def _show_progress(self) -> AsyncIterator[None]:
        """Show the agent's steps while the block runs."""
        following = asyncio.create_task(self._follow_steps())
        spin = (
            self._out.status("the agent works")
            if self._out.is_terminal
            else contextlib.nullcontext()
        )
        try:
            with spin:
                yield
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._print_new_steps()

    async def _follow_steps(self) -> None:
        while True:
            await self._print_new_steps()
            await asyncio.sleep(0.1)

    async def _print_new_steps(self) -> None:
        for line in await self._osiris.read_models.list_tasks():
            steps = await self._osiris.read_models.list_steps(line.id, self._seen)
            self._seen = max([self._seen, *(step.at for step in steps)])
            for words in format_steps(steps):
                self._out.print(Text(f"   {words}", style="dim"))

    def _print_act(self, number: str, words: str) -> None:
        self._out.print(Text.assemble((f"{number}  ", "bold cyan"), words))


def _print_farewell(
    out: Console, environment: Environment, pull: int, folder: Path, *, keep: bool
) -> None:
    repo = folder / "hub" / "repos" / f"{REPO}.git"
    told = subprocess.run(
        ["git", "log", "--oneline", "--graph", "main"],
        env={"GIT_DIR": str(repo), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    out.print()
    for line in told.stdout.splitlines():
        out.print(Text(f"   {line}", style="yellow"))
    out.print()
    if not keep:
        out.print(f"`{_find_command()} demo --keep` leaves it running, to view it in the browser.")
        return
    page = environment.hub.build_sign_in_url("bob", f"/{REPO}/pull/{pull}")
    history = f"OSIRIS_DATA_DIR={folder / 'osiris'} {_find_command()} task show 1"
    out.print(f"View it:               {page}")
    out.print(f"The merged repository: git clone {repo}")
    out.print(f"The task's history:    {history}")
    out.print("Ctrl-C ends it and removes everything.")


def _find_command() -> str:
    """Return the path of the `osiris` command, relative to the current directory."""
    beside = Path(sys.executable).with_name("osiris")
    return os.path.relpath(beside) if beside.exists() else "osiris"
