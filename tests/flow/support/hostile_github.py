"""A hostile GitHub. It answers and delivers as a random plan states, and the final result must
still be correct."""

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
from tests.flow.conftest import FILES, PEOPLE, REPO, SCRIPT, get_app_keys
from tests.flow.test_crash import EXPECTED, CrashEnvironment
from tests.flow.test_outages import from_osiris

ANSWER_FAULTS = (
    "refused for now",
    "done, and the answer lost",
    "broken off",
    "too fast",
    "token bad",
    "silence",
    "done, silence",
)
DELIVERY_FAULTS = ("twice", "later", "refused", "taken, and the answer lost", "dropped")
STEP_TIMEOUT = 120.0  # seconds for one step of a task


@dataclass(frozen=True)
class FaultPlan:
    """The faults of the next requests and deliveries. "" is no fault; requests and deliveries after
    the end of the plan have no faults."""

    answers: tuple[str, ...]
    deliveries: tuple[str, ...]


def _draw_rare_faults(faults: Sequence[str], max_size: int) -> st.SearchStrategy[tuple[str, ...]]:
    no_fault = st.just("")
    return st.lists(st.one_of(no_fault, no_fault, st.sampled_from(faults)), max_size=max_size).map(
        tuple
    )


fault_plans = st.builds(
    FaultPlan, _draw_rare_faults(ANSWER_FAULTS, 60), _draw_rare_faults(DELIVERY_FAULTS, 25)
)


@dataclass
class FaultInjector:
    """Intercepts requests and deliveries between Osiris and devhub."""

    plan: FaultPlan
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    faults: list[str] = field(default_factory=list)
    """The faults that were injected so far."""

    def __post_init__(self) -> None:
        self._answers = iter(self.plan.answers)
        self._deliveries = iter(self.plan.deliveries)

    async def inject_answer_fault(
        self, request: Request, forward: Callable[[], Awaitable[Response]]
    ) -> Response:
        if not from_osiris(request) or not (fault := next(self._answers, "")):
            return await forward()
        self.faults.append(f"{request.method} {request.url.path}: {fault}")
        is_git = not request.url.path.startswith("/api/")
        if fault.startswith("done"):
            await forward()
        match fault:
            case "silence" | "done, silence" if not is_git:
                await self.ended.wait()
            case "too fast" if not is_git:
                return JSONResponse(
                    {"message": "secondary rate limit"}, 403, headers={"retry-after": "1"}
                )
            case "token bad" if (
                "/app/" not in request.url.path
                and "authorization" in request.headers
                and not is_git
            ):
                return JSONResponse({"message": "Bad credentials"}, 401)
            case "broken off":
                return TruncatedResponse()
        return JSONResponse({"message": "Server Error"}, 502)

    async def inject_delivery_fault(self, delivery: Delivery, send: PendingDelivery) -> None:
        fault = next(self._deliveries, "")
        if fault:
            self.faults.append(f"{delivery.event} {delivery.action}: {fault}")
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
    """Limit the wait for an answer of GitHub to one second until the block ends."""
    previous = transport.PATIENCE, app_auth.PATIENCE
    transport.PATIENCE = app_auth.PATIENCE = 1.0
    try:
        yield
    finally:
        transport.PATIENCE, app_auth.PATIENCE = previous


@dataclass(frozen=True, kw_only=True)
class HostileEnvironment:
    """A running Osiris, a hostile GitHub, and the people who use them."""

    playground: Environment
    osiris: Osiris
    alice: Person
    bob: Person

    async def _find_task(self) -> Task | None:
        lines = await self.osiris.read_models.list_tasks()
        return lines[0].task if lines else None

    async def _wait_until(self, is_reached: Callable[[Task], bool]) -> Task:
        """Wait until the task satisfies `is_reached`. Redeliver failed deliveries; the reconciler
        finds the lost ones."""
        async with asyncio.timeout(STEP_TIMEOUT):
            while True:
                await self.playground.wait_until_settled(self.osiris.store)
                if (task := await self._find_task()) and is_reached(task):
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
        environment = CrashEnvironment(
            playground=self.playground,
            process=None,
            store=self.osiris.store,
            read_models=self.osiris.read_models,
            alice=self.alice,
            bob=self.bob,
        )
        return await environment.read_result(issue, pull)


async def run_with_faults(folder: Path, plan: FaultPlan) -> tuple[dict[str, object], list[str]]:
    """Run a task from label to merge against a hostile GitHub. Return the visible result and the
    faults."""
    script_file = folder / "script.yml"
    script_file.write_text(yaml.safe_dump(SCRIPT))
    injector = FaultInjector(plan)
    with short_timeouts():
        async with (
            start_environment(
                folder,
                repo=REPO,
                files=FILES,
                people=PEOPLE,
                keys=get_app_keys(),
                model=f"scripted:{script_file}",
            ) as playground,
            playground.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as osiris,
            playground.get_person("alice") as alice,
            playground.get_person("bob") as bob,
        ):
            playground.hub.interceptors.append(injector.inject_answer_fault)
            playground.hub.hooks.interceptors.append(injector.inject_delivery_fault)
            try:
                return await HostileEnvironment(
                    playground=playground, osiris=osiris, alice=alice, bob=bob
                ).run_task_to_merge(), injector.faults
            finally:
                injector.ended.set()


EXPECTED_RESULT = EXPECTED
