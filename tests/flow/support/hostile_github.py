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
WAIT = 120.0  # seconds for one step of a task


@dataclass(frozen=True)
class FaultPlan:
    """The faults of the coming requests and deliveries; "" is no fault, and after the end of the
    plan there are none."""

    answers: tuple[str, ...]
    deliveries: tuple[str, ...]


def _mostly(troubles: Sequence[str], most: int) -> st.SearchStrategy[tuple[str, ...]]:
    fine = st.just("")
    return st.lists(st.one_of(fine, fine, st.sampled_from(troubles)), max_size=most).map(tuple)


plans = st.builds(FaultPlan, _mostly(ANSWERS, 60), _mostly(DELIVERIES, 25))


@dataclass
class Enemy:
    """Intercepts requests and deliveries between Osiris and devhub."""

    plan: FaultPlan
    over: asyncio.Event = field(default_factory=asyncio.Event)
    done: list[str] = field(default_factory=list)
    """The faults so far."""

    def __post_init__(self) -> None:
        self._answers = iter(self.plan.answers)
        self._deliveries = iter(self.plan.deliveries)

    async def answer(
        self, request: Request, forward: Callable[[], Awaitable[Response]]
    ) -> Response:
        if not from_osiris(request) or not (trouble := next(self._answers, "")):
            return await forward()
        self.done.append(f"{request.method} {request.url.path}: {trouble}")
        git = not request.url.path.startswith("/api/")
        if trouble.startswith("done"):
            await forward()
        match trouble:
            case "silence" | "done, silence" if not git:
                await self.over.wait()
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
        trouble = next(self._deliveries, "")
        if trouble:
            self.done.append(f"{delivery.event} {delivery.action}: {trouble}")
        match trouble:
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
def impatient() -> Iterator[None]:
    """Limit the wait for an answer of GitHub to one second."""
    was = transport.PATIENCE, app_auth.PATIENCE
    transport.PATIENCE = app_auth.PATIENCE = 1.0
    try:
        yield
    finally:
        transport.PATIENCE, app_auth.PATIENCE = was


@dataclass(frozen=True, kw_only=True)
class Field:
    """A running Osiris with a hostile GitHub, and people."""

    stage: Environment
    osiris: Osiris
    alice: Person
    bob: Person

    async def _task(self) -> Task | None:
        lines = await self.osiris.read_models.list_tasks()
        return lines[0].task if lines else None

    async def _until(self, reached: Callable[[Task], bool]) -> Task:
        """Wait until the task satisfies `reached`. Failed deliveries are redelivered, and the
        reconciler finds the rest."""
        async with asyncio.timeout(WAIT):
            while True:
                await self.stage.wait_until_settled(self.osiris.store)
                if (task := await self._task()) and reached(task):
                    return task
                await self.stage.hub.resend_webhooks()
                assert self.osiris.reconciler is not None
                self.osiris.reconciler.request()
                await asyncio.sleep(0.1)

    async def whole_life(self) -> dict[str, object]:
        issue = await self.alice.file_issue("add subtracts", "add(1, 2) is -1")
        await self.alice.add_label(issue)
        pull = (
            await self._until(lambda task: task.state == "review" and task.pull is not None)
        ).pull
        assert pull is not None
        await self.bob.submit_review(pull, "REQUEST_CHANGES", "Nearly.")
        await self._until(lambda task: task.state == "review" and task.run == 2)
        await self.bob.submit_review(pull, "APPROVE")
        await self._until(lambda task: task.state == "approved")
        await self.bob.merge_pull(pull)
        await self._until(lambda task: task.state == "done")
        await self.stage.wait_until_settled(self.osiris.store)
        return await self._visible(issue, pull)

    async def _visible(self, issue: int, pull: int) -> dict[str, object]:
        views, store = self.osiris.read_models, self.osiris.store
        ground = CrashEnvironment(
            stage=self.stage, lives=None, store=store, views=views, alice=self.alice, bob=self.bob
        )
        return await ground.visible(issue, pull)


async def fought(place: Path, plan: FaultPlan) -> tuple[dict[str, object], list[str]]:
    """Run a task from label to merge against a hostile GitHub. Return the visible result, and the
    faults."""
    script = place / "script.yml"
    script.write_text(yaml.safe_dump(STORY))
    enemy = Enemy(plan)
    with impatient():
        async with (
            start_environment(
                place,
                repo=REPO,
                files=FILES,
                people=PEOPLE,
                keys=keys(),
                model=f"scripted:{script}",
            ) as stage,
            stage.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as osiris,
            stage.get_person("alice") as alice,
            stage.get_person("bob") as bob,
        ):
            stage.hub.interceptors.append(enemy.answer)
            stage.hub.hooks.interceptors.append(enemy.deliver)
            try:
                return await Field(
                    stage=stage, osiris=osiris, alice=alice, bob=bob
                ).whole_life(), enemy.done
            finally:
                enemy.over.set()


LAWFUL = EXPECTED
