"""One session of `osiris local`: the request becomes an issue, the person reviews the work, and the
branch is delivered. A session that was interrupted at any point resumes there."""

import asyncio
import contextlib
import time
import webbrowser
from collections.abc import AsyncIterator

from osiris.bootstrap import Osiris
from osiris.bot.github.comments import format_cost
from osiris.config import repository_file
from osiris.core.errors import Refused
from osiris.core.ports.live import ReplyDelta
from osiris.core.task import ENDED, State, Task
from osiris.local.repository import LocalRepository
from osiris.local.request import LocalRequest
from osiris.local.terminal import Terminal, UserLeft
from osiris.playground.environment import Environment
from osiris.playground.users import Person

_LOOK = 0.2  # seconds between two polls of the task
_CHOICES = (
    "[a]pprove   ask for [c]hanges   show the [d]iff   [o]pen in the browser   [q]uit for now   [x]"
    " drop it:"
)
_TITLE = 250  # characters
_EMPTY = b"\n\n"
_LINES = 300  # of a diff that are shown at first


class WorkDropped(Exception):
    """The work ended without a result; the text is the reason."""


class LocalSession:
    """The steps of one session. Each step first reads the present state, so that it can be
    repeated."""

    def __init__(
        self,
        environment: Environment,
        osiris: Osiris,
        person: Person,
        repository: LocalRepository,
        terminal: Terminal,
        request: LocalRequest,
    ) -> None:
        self._environment = environment
        self._osiris = osiris
        self._person = person
        self._repository = repository
        self._terminal = terminal
        self._request = request
        self._seen = time.time()

    async def run(self, asked: dict[str, str]) -> None:
        self._print_base(asked)
        await self._file_issue(asked)
        if (task := await self._read_task()) and task.state in (State.PAUSED, State.FAILED):
            # the person started the command again to retry
            await self._person.add_comment(1, "/osiris retry")
        while True:
            task = await self._wait_for_task()
            match task.state:
                case State.APPROVED | State.DONE:
                    return await self._deliver_branch(task)
                case State.REVIEW:
                    await self._review_work(task)
                case State.PAUSED | State.FAILED:
                    await self._offer_retry(task)
                case _:
                    raise WorkDropped(task.reason or task.state)

    def _print_base(self, asked: dict[str, str]) -> None:
        now, dirty = self._repository, self._repository.dirty
        on = f"branch {asked['branch']}" if asked["branch"] else "no branch"
        self._terminal.print_heading(
            "1", f"the base is commit {asked['commit'][:9]} of {now.path} ({on})"
        )
        if dirty:
            what = "1 path has" if dirty == 1 else f"{dirty} paths have"
            self._terminal.print_line(
                f"   {what} uncommitted changes: they are no part of the work, and stay as they are"
            )
        if now.commit != asked["commit"]:
            self._terminal.print_line(
                f"   meanwhile you are at {now.commit[:9]}; the work still starts from its base"
            )

    async def _file_issue(self, asked: dict[str, str]) -> None:
        """File the request as a labelled issue, unless there is one already."""
        hub = self._environment.hub.world.get_repo(self._environment.repo)
        if not hub.issues:
            title, _, body = asked["request"].partition("\n")
            whole = body.strip() if body.strip() and len(title) <= _TITLE else asked["request"]
            await self._person.file_issue(title[:_TITLE], whole)
        if not (issues := hub.issues)[1].labels:
            policy = repository_file.parse_policy(
                (hub.git.read_file(asked["commit"], repository_file.PATH) or b"").decode(
                    "utf-8", "replace"
                )
            )
            await self._person.add_label(1, policy.label)
        self._terminal.print_heading(
            "2",
            f"the request is issue #1: “{issues[1].title}”; `Ctrl-C` stops, and you can go on"
            " later",
        )

    async def _wait_for_task(self) -> Task:
        """Show the agent's steps until the task waits for a person or has ended. Return the
        task."""
        following = asyncio.create_task(self._follow_events())
        try:
            while True:
                await self._environment.hub.wait_until_sent()
                if await self._osiris.store.next_due() is None:
                    if task := await self._read_task():
                        return task
                    raise Refused(f"the work did not begin: {self._read_last_comment()}")
                await asyncio.sleep(_LOOK)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._print_new_steps()

    def _read_last_comment(self) -> str:
        comments = self._environment.hub.world.get_repo(self._environment.repo).issues[1].comments
        return comments[-1].body if comments else "nobody says why"

    async def _follow_events(self) -> None:
        with self._osiris.live_events.subscribe() as events:
            while True:
                piece = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        piece = await events.get()
                if not isinstance(piece, ReplyDelta) or self._terminal.is_first_piece(piece):
                    await self._print_new_steps()  # steps before this piece are shown first
                if isinstance(piece, ReplyDelta):
                    self._terminal.print_delta(piece)

    async def _print_new_steps(self) -> None:
        for line in await self._osiris.read_models.list_tasks():
            steps = await self._osiris.read_models.list_steps(line.id, self._seen)
            self._seen = max([self._seen, *(step.at for step in steps)])
            self._terminal.print_steps(steps)

    async def _read_task(self) -> Task | None:
        for line in await self._osiris.read_models.list_tasks():
            return line.task
        return None

    # ── the person's answers ──

    async def _review_work(self, task: Task) -> None:
        pull = await self._person.get_pull(task.pull or 0)
        self._terminal.print_heading(
            "3", f"the agent handed in {pull['commits']} commit(s): “{pull['title']}”"
        )
        self._show_work(task, pull)
        if self._request.yes:
            await self._person.submit_review(pull["number"], "APPROVE")
            return
        async with self._watch_state(task) as changed:
            await self._answer_review(task, pull, changed)

    def _show_work(self, task: Task, pull: dict[str, object]) -> None:
        self._show_diff(pull, _LINES)
        if task.work:
            self._terminal.print_line(f"\n{task.work.summary}\n")
            for command in task.work.commands[-10:]:
                code = "cut off" if command.exit_code is None else f"exit code {command.exit_code}"
                self._terminal.print_line(f"   {code:<14}{command.command.splitlines()[0][:100]}")
            self._terminal.print_line(f"   {format_cost(task.work).replace('`', '')}", "dim")

    def _show_diff(self, pull: dict[str, object], most: int | None = None) -> None:
        changes = self._environment.hub.world.get_repo(self._environment.repo).pulls[
            int(str(pull["number"]))
        ]
        git = self._environment.hub.world.get_repo(self._environment.repo).git
        options = (
            "--no-ext-diff",
            "--no-textconv",
            "--no-color",
            changes.base_sha,
            changes.head_sha,
        )
        self._terminal.print_diff(git.run("diff", "--stat", *options).decode("utf-8", "replace"))
        self._terminal.print_diff(git.run("diff", *options).decode("utf-8", "replace"), most)

    async def _answer_review(
        self, task: Task, pull: dict[str, object], changed: "asyncio.Task[None]"
    ) -> None:
        """Wait for one answer to the work, in the terminal or in the browser, whichever comes
        first."""
        number = int(str(pull["number"]))
        while (said := await self._ask_unless_changed(_CHOICES, changed)) is not None:
            match said.lower():
                case "a" | "approve":
                    await self._person.submit_review(number, "APPROVE")
                    return
                case "c" | "changes":
                    if changes := await self._ask_unless_changed(
                        "What is to be changed? (an empty line ends it)", changed, until=_EMPTY
                    ):
                        await self._person.submit_review(number, "REQUEST_CHANGES", changes)
                        return
                case "d" | "diff":
                    self._show_diff(pull)
                case "o" | "open":
                    address = self._environment.hub.build_sign_in_url(
                        self._person.login, f"/{self._environment.repo}/pull/{number}"
                    )
                    self._terminal.print_line(f"   {address}")
                    await asyncio.to_thread(webbrowser.open, address)
                case "q" | "quit":
                    raise UserLeft
                case "x" | "drop":
                    raise WorkDropped("you dropped it")
        self._terminal.print_line("\n   answered in the browser")

    async def _ask_unless_changed(
        self, question: str, changed: "asyncio.Task[None]", *, until: bytes = b"\n"
    ) -> str | None:
        """Return the typed answer; None when the task changed first. Raises UserLeft at the end of
        the input."""
        typing = asyncio.create_task(self._terminal.ask_question(question, until=until))
        await asyncio.wait({typing, changed}, return_when=asyncio.FIRST_COMPLETED)
        if typing.done():
            return typing.result()
        typing.cancel()
        return None

    @contextlib.asynccontextmanager
    async def _watch_state(self, task: Task) -> AsyncIterator["asyncio.Task[None]"]:
        changed = asyncio.create_task(self._wait_for_change(task))
        try:
            yield changed
        finally:
            changed.cancel()

    async def _wait_for_change(self, task: Task) -> None:
        while (now := await self._read_task()) is None or now.state is task.state:  # noqa: ASYNC110 - it is in a database
            await asyncio.sleep(_LOOK)

    async def _offer_retry(self, task: Task) -> None:
        """Ask whether to retry a run that paused or failed."""
        self._terminal.print_heading(
            "!", f"{'paused' if task.state is State.PAUSED else 'failed'}: {task.reason}"
        )
        if self._request.yes:
            raise Refused(
                f"the agent could not finish: {task.reason.rstrip('.')}."
                f" {self._request.resume_hint}"
            )
        async with self._watch_state(task) as changed:
            question = "[r]etry (a spent budget is granted again)   [q]uit for now   [x] drop it:"
            while (said := await self._ask_unless_changed(question, changed)) is not None:
                match said.lower():
                    case "r" | "retry":
                        await self._person.add_comment(1, "/osiris retry")
                        return
                    case "q" | "quit":
                        raise UserLeft
                    case "x" | "drop":
                        raise WorkDropped("you dropped it")

    # ── the end ──

    async def _deliver_branch(self, task: Task) -> None:
        world = self._environment.hub.world.get_repo(self._environment.repo)
        pull = world.pulls[task.pull or 0]
        name = self._repository.import_commit(world.git.path, pull.head_sha, pull.head_ref)
        if task.state not in ENDED:
            await self._person.merge_pull(pull.number)
            await self._wait_for_task()
        self._terminal.print_heading(
            "4", f"the branch {name} is in {self._repository.path}; nothing else there has changed"
        )
        self._terminal.print_line(f"   look at it:  git diff HEAD...{name}")
        self._terminal.print_line(f"   take it:     git merge {name}")
