"""Osiris as a process that counts its external calls ("touches") and kills itself at one of them.

A touch is an SQL statement, a commit, the start of a process (git, jails), an HTTP request before
it is sent and after it is answered, or a request to the model. A `kill -9` at each of them covers
every await that matters: between two touches, nothing happens that could be observed afterwards.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import greenlet
import httpx
import yaml
from sqlalchemy import Engine, event

import osiris
from osiris.bootstrap import Parts, Timeouts, build_osiris
from osiris.config.settings import Settings
from osiris.core.ports.models import LanguageModel, Message, OnDelta, ToolSpec, ignore_deltas
from osiris.factories import create_models
from osiris.playground.environment import start_environment
from osiris.queue.database import connect
from osiris.queue.read_models import ReadModels
from osiris.queue.task_store import Store
from osiris.runtime import serve
from tests.flow.conftest import FILES, PEOPLE, REPO, STORY, keys
from tests.flow.support.cluster import answers
from tests.flow.test_crash import CrashEnvironment
from tests.forkserver import FORKS

OURS = f"{Path(osiris.__file__).parent}/"


@dataclass(frozen=True, slots=True)
class Moment:
    """The `number`-th time that a process makes an external call from one place in Osiris's
    code."""

    place: str
    number: int


Fate = int | Moment | Path | None
"""The fate of a process: it dies at a touch of this number or at a moment, or survives; with a
path, it writes the place of each touch into that file."""


def place() -> str:
    """Return the lines of Osiris's code on the call stack, innermost first, including the stacks
    behind SQLAlchemy's greenlets."""
    here = greenlet.getcurrent()
    stacks = [sys._getframe(2)]
    while here.parent is not None:
        here = here.parent
        if here.gr_frame is not None:
            stacks.append(here.gr_frame)
    frames = [frame for stack in stacks for frame, _ in traceback.walk_stack(stack)]
    ours = [frame for frame in frames if frame.f_code.co_filename.startswith(OURS)]
    return " < ".join(
        f"{frame.f_code.co_filename.removeprefix(OURS)}:{frame.f_lineno}" for frame in ours
    )


class Fuse:
    """Counts touches, and kills the process at the one that `fate` names."""

    def __init__(self, fate: Fate, burnt: "Synchronized[int]") -> None:
        self._fate = fate
        self._burnt = burnt
        self._came_by = 0

    def touch(self, *_: object, **__: object) -> None:
        self._burnt.value += 1
        if self._is_over():
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_over(self) -> bool:
        match self._fate:
            case int():
                return self._burnt.value == self._fate
            case Moment() as moment:
                self._came_by += place() == moment.place
                return self._came_by == moment.number
            case Path() as file:
                with file.open("a") as places:
                    places.write(f"{place()}\n")
        return False

    def lay(self) -> None:
        """Register for every touch of this process."""
        event.listen(Engine, "before_cursor_execute", self.touch)
        event.listen(Engine, "commit", self.touch)
        sys.addaudithook(self._audit)
        httpx.AsyncHTTPTransport.handle_async_request = self._around(  # type: ignore[method-assign]
            httpx.AsyncHTTPTransport.handle_async_request
        )

    def _audit(self, name: str, _args: tuple[Any, ...]) -> None:
        if name == "subprocess.Popen":
            self.touch()

    def _around(self, send: Callable[..., Any]) -> Callable[..., Any]:
        async def sent(
            transport: httpx.AsyncHTTPTransport, request: httpx.Request
        ) -> httpx.Response:
            self.touch()
            answer: httpx.Response = await send(transport, request)
            self.touch()
            return answer

        return sent


class InstrumentedModel:
    """A model whose requests count as touches."""

    def __init__(self, model: LanguageModel, fuse: Fuse) -> None:
        self._model = model
        self._fuse = fuse
        self.is_priced = model.is_priced

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        self._fuse.touch()
        return await self._model.reply(transcript, tools, on_delta)


def live(settings: Settings, fate: Fate, burnt: "Synchronized[int]") -> None:
    """Run web and worker in one process until it kills itself or is killed."""
    logging.disable(logging.CRITICAL)
    fuse = Fuse(fate, burnt)
    brains = create_models(settings)
    fuse.lay()

    async def choose(model: str) -> LanguageModel:
        return InstrumentedModel(await brains.select(model), fuse)

    parts = Parts(select_model=choose, timeouts=Timeouts(pauses=(0.05,)))
    asyncio.run(serve(build_osiris(settings, parts)))


class Fused:
    """Consecutive processes with the same settings, each with its fate; the last one survives."""

    def __init__(self, settings: Settings, fates: Sequence[Fate]) -> None:
        self._settings = settings
        self._fates = iter(fates)
        self._process: BaseProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self.deaths = 0
        self.touches: list[int] = []
        """The number of touches of each process."""

    def begin(self) -> None:
        self._watching = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        """Start the next process whenever one has died."""
        while True:
            fate = next(self._fates, None)
            burnt = FORKS.Value("q", 0)
            self._process = process = FORKS.Process(
                target=live, args=(self._settings, fate, burnt), daemon=True
            )
            process.start()
            try:
                while process.is_alive():
                    await asyncio.sleep(0.05)
            finally:
                self.touches.append(burnt.value)
            assert process.exitcode == -signal.SIGKILL, f"a life ended with {process.exitcode}"
            self.deaths += 1

    def check(self) -> None:
        """Raise the error of a process, if there was one."""
        if self._watching is not None and self._watching.done():
            self._watching.result()

    async def end(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        if self._process is not None:
            self._process.kill()
            self._process.join()


@contextlib.asynccontextmanager
async def fused(
    place: Path, fates: Sequence[Fate]
) -> AsyncIterator[tuple[CrashEnvironment, Fused]]:
    """Start the environment of the crash tests with processes that kill themselves."""
    script = place / "script.yml"
    script.write_text(yaml.safe_dump(STORY))
    async with start_environment(
        place, repo=REPO, files=FILES, people=PEOPLE, keys=keys(), model=f"scripted:{script}"
    ) as stage:
        lives = Fused(stage.settings, fates)
        store = Store(engine := connect(stage.settings.database))
        lives.begin()
        try:
            async with asyncio.timeout(60):
                while not await answers(stage):
                    await asyncio.sleep(0.05)
            async with stage.get_person("alice") as alice, stage.get_person("bob") as bob:
                yield (
                    CrashEnvironment(
                        stage=stage,
                        lives=lives,
                        store=store,
                        views=ReadModels(engine),
                        alice=alice,
                        bob=bob,
                    ),
                    lives,
                )
        finally:
            await lives.end()
            await store.close()


async def killed_at(place: Path, fates: Sequence[Fate]) -> tuple[dict[str, object], Fused]:
    """Run a task from label to merge with processes that have these fates. Return the visible
    result, and the processes."""
    async with fused(place, fates) as (it, lives):
        seen = await it.whole_life()
        lives.check()
    return seen, lives
