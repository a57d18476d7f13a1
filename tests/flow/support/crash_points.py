"""Osiris as a process that counts its external calls and kills itself at one of them.

An external call is an SQL statement, a commit, the start of a process (git, jails), an HTTP request
before it is sent and after it is answered, or a request to the model. A SIGKILL at each of them
covers every await that matters: between two external calls, a process changes nothing that remains
after its end.
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
from tests.flow.conftest import FILES, PEOPLE, REPO, SCRIPT, get_app_keys
from tests.flow.support.cluster import is_up
from tests.flow.test_crash import CrashEnvironment
from tests.forkserver import FORK_CONTEXT

SOURCE_ROOT = f"{Path(osiris.__file__).parent}/"


@dataclass(frozen=True, slots=True)
class CallOccurrence:
    """The `number`-th external call that a process makes from one call site in Osiris's code."""

    call_site: str
    number: int


CrashPlan = int | CallOccurrence | Path | None
"""The plan for a process: it kills itself at the call with this number, at this occurrence, or
never (None). With a path, it writes the call site of each call into that file."""


def describe_call_site() -> str:
    """Return the lines of Osiris's code on the call stack, innermost first. The stacks behind
    SQLAlchemy's greenlets are included."""
    current = greenlet.getcurrent()
    stacks = [sys._getframe(2)]
    while current.parent is not None:
        current = current.parent
        if current.gr_frame is not None:
            stacks.append(current.gr_frame)
    frames = [frame for stack in stacks for frame, _ in traceback.walk_stack(stack)]
    own_frames = [frame for frame in frames if frame.f_code.co_filename.startswith(SOURCE_ROOT)]
    return " < ".join(
        f"{frame.f_code.co_filename.removeprefix(SOURCE_ROOT)}:{frame.f_lineno}"
        for frame in own_frames
    )


class CrashTrigger:
    """Counts external calls, and kills the process at the call that `crash_plan` states."""

    def __init__(self, crash_plan: CrashPlan, call_count: "Synchronized[int]") -> None:
        self._crash_plan = crash_plan
        self._call_count = call_count
        self._occurrences = 0

    def count_call(self, *_: object, **__: object) -> None:
        self._call_count.value += 1
        if self._is_reached():
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_reached(self) -> bool:
        match self._crash_plan:
            case int():
                return self._call_count.value == self._crash_plan
            case CallOccurrence() as occurrence:
                self._occurrences += describe_call_site() == occurrence.call_site
                return self._occurrences == occurrence.number
            case Path() as file:
                with file.open("a") as call_sites:
                    call_sites.write(f"{describe_call_site()}\n")
        return False

    def install(self) -> None:
        """Count every external call of this process from now on."""
        event.listen(Engine, "before_cursor_execute", self.count_call)
        event.listen(Engine, "commit", self.count_call)
        sys.addaudithook(self._count_process)
        httpx.AsyncHTTPTransport.handle_async_request = self._wrap_send(  # type: ignore[method-assign]
            httpx.AsyncHTTPTransport.handle_async_request
        )

    def _count_process(self, name: str, _args: tuple[Any, ...]) -> None:
        if name == "subprocess.Popen":
            self.count_call()

    def _wrap_send(self, send: Callable[..., Any]) -> Callable[..., Any]:
        async def send_counted(
            transport: httpx.AsyncHTTPTransport, request: httpx.Request
        ) -> httpx.Response:
            self.count_call()
            answer: httpx.Response = await send(transport, request)
            self.count_call()
            return answer

        return send_counted


class InstrumentedModel:
    """A model whose requests count as external calls."""

    def __init__(self, model: LanguageModel, crash_trigger: CrashTrigger) -> None:
        self._model = model
        self._crash_trigger = crash_trigger
        self.is_priced = model.is_priced

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        self._crash_trigger.count_call()
        return await self._model.reply(transcript, tools, on_delta)


def serve_osiris(
    settings: Settings, crash_plan: CrashPlan, call_count: "Synchronized[int]"
) -> None:
    """Run web server and worker in one process until it kills itself or is killed."""
    logging.disable(logging.CRITICAL)
    crash_trigger = CrashTrigger(crash_plan, call_count)
    models = create_models(settings)
    crash_trigger.install()

    async def select_model(model: str) -> LanguageModel:
        return InstrumentedModel(await models.select(model), crash_trigger)

    parts = Parts(select_model=select_model, timeouts=Timeouts(pauses=(0.05,)))
    asyncio.run(serve(build_osiris(settings, parts)))


class CrashingOsiris:
    """Consecutive processes with the same settings. Each has a crash plan, and the last one
    survives."""

    def __init__(self, settings: Settings, crash_plans: Sequence[CrashPlan]) -> None:
        self._settings = settings
        self._crash_plans = iter(crash_plans)
        self._process: BaseProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self.crash_count = 0
        self.call_counts: list[int] = []
        """The number of external calls of each process."""

    def start(self) -> None:
        self._supervisor = asyncio.create_task(self._restart_on_crash())

    async def _restart_on_crash(self) -> None:
        """Start the next process each time one has died."""
        while True:
            crash_plan = next(self._crash_plans, None)
            call_count = FORK_CONTEXT.Value("q", 0)
            self._process = process = FORK_CONTEXT.Process(
                target=serve_osiris, args=(self._settings, crash_plan, call_count), daemon=True
            )
            process.start()
            try:
                while process.is_alive():
                    await asyncio.sleep(0.05)
            finally:
                self.call_counts.append(call_count.value)
            assert process.exitcode == -signal.SIGKILL, f"a process ended with {process.exitcode}"
            self.crash_count += 1

    def raise_error(self) -> None:
        """Raise the error of a process, if there was one."""
        if self._supervisor is not None and self._supervisor.done():
            self._supervisor.result()

    async def stop(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._process is not None:
            self._process.kill()
            self._process.join()


@contextlib.asynccontextmanager
async def start_crashing_environment(
    folder: Path, crash_plans: Sequence[CrashPlan]
) -> AsyncIterator[tuple[CrashEnvironment, CrashingOsiris]]:
    """Start the environment of the crash tests with processes that kill themselves."""
    script_file = folder / "script.yml"
    script_file.write_text(yaml.safe_dump(SCRIPT))
    async with start_environment(
        folder,
        repo=REPO,
        files=FILES,
        people=PEOPLE,
        keys=get_app_keys(),
        model=f"scripted:{script_file}",
    ) as playground:
        processes = CrashingOsiris(playground.settings, crash_plans)
        store = Store(engine := connect(playground.settings.database))
        processes.start()
        try:
            async with asyncio.timeout(60):
                while not await is_up(playground):
                    await asyncio.sleep(0.05)
            async with playground.get_person("alice") as alice, playground.get_person("bob") as bob:
                yield (
                    CrashEnvironment(
                        playground=playground,
                        process=processes,
                        store=store,
                        read_models=ReadModels(engine),
                        alice=alice,
                        bob=bob,
                    ),
                    processes,
                )
        finally:
            await processes.stop()
            await store.close()


async def run_with_crashes(
    folder: Path, crash_plans: Sequence[CrashPlan]
) -> tuple[dict[str, object], CrashingOsiris]:
    """Run a task from label to merge with processes that have these crash plans. Return the visible
    result and the processes."""
    async with start_crashing_environment(folder, crash_plans) as (env, processes):
        result = await env.run_task_to_merge()
        processes.raise_error()
    return result, processes
