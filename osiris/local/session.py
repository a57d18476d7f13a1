"""One piece of local work, from the request to the branch; ended at any point, it goes on where it
was."""

import asyncio
import contextlib
import json
import logging
import re
import time
import webbrowser
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import httpx

from osiris.bootstrap import Osiris, create_models, create_sandbox
from osiris.bot.github.comments import format_cost
from osiris.config import repository_file
from osiris.config.atomic_file import write_atomically
from osiris.config.settings import Settings
from osiris.console.support import get_operator_name
from osiris.core.errors import Refused, Unavailable
from osiris.core.ports.live import ReplyDelta
from osiris.core.task import ENDED, State, Task
from osiris.local.repository import LocalRepository
from osiris.local.terminal import Terminal, UserLeft
from osiris.local.work_directories import REQUEST, WorkDirectories
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person

_LOOK = 0.2  # seconds between two looks at the task
_CARRIED = re.compile(
    r"osiris_(model|second|run|toolchains|sandbox|network|cache)|(anthropic|openai|google)_"
)
_CHOICES = (
    "[a]pprove   ask for [c]hanges   show the [d]iff   [o]pen in the browser   [q]uit for now   [x]"
    " drop it:"
)
_TITLE = 250  # characters
_EMPTY = b"\n\n"
_LONGEST = 60_000  # characters of a request
_LINES = 300  # of a diff that are shown unasked


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRequest:
    """What the person asked for on the command line; without a `request` the newest unfinished work
    goes on."""

    path: Path
    request: str
    model: str
    budget: float | None
    yes: bool

    @property
    def resume_hint(self) -> str:
        model = f" --model {quote(self.model)}" if self.model else ""
        budget = f" --budget {self.budget:g}" if self.budget else ""
        return f"Nothing is lost. Go on with:  osiris local {quote(str(self.path))}{model}{budget}"


async def run_local(settings: Settings, wish: LocalRequest) -> None:
    """Work until the branch is there, or the person leaves. Raises Refused with what is missing or
    went wrong."""
    screen = Terminal()
    repository = LocalRepository.open_at(wish.path)
    if not (wish.yes or screen.is_terminal):
        raise Refused("there is no terminal to ask you on; --yes approves what the agent hands in")
    if len(wish.request) > _LONGEST:
        raise Refused(
            f"the request has more than {_LONGEST} characters; put the rest into a file of the"
            " repository"
        )
    # a mistake in it would let nothing start
    repository_file.parse_policy(repository.read_file(repository.commit, repository_file.PATH))
    settings = _apply_choices(settings, wish)
    await _check_readiness(settings)
    places = WorkDirectories.for_repository(settings.osiris_data_dir, repository.path)
    place = _store_request(places, wish, repository) if wish.request else places.find_unfinished()
    logging.disable(logging.WARNING)  # what matters is told
    try:
        with places.lock_directory(place):
            await _run_in_environment(settings, wish, repository, place, screen)
    except httpx.HTTPStatusError as error:
        raise Refused(f"the hub refused: {error.response.text[:300]}. {wish.resume_hint}") from None
    except UserLeft:
        screen.print_line(wish.resume_hint, "bold")
    except asyncio.CancelledError:
        screen.print_line(f"\nStopped. {wish.resume_hint}", "bold")
        raise


def _apply_choices(settings: Settings, wish: LocalRequest) -> Settings:
    changes = {"osiris_model": wish.model or settings.osiris_model, "osiris_run_usd": wish.budget}
    if not changes["osiris_model"]:
        raise Refused(
            "no model is chosen; give --model anthropic:claude-sonnet-5 (or openai:…, google:…,"
            " openai-compatible:…) or set OSIRIS_MODEL, and set the vendor's key, for example"
            " ANTHROPIC_API_KEY"
        )
    return settings.model_copy(update={name: value for name, value in changes.items() if value})


async def _check_readiness(settings: Settings) -> None:
    """Raises Refused when the model or the sandbox would stop the work anyway."""
    brains = create_models(settings)
    try:
        await brains.probe_model()
    except Unavailable as outage:
        raise Refused(f"the model cannot be asked now: {outage}") from None
    finally:
        await brains.close()
    settings.osiris_data_dir.mkdir(parents=True, exist_ok=True)
    for probe in await create_sandbox(settings).probe():
        if probe.needed and not probe.ok and not probe.passing:
            raise Refused(
                f"no safe sandbox on this machine: {probe.name}: {probe.detail}; {probe.fix}"
            )


def _store_request(
    places: WorkDirectories, wish: LocalRequest, repository: LocalRepository
) -> Path:
    """A folder with the request in it: from here on the work can go on after anything."""
    place = places.create_directory()
    asked = {"request": wish.request, "commit": repository.commit, "branch": repository.branch}
    write_atomically(place / REQUEST, json.dumps(asked))
    return place


async def _run_in_environment(
    settings: Settings,
    wish: LocalRequest,
    repository: LocalRepository,
    place: Path,
    screen: Terminal,
) -> None:
    me = _build_login()
    name = f"{me}/{re.sub(r'[^A-Za-z0-9._-]+', '-', repository.path.name)}"
    carried = {
        field: getattr(settings, field) for field in Settings.model_fields if _CARRIED.match(field)
    }
    asked = json.loads((place / REQUEST).read_text())
    source = (repository.path, asked["commit"])
    people = {me: "admin"}
    async with (
        start_environment(
            place, repo=name, import_from=source, people=people, more=carried, keep=True
        ) as stage,
        stage.run_osiris(repositories_choose=False) as osiris,
        stage.get_person(me) as person,
    ):
        await stage.hub.resend_webhooks()
        session = LocalSession(stage, osiris, person, repository, screen, wish)
        reason = ""
        try:
            await session.run(asked)
        except WorkDropped as dropped:
            reason = str(dropped)
    WorkDirectories.mark_finished(place)
    if reason:
        raise Refused(f"the work ended without a branch: {reason}")


def _build_login() -> str:
    """The person's name on the hub."""
    return re.sub(r"[^A-Za-z0-9]+", "-", get_operator_name()).strip("-") or "me"


class WorkDropped(Exception):
    """The work is over, and nothing will come of it; its text says why."""


class LocalSession:
    """The acts. Each looks at what is there already, so that they can be played again."""

    def __init__(
        self,
        stage: Environment,
        osiris: Osiris,
        person: Person,
        repository: LocalRepository,
        screen: Terminal,
        wish: LocalRequest,
    ) -> None:
        self._environment = stage
        self._osiris = osiris
        self._person = person
        self._repository = repository
        self._terminal = screen
        self._request = wish
        self._seen = time.time()

    async def run(self, asked: dict[str, str]) -> None:
        self._print_base(asked)
        await self._file_issue(asked)
        if (task := await self._read_task()) and task.state in (State.PAUSED, State.FAILED):
            await self._person.add_comment(1, "/osiris retry")  # the person came back for that
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
        """The request as a labelled issue, once."""
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
        """Show what the agent does until the task waits for a person, or has ended."""
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
        with self._osiris.live_events.subscribe() as news:
            while True:
                piece = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        piece = await news.get()
                if not isinstance(piece, ReplyDelta) or self._terminal.is_first_piece(piece):
                    await self._print_new_steps()  # what came before it is shown before it
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

    # ── the person's turn ──

    async def _review_work(self, task: Task) -> None:
        pull = await self._person.get_pull(task.pull or 0)
        self._terminal.print_heading(
            "3", f"the agent handed in {pull['commits']} commit(s): “{pull['title']}”"
        )
        self._show_work(task, pull)
        if self._request.yes:
            await self._person.submit_review(pull["number"], "APPROVE")
            return
        async with self._watch_state(task) as moved:
            await self._answer_review(task, pull, moved)

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
        self, task: Task, pull: dict[str, object], moved: "asyncio.Task[None]"
    ) -> None:
        """One answer to the work, here or in the browser, whichever comes first."""
        number = int(str(pull["number"]))
        while (said := await self._ask_unless_changed(_CHOICES, moved)) is not None:
            match said.lower():
                case "a" | "approve":
                    await self._person.submit_review(number, "APPROVE")
                    return
                case "c" | "changes":
                    if wish := await self._ask_unless_changed(
                        "What is to be changed? (an empty line ends it)", moved, until=_EMPTY
                    ):
                        await self._person.submit_review(number, "REQUEST_CHANGES", wish)
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
        self, question: str, moved: "asyncio.Task[None]", *, until: bytes = b"\n"
    ) -> str | None:
        """What the person types; None when the task moved before. At the end of the input the
        person has left."""
        typing = asyncio.create_task(self._terminal.ask_question(question, until=until))
        await asyncio.wait({typing, moved}, return_when=asyncio.FIRST_COMPLETED)
        if typing.done():
            return typing.result()
        typing.cancel()
        return None

    @contextlib.asynccontextmanager
    async def _watch_state(self, task: Task) -> AsyncIterator["asyncio.Task[None]"]:
        moved = asyncio.create_task(self._wait_for_change(task))
        try:
            yield moved
        finally:
            moved.cancel()

    async def _wait_for_change(self, task: Task) -> None:
        while (now := await self._read_task()) is None or now.state is task.state:  # noqa: ASYNC110 - it is in a database
            await asyncio.sleep(_LOOK)

    async def _offer_retry(self, task: Task) -> None:
        """A run that paused or failed: once more, or not."""
        self._terminal.print_heading(
            "!", f"{'paused' if task.state is State.PAUSED else 'failed'}: {task.reason}"
        )
        if self._request.yes:
            raise Refused(
                f"the agent could not finish: {task.reason.rstrip('.')}."
                f" {self._request.resume_hint}"
            )
        async with self._watch_state(task) as moved:
            question = "[r]etry (a spent budget is granted again)   [q]uit for now   [x] drop it:"
            while (said := await self._ask_unless_changed(question, moved)) is not None:
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
