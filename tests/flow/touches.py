"""Osiris as a process that counts how often it touches the outside, and kills itself at one of these touches.

A touch is an SQL statement or a commit, a process that is started (git, jails), an HTTP request before it is sent and
after it was answered, and a question to the model. `kill -9` at each of them is `kill -9` at every await that matters:
between two touches nothing happens that anybody could see afterwards.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import httpx
import yaml
from sqlalchemy import Engine, event

from osiris.bootstrap import Patience, brains_of, build
from osiris.config.settings import Settings
from osiris.demo.stage import staged
from osiris.ports import Brain, Hear, Message, ToolSpec, deaf
from osiris.queue.database import connect
from osiris.queue.store import Store
from osiris.queue.views import Views
from osiris.serving import serve
from tests.flow.conftest import FILES, PEOPLE, REPO, STORY, keys
from tests.flow.machines import answers
from tests.flow.test_crash import Ground

_forks = multiprocessing.get_context("forkserver")


class Fuse:
    """Counts touches; at number `length` the process kills itself."""

    def __init__(self, length: int | None, burnt: "Synchronized[int]") -> None:
        self._length, self._burnt = length, burnt

    def touch(self, *_: object, **__: object) -> None:
        self._burnt.value += 1
        if self._burnt.value == self._length:
            os.kill(os.getpid(), signal.SIGKILL)

    def lay(self) -> None:
        """Be told of every touch of this process."""
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
        async def sent(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            self.touch()
            answer: httpx.Response = await send(transport, request)
            self.touch()
            return answer

        return sent


class Touched:
    """A brain whose questions are touches."""

    def __init__(self, brain: Brain, fuse: Fuse) -> None:
        self._brain, self._fuse, self.priced = brain, fuse, brain.priced

    async def reply(self, transcript: Sequence[Message], tools: Sequence[ToolSpec], hear: Hear = deaf) -> Message:
        self._fuse.touch()
        return await self._brain.reply(transcript, tools, hear)


def live(settings: Settings, length: int | None, burnt: "Synchronized[int]") -> None:
    """A whole life, web and worker, until it dies of its fuse or is killed."""
    logging.disable(logging.CRITICAL)
    fuse, brains = Fuse(length, burnt), brains_of(settings)
    fuse.lay()

    async def choose(model: str) -> Brain:
        return Touched(await brains.choose(model), fuse)

    asyncio.run(serve(build(settings, choose=choose, patience=Patience(pauses=(0.05,)))))


class Fused:
    """One life after the other on the same settings: each dies at its touch, the last one lives on."""

    def __init__(self, settings: Settings, lengths: Sequence[int]) -> None:
        self._settings, self._lengths = settings, iter(lengths)
        self._process: BaseProcess | None = None
        self._watching: asyncio.Task[None] | None = None
        self.deaths = 0
        self.touches: list[int] = []
        """How many touches each life had."""

    def begin(self) -> None:
        self._watching = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        """Begin the next life when one has died."""
        while True:
            length, burnt = next(self._lengths, None), _forks.Value("q", 0)
            self._process = process = _forks.Process(target=live, args=(self._settings, length, burnt), daemon=True)
            process.start()
            try:
                while process.is_alive():
                    await asyncio.sleep(0.01)
            finally:
                self.touches.append(burnt.value)
            assert process.exitcode == -signal.SIGKILL, f"a life ended with {process.exitcode}"
            self.deaths += 1

    def check(self) -> None:
        """Raise what went wrong with a life."""
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
async def fused(place: Path, lengths: Sequence[int]) -> AsyncIterator[tuple[Ground, Fused]]:
    """The ground of the crash tests, with lives that die of themselves."""
    script = place / "script.yml"
    script.write_text(yaml.safe_dump(STORY))
    async with staged(place, repo=REPO, files=FILES, people=PEOPLE, keys=keys(), model=f"scripted:{script}") as stage:
        lives, store = Fused(stage.settings, lengths), Store(engine := connect(stage.settings.database))
        lives.begin()
        try:
            async with asyncio.timeout(60):
                while not await answers(stage):
                    await asyncio.sleep(0.02)
            async with stage.person("alice") as alice, stage.person("bob") as bob:
                yield Ground(stage=stage, lives=lives, store=store, views=Views(engine), alice=alice, bob=bob), lives
        finally:
            await lives.end()
            await store.close()


async def killed_at(place: Path, lengths: Sequence[int]) -> tuple[dict[str, object], Fused]:
    """A whole life whose processes die at these touches; what is seen at its end."""
    async with fused(place, lengths) as (it, lives):
        seen = await it.whole_life()
        lives.check()
    return seen, lives
