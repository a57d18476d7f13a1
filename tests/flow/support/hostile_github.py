"""A hostile GitHub: it answers and delivers as a random plan states, and the final result must be
correct nevertheless."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris.bootstrap import Osiris, Timeouts
from osiris.bot.github import app_auth, transport
from osiris.core.task import Task
from osiris.devhub.models import Delivery
from osiris.devhub.server import TruncatedResponse
from osiris.devhub.webhook_sender import PendingDelivery
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from tests.flow.conftest import FILES, PEOPLE, REPO, STORY, keys
from tests.flow.test_crash import EXPECTED, CrashEnvironment
from tests.flow.test_outages import from_osiris

ANSWERS = (
    "refused for now",
    "done, and the answer lost",
    "broken off",
    "too fast",
    "token bad",
    "silence",
    "done, silence",
)
DELIVERIES = ("twice", "later", "refused", "taken, and the answer lost", "dropped")
STEP_TIMEOUT = 120.0  # seconds for one step of a task


@dataclass(frozen=True)
class FaultPlan:
    """The faults of the coming requests and deliveries; "" is no fault, and after the end of the
    plan there are none."""

    answers: tuple[str, ...]
    deliveries: tuple[str, ...]


def _mostly_none(faults: Sequence[str], most: int) -> st.SearchStrategy[tuple[str, ...]]:
    no_fault = st.just("")
    return st.lists(st.one_of(no_fault, no_fault, st.sampled_from(faults)), max_size=most).map(
        tuple
    )


fault_plans = st.builds(FaultPlan, _mostly_none(ANSWERS, 60), _mostly_none(DELIVERIES, 25))


@dataclass
class FaultInjector:
    """Intercepts requests and deliveries between Osiris and devhub."""

    plan: FaultPlan
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    injected: list[str] = field(default_factory=list)
    """The faults so far."""

    def __post_init__(self) -> None:
        self._answers = iter(self.plan.answers)
        self._deliveries = iter(self.plan.deliveries)

    async def answer(
        self, request: Request, forward: Callable[[], Awaitable[Response]]
    ) -> Response:
        if not from_osiris(request) or not (fault := next(self._answers, "")):
            return await forward()
        self.injected.append(f"{request.method} {request.url.path}: {fault}")
        git = not request.url.path.startswith("/api/")
        if fault.startswith("done"):
            await forward()
        match fault:
            case "silence" | "done, silence" if not git:
                await self.ended.wait()
            case "too fast" if not git:
                return JSONResponse(
                    {"message": "secondary rate limit"}, 403, headers={"retry-after": "1"}
                )
            case "token bad" if (
                "/app/" not in request.url.path and "authorization" in request.headers and not git
            ):
                return JSONResponse({"message": "Bad credentials"}, 401)
            case "broken off":
                return TruncatedResponse()
        return JSONResponse({"message": "Server Error"}, 502)

    async def deliver(self, delivery: Delivery, send: PendingDelivery) -> None:
        fault = next(self._deliveries, "")
        if fault:
            self.injected.append(f"{delivery.event} {delivery.action}: {fault}")
        match fault:
            case "twice":
                await send()
                await send()
            case "later":
                send.defer_until(asyncio.sleep(0.3))
            case "refused":
                pass
            case "taken, and the answer lost":
                await send()
                delivery.status = "timed out"
                delivery.status_code = 502
            case "dropped" if delivery.event != "issues":
                send.drop()
            case _:
                await send()


@contextlib.contextmanager
def short_timeouts() -> Iterator[None]:
    """Limit the wait for an answer of GitHub to one second."""
    previous = transport.PATIENCE, app_auth.PATIENCE
    transport.PATIENCE = app_auth.PATIENCE = 1.0
    try:
        yield
    finally:
        transport.PATIENCE, app_auth.PATIENCE = previous


@dataclass(frozen=True, kw_only=True)
class HostileEnvironment:
    """A running Osiris with a hostile GitHub, and people."""

    playground: Environment
    osiris: Osiris
    alice: Person
    bob: Person

    async def _task(self) -> Task | None:
        lines = await self.osiris.read_models.list_tasks()
        return lines[0].task if lines else None

    async def _wait_until(self, is_reached: Callable[[Task], bool]) -> Task:
        """Wait until the task satisfies `is_reached`. Failed deliveries are redelivered, and the
        reconciler finds the rest."""
        async with asyncio.timeout(STEP_TIMEOUT):
            while True:
                await self.playground.wait_until_settled(self.osiris.store)
                if (task := await self._task()) and is_reached(task):
                    return task
                await self.playground.hub.resend_webhooks()
                assert self.osiris.reconciler is not None
                self.osiris.reconciler.request()
                await asyncio.sleep(0.1)

    async def run_task_to_merge(self) -> dict[str, object]:
        issue = await self.alice.file_issue("add subtracts", "add(1, 2) is -1")
        await self.alice.add_label(issue)
        pull = (
            await self._wait_until(lambda task: task.state == "review" and task.pull is not None)
        ).pull
        assert pull is not None
        await self.bob.submit_review(pull, "REQUEST_CHANGES", "Nearly.")
        await self._wait_until(lambda task: task.state == "review" and task.run == 2)
        await self.bob.submit_review(pull, "APPROVE")
        await self._wait_until(lambda task: task.state == "approved")
        await self.bob.merge_pull(pull)
        await self._wait_until(lambda task: task.state == "done")
        await self.playground.wait_until_settled(self.osiris.store)
        return await self._read_result(issue, pull)

    async def _read_result(self, issue: int, pull: int) -> dict[str, object]:
        views, store = self.osiris.read_models, self.osiris.store
        environment = CrashEnvironment(
            playground=self.playground,
            process=None,
            store=store,
            views=views,
            alice=self.alice,
            bob=self.bob,
        )
        return await environment.read_result(issue, pull)


async def run_with_faults(place: Path, plan: FaultPlan) -> tuple[dict[str, object], list[str]]:
    """Run a task from label to merge against a hostile GitHub. Return the visible result, and the
    faults."""
    script = place / "script.yml"
    script.write_text(yaml.safe_dump(STORY))
    injector = FaultInjector(plan)
    with short_timeouts():
        async with (
            start_environment(
                place,
                repo=REPO,
                files=FILES,
                people=PEOPLE,
                keys=keys(),
                model=f"scripted:{script}",
            ) as playground,
            playground.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as osiris,
            playground.get_person("alice") as alice,
            playground.get_person("bob") as bob,
        ):
            playground.hub.interceptors.append(injector.answer)
            playground.hub.hooks.interceptors.append(injector.deliver)
            try:
                return await HostileEnvironment(
                    playground=playground, osiris=osiris, alice=alice, bob=bob
                ).run_task_to_merge(), injector.injected
            finally:
                injector.ended.set()


EXPECTED_RESULT = EXPECTED
