"""One piece of local work, from the request to the branch; ended at any point, it goes on where it was."""

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

from osiris.bootstrap import Osiris, brains_of, sandbox_of
from osiris.bot.github.comments import cost
from osiris.config import repository_file
from osiris.config.atomic_file import write_atomically
from osiris.config.settings import Settings
from osiris.console.support import operator_name
from osiris.core.errors import Refused, Unavailable
from osiris.core.ports.live import Delta
from osiris.core.task import ENDED, State, Task
from osiris.local.repository import Repository
from osiris.local.terminal import Left, Screen
from osiris.local.work_directories import REQUEST, Places
from osiris.playground.environment import Stage, staged
from osiris.playground.users import Person

_LOOK = 0.2  # seconds between two looks at the task
_CARRIED = re.compile(r"osiris_(model|second|run|toolchains|sandbox|network|cache)|(anthropic|openai|google)_")
_CHOICES = "[a]pprove   ask for [c]hanges   show the [d]iff   [o]pen in the browser   [q]uit for now   [x] drop it:"
_TITLE = 250  # characters
_EMPTY = b"\n\n"
_LONGEST = 60_000  # characters of a request
_LINES = 300  # of a diff that are shown unasked


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the person asked for on the command line; without a `request` the newest unfinished work goes on."""

    path: Path
    request: str
    model: str
    budget: float | None
    yes: bool

    @property
    def later(self) -> str:
        model = f" --model {quote(self.model)}" if self.model else ""
        budget = f" --budget {self.budget:g}" if self.budget else ""
        return f"Nothing is lost. Go on with:  osiris local {quote(str(self.path))}{model}{budget}"


async def play(settings: Settings, wish: Wish) -> None:
    """Work until the branch is there, or the person leaves. Raises Refused with what is missing or went wrong."""
    screen, repository = Screen(), Repository.at(wish.path)
    if not (wish.yes or screen.is_terminal):
        raise Refused("there is no terminal to ask you on; --yes approves what the agent hands in")
    if len(wish.request) > _LONGEST:
        raise Refused(f"the request has more than {_LONGEST} characters; put the rest into a file of the repository")
    repository_file.parse(
        repository.file(repository.commit, repository_file.PATH)
    )  # a mistake in it would let nothing start
    settings = _chosen(settings, wish)
    await _ready(settings)
    places = Places.of(settings.osiris_data_dir, repository.path)
    place = _begun(places, wish, repository) if wish.request else places.unfinished()
    logging.disable(logging.WARNING)  # what matters is told
    try:
        with places.alone_in(place):
            await _on_stage(settings, wish, repository, place, screen)
    except httpx.HTTPStatusError as error:
        raise Refused(f"the hub refused: {error.response.text[:300]}. {wish.later}") from None
    except Left:
        screen.say(wish.later, "bold")
    except asyncio.CancelledError:
        screen.say(f"\nStopped. {wish.later}", "bold")
        raise


def _chosen(settings: Settings, wish: Wish) -> Settings:
    changes = {"osiris_model": wish.model or settings.osiris_model, "osiris_run_usd": wish.budget}
    if not changes["osiris_model"]:
        raise Refused(
            "no model is chosen; give --model anthropic:claude-sonnet-5 (or openai:…, google:…, openai-compatible:…) "
            "or set OSIRIS_MODEL, and set the vendor's key, for example ANTHROPIC_API_KEY"
        )
    return settings.model_copy(update={name: value for name, value in changes.items() if value})


async def _ready(settings: Settings) -> None:
    """Raises Refused when the model or the sandbox would stop the work anyway."""
    brains = brains_of(settings)
    try:
        await brains.probe()
    except Unavailable as outage:
        raise Refused(f"the model cannot be asked now: {outage}") from None
    finally:
        await brains.close()
    settings.osiris_data_dir.mkdir(parents=True, exist_ok=True)
    for probe in await sandbox_of(settings).probe():
        if probe.needed and not probe.ok and not probe.passing:
            raise Refused(f"no safe sandbox on this machine: {probe.name}: {probe.detail}; {probe.fix}")


def _begun(places: Places, wish: Wish, repository: Repository) -> Path:
    """A folder with the request in it: from here on the work can go on after anything."""
    place = places.new()
    asked = {"request": wish.request, "commit": repository.commit, "branch": repository.branch}
    write_atomically(place / REQUEST, json.dumps(asked))
    return place


async def _on_stage(settings: Settings, wish: Wish, repository: Repository, place: Path, screen: Screen) -> None:
    me = _login()
    name = f"{me}/{re.sub(r'[^A-Za-z0-9._-]+', '-', repository.path.name)}"
    carried = {field: getattr(settings, field) for field in Settings.model_fields if _CARRIED.match(field)}
    asked = json.loads((place / REQUEST).read_text())
    source, people = (repository.path, asked["commit"]), {me: "admin"}
    async with (
        staged(place, repo=name, import_from=source, people=people, more=carried, keep=True) as stage,
        stage.osiris(repositories_choose=False) as osiris,
        stage.person(me) as person,
    ):
        await stage.hub.resend()
        session = Session(stage, osiris, person, repository, screen, wish)
        reason = ""
        try:
            await session.play(asked)
        except Dropped as dropped:
            reason = str(dropped)
    Places.finish(place)
    if reason:
        raise Refused(f"the work ended without a branch: {reason}")


def _login() -> str:
    """The person's name on the hub."""
    return re.sub(r"[^A-Za-z0-9]+", "-", operator_name()).strip("-") or "me"


class Dropped(Exception):
    """The work is over, and nothing will come of it; its text says why."""


class Session:
    """The acts. Each looks at what is there already, so that they can be played again."""

    def __init__(
        self, stage: Stage, osiris: Osiris, person: Person, repository: Repository, screen: Screen, wish: Wish
    ) -> None:
        self._stage, self._osiris, self._person = stage, osiris, person
        self._repository, self._screen, self._wish = repository, screen, wish
        self._seen = time.time()

    async def play(self, asked: dict[str, str]) -> None:
        self._tell_base(asked)
        await self._file(asked)
        if (task := await self._task()) and task.state in (State.PAUSED, State.FAILED):
            await self._person.comment(1, "/osiris retry")  # the person came back for that
        while True:
            task = await self._work()
            match task.state:
                case State.APPROVED | State.DONE:
                    return await self._deliver(task)
                case State.REVIEW:
                    await self._review(task)
                case State.PAUSED | State.FAILED:
                    await self._go_on(task)
                case _:
                    raise Dropped(task.reason or task.state)

    def _tell_base(self, asked: dict[str, str]) -> None:
        now, dirty = self._repository, self._repository.dirty
        on = f"branch {asked['branch']}" if asked["branch"] else "no branch"
        self._screen.head("1", f"the base is commit {asked['commit'][:9]} of {now.path} ({on})")
        if dirty:
            what = "1 path has" if dirty == 1 else f"{dirty} paths have"
            self._screen.say(f"   {what} uncommitted changes: they are no part of the work, and stay as they are")
        if now.commit != asked["commit"]:
            self._screen.say(f"   meanwhile you are at {now.commit[:9]}; the work still starts from its base")

    async def _file(self, asked: dict[str, str]) -> None:
        """The request as a labelled issue, once."""
        hub = self._stage.hub.world.repo(self._stage.repo)
        if not hub.issues:
            title, _, body = asked["request"].partition("\n")
            whole = body.strip() if body.strip() and len(title) <= _TITLE else asked["request"]
            await self._person.file_issue(title[:_TITLE], whole)
        if not (issues := hub.issues)[1].labels:
            policy = repository_file.parse(
                (hub.git.read(asked["commit"], repository_file.PATH) or b"").decode("utf-8", "replace")
            )
            await self._person.label(1, policy.label)
        self._screen.head("2", f"the request is issue #1: “{issues[1].title}”; `Ctrl-C` stops, and you can go on later")

    async def _work(self) -> Task:
        """Show what the agent does until the task waits for a person, or has ended."""
        following = asyncio.create_task(self._follow())
        try:
            while True:
                await self._stage.hub.drained()
                if await self._osiris.store.next_due() is None:
                    if task := await self._task():
                        return task
                    raise Refused(f"the work did not begin: {self._last_word()}")
                await asyncio.sleep(_LOOK)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            await self._look()

    def _last_word(self) -> str:
        comments = self._stage.hub.world.repo(self._stage.repo).issues[1].comments
        return comments[-1].body if comments else "nobody says why"

    async def _follow(self) -> None:
        with self._osiris.journal.reading() as news:
            while True:
                piece = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        piece = await news.get()
                if not isinstance(piece, Delta) or self._screen.is_new(piece):
                    await self._look()  # what came before it is shown before it
                if isinstance(piece, Delta):
                    self._screen.delta(piece)

    async def _look(self) -> None:
        for line in await self._osiris.views.tasks():
            steps = await self._osiris.views.steps(line.id, self._seen)
            self._seen = max([self._seen, *(step.at for step in steps)])
            self._screen.steps(steps)

    async def _task(self) -> Task | None:
        for line in await self._osiris.views.tasks():
            return line.task
        return None

    # ── the person's turn ──

    async def _review(self, task: Task) -> None:
        pull = await self._person.pull(task.pull or 0)
        self._screen.head("3", f"the agent handed in {pull['commits']} commit(s): “{pull['title']}”")
        self._show(task, pull)
        if self._wish.yes:
            await self._person.review(pull["number"], "APPROVE")
            return
        async with self._until_moved(task) as moved:
            await self._answer(task, pull, moved)

    def _show(self, task: Task, pull: dict[str, object]) -> None:
        self._diff(pull, _LINES)
        if task.work:
            self._screen.say(f"\n{task.work.summary}\n")
            for command in task.work.commands[-10:]:
                code = "cut off" if command.exit_code is None else f"exit code {command.exit_code}"
                self._screen.say(f"   {code:<14}{command.command.splitlines()[0][:100]}")
            self._screen.say(f"   {cost(task.work).replace('`', '')}", "dim")

    def _diff(self, pull: dict[str, object], most: int | None = None) -> None:
        changes = self._stage.hub.world.repo(self._stage.repo).pulls[int(str(pull["number"]))]
        git = self._stage.hub.world.repo(self._stage.repo).git
        options = ("--no-ext-diff", "--no-textconv", "--no-color", changes.base_sha, changes.head_sha)
        self._screen.diff(git.run("diff", "--stat", *options).decode("utf-8", "replace"))
        self._screen.diff(git.run("diff", *options).decode("utf-8", "replace"), most)

    async def _answer(self, task: Task, pull: dict[str, object], moved: "asyncio.Task[None]") -> None:
        """One answer to the work, here or in the browser, whichever comes first."""
        number = int(str(pull["number"]))
        while (said := await self._typed(_CHOICES, moved)) is not None:
            match said.lower():
                case "a" | "approve":
                    await self._person.review(number, "APPROVE")
                    return
                case "c" | "changes":
                    if wish := await self._typed("What is to be changed? (an empty line ends it)", moved, until=_EMPTY):
                        await self._person.review(number, "REQUEST_CHANGES", wish)
                        return
                case "d" | "diff":
                    self._diff(pull)
                case "o" | "open":
                    address = self._stage.hub.user_url(self._person.login, f"/{self._stage.repo}/pull/{number}")
                    self._screen.say(f"   {address}")
                    await asyncio.to_thread(webbrowser.open, address)
                case "q" | "quit":
                    raise Left
                case "x" | "drop":
                    raise Dropped("you dropped it")
        self._screen.say("\n   answered in the browser")

    async def _typed(self, question: str, moved: "asyncio.Task[None]", *, until: bytes = b"\n") -> str | None:
        """What the person types; None when the task moved before. At the end of the input the person has left."""
        typing = asyncio.create_task(self._screen.ask(question, until=until))
        await asyncio.wait({typing, moved}, return_when=asyncio.FIRST_COMPLETED)
        if typing.done():
            return typing.result()
        typing.cancel()
        return None

    @contextlib.asynccontextmanager
    async def _until_moved(self, task: Task) -> AsyncIterator["asyncio.Task[None]"]:
        moved = asyncio.create_task(self._moved(task))
        try:
            yield moved
        finally:
            moved.cancel()

    async def _moved(self, task: Task) -> None:
        while (now := await self._task()) is None or now.state is task.state:  # noqa: ASYNC110 - it is in a database
            await asyncio.sleep(_LOOK)

    async def _go_on(self, task: Task) -> None:
        """A run that paused or failed: once more, or not."""
        self._screen.head("!", f"{'paused' if task.state is State.PAUSED else 'failed'}: {task.reason}")
        if self._wish.yes:
            raise Refused(f"the agent could not finish: {task.reason.rstrip('.')}. {self._wish.later}")
        async with self._until_moved(task) as moved:
            question = "[r]etry (a spent budget is granted again)   [q]uit for now   [x] drop it:"
            while (said := await self._typed(question, moved)) is not None:
                match said.lower():
                    case "r" | "retry":
                        await self._person.comment(1, "/osiris retry")
                        return
                    case "q" | "quit":
                        raise Left
                    case "x" | "drop":
                        raise Dropped("you dropped it")

    # ── the end ──

    async def _deliver(self, task: Task) -> None:
        world = self._stage.hub.world.repo(self._stage.repo)
        pull = world.pulls[task.pull or 0]
        name = self._repository.take(world.git.path, pull.head_sha, pull.head_ref)
        if task.state not in ENDED:
            await self._person.merge(pull.number)
            await self._work()
        self._screen.head("4", f"the branch {name} is in {self._repository.path}; nothing else there has changed")
        self._screen.say(f"   look at it:  git diff HEAD...{name}")
        self._screen.say(f"   take it:     git merge {name}")
