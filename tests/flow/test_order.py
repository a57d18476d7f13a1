"""Events about an issue count in the order in which they happened, whatever GitHub answers in the
meantime, and under any name of the repository."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import event, func, select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris.bootstrap import Timeouts
from osiris.devhub.models import Delivery
from osiris.devhub.webhook_sender import PendingDelivery
from osiris.queue import tables
from osiris.queue.tables import InboxRow
from tests.flow.conftest import FIX, HELD, REPO, STORY, FlowEnvironment, Start, run, step, submit
from tests.flow.test_outages import from_osiris
from tests.flow.test_races import Gate

pytestmark = pytest.mark.both_pairs

SLOW = {"runs": [run(step("run_command", command="sleep 60"), submit())]}
NEW = "acme/store"


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await holds():
            await asyncio.sleep(0.05)


async def test_a_stop_overtakes_no_label_whose_look_up_had_to_wait(start: Start):
    async with start(SLOW, timeouts=Timeouts(pauses=(0.5,))) as world:
        broken = ["/issues/1"]
        looked = list[str]()

        async def fail(request: Request, forward) -> Response:
            if (
                from_osiris(request)
                and request.method == "GET"
                and request.url.path.endswith(tuple(broken))
            ):
                looked.append(request.url.path)
                return JSONResponse({"message": "down"}, 502)
            return await forward()

        world.stage.hub.interceptors.append(fail)
        issue = await world.labelled()
        await world.stage.hub.wait_until_sent()
        await until(lambda: _put_off(world))
        await world.alice.add_comment(issue, "/osiris stop")
        await world.stage.hub.wait_until_sent()
        await until(lambda: _put_off(world, rows=2))
        asked = len(looked)
        writes = counted(world)
        await until(lambda: _is(len(looked) >= asked + 2))
        # two tries of the label, each followed by the stop, without busy polling in between
        assert len(writes) < 12
        broken[:] = ["nothing"]
        await world.settled()
        assert (await world.task()).state == "cancelled"
        assert await world.failures() == []


async def _put_off(world: FlowEnvironment, rows: int = 1) -> bool:
    deferred = select(func.count()).where(InboxRow.not_before > time.time())
    async with world.osiris.engine.connect() as connection:
        return (await connection.scalar(deferred) or 0) >= rows


async def _is(holds: bool) -> bool:
    return holds


def counted(world: FlowEnvironment) -> list[str]:
    """Record the changes that Osiris makes to the inbox from now on."""
    changes: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.upper().startswith("UPDATE INBOX"):
            changes.append(statement)

    event.listen(world.osiris.engine.sync_engine, "before_cursor_execute", note)
    return changes


async def test_an_approval_that_was_dismissed_before_it_was_heard_does_not_count(start: Start):
    async with start() as world:
        _, number = await world.in_review()
        gate = Gate(world, "/collaborators/bob/permission")
        review = await world.bob.submit_review(number, "APPROVE")
        await gate.reached.wait()
        await world.bob.send_request(
            "PUT", f"/pulls/{number}/reviews/{review['id']}/dismissals", message="no"
        )
        await world.stage.hub.wait_until_sent()
        gate.open.set()
        await world.settled()
        assert (await world.task()).state == "review"


async def test_an_issue_closed_before_its_request_was_heard_is_not_worked_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    async with start(SLOW) as world:
        gate = Gate(world, "/collaborators/alice/permission")
        issue = await world.alice.file_issue("add subtracts")
        await world.alice.add_comment(issue, "/osiris")
        await gate.reached.wait()
        await world.alice.close_issue(issue, "not_planned")
        await world.stage.hub.wait_until_sent()
        # so that the task is newer than the closing
        monkeypatch.setattr(tables, "clock", lambda: time.time() + 5)
        gate.open.set()
        await world.settled()
        assert (await world.task()).state == "rejected"


async def test_what_github_does_not_believe_for_a_moment_is_asked_again(start: Start):
    async with start(timeouts=Timeouts(pauses=(0.05,))) as world:
        refused: list[str] = []

        async def disbelieve(request: Request, forward) -> Response:
            if from_osiris(request) and request.url.path.endswith("/api/v3/app") and not refused:
                refused.append(request.url.path)
                return JSONResponse({"message": "Bad credentials"}, 401)
            return await forward()

        world.stage.hub.interceptors.append(disbelieve)
        issue = await world.alice.file_issue("add subtracts")
        await world.alice.add_comment(issue, "/osiris")
        await world.settled()
        assert refused
        assert (await world.task()).state == "review"
        assert await world.failures() == []


async def rename(world: FlowEnvironment) -> None:
    world.stage.hub.world.set_role(world.stage.hub.world.get_repo(REPO), "alice", "admin")
    await world.alice.send_request("PATCH", "", name="store")
    world.alice.repo = world.bob.repo = NEW


async def test_a_repository_renamed_during_a_run_keeps_the_task_going(start: Start):
    async with start({"runs": [run(HELD, *FIX)]}) as world:
        await world.labelled()
        await world.until_running()
        await rename(world)
        await until(lambda: _is_called(world, NEW))
        world.let_go()
        # on SQLite, the work is only on this machine, under the old name
        if world.stage.settings.is_embedded:
            await world.settled()
            assert "a retry begins a new run" in (await world.task()).reason
            await world.alice.add_comment(1, "/osiris retry")
        held = asyncio.create_task(_let_go_always(world))  # it starts again in another workspace
        await world.settled()
        held.cancel()
        assert (await world.task()).state == "review"
        assert len(await world.alice.list_pulls()) == 1


async def _let_go_always(world: FlowEnvironment) -> None:
    while True:
        world.let_go()
        await asyncio.sleep(0.05)


async def _is_called(world: FlowEnvironment, repo: str) -> bool:
    return (await world.task()).issue.repo == repo


async def test_a_request_under_a_new_name_finds_the_task_there_is(start: Start):
    async with start({"runs": [*STORY["runs"], run(*FIX)]}) as world:

        async def unheard(delivery: Delivery, send: PendingDelivery) -> None:
            if delivery.event != "repository":
                await send()

        issue, _ = await world.in_review()
        world.stage.hub.hooks.interceptors.append(unheard)
        await rename(world)
        await world.alice.add_comment(issue, "/osiris")
        await world.settled()
        task = await world.task()  # there is one task, not two
        assert (task.issue.repo, task.state) == (NEW, "review")
        assert len(await world.alice.list_pulls()) == 1
