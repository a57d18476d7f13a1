"""Events about an issue count in the order in which they happened, whatever GitHub answers in the
meantime, and also after the repository was renamed."""

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
from tests.flow.conftest import (
    BLOCKING_STEP,
    FIX_STEPS,
    REPO,
    SCRIPT,
    FlowEnvironment,
    Start,
    build_run,
    build_step,
    build_submit_step,
)
from tests.flow.test_outages import from_osiris
from tests.flow.test_races import Gate

SLOW_SCRIPT = {
    "runs": [build_run(build_step("run_command", command="sleep 60"), build_submit_step())]
}
NEW_REPO = "acme/store"


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():
            await asyncio.sleep(0.05)


@pytest.mark.both_pairs
async def test_a_stop_overtakes_no_label_whose_look_up_had_to_wait(start: Start):
    async with start(SLOW_SCRIPT, timeouts=Timeouts(pauses=(0.5,))) as env:
        failing_paths = ["/issues/1"]
        failed_reads = list[str]()

        async def fail_reads(request: Request, forward) -> Response:
            if (
                from_osiris(request)
                and request.method == "GET"
                and request.url.path.endswith(tuple(failing_paths))
            ):
                failed_reads.append(request.url.path)
                return JSONResponse({"message": "down"}, 502)
            return await forward()

        env.playground.hub.interceptors.append(fail_reads)
        issue = await env.file_labelled_issue()
        await env.playground.hub.wait_until_sent()
        await wait_until(lambda: _is_deferred(env))
        await env.alice.add_comment(issue, "/osiris stop")
        await env.playground.hub.wait_until_sent()
        await wait_until(lambda: _is_deferred(env, rows=2))
        failure_count = len(failed_reads)
        inbox_writes = record_inbox_writes(env)
        await wait_until(lambda: _return_value(len(failed_reads) >= failure_count + 2))
        # two attempts at the label, each followed by the stop, and no busy polling
        assert len(inbox_writes) < 12
        failing_paths[:] = ["nothing"]
        await env.wait_until_settled()
        assert (await env.get_task()).state == "cancelled"
        assert await env.list_failures() == []


async def _is_deferred(env: FlowEnvironment, rows: int = 1) -> bool:
    deferred_rows = select(func.count()).where(InboxRow.not_before > time.time())
    async with env.osiris.engine.connect() as connection:
        return (await connection.scalar(deferred_rows) or 0) >= rows


async def _return_value(value: bool) -> bool:
    return value


def record_inbox_writes(env: FlowEnvironment) -> list[str]:
    """Record the changes that Osiris makes to the inbox from now on."""
    statements: list[str] = []

    def record_statement(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.upper().startswith("UPDATE INBOX"):
            statements.append(statement)

    event.listen(env.osiris.engine.sync_engine, "before_cursor_execute", record_statement)
    return statements


async def test_an_approval_that_was_dismissed_before_it_was_heard_does_not_count(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        gate = Gate(env, "/collaborators/bob/permission")
        review = await env.bob.submit_review(number, "APPROVE")
        await gate.reached.wait()
        await env.bob.send_request(
            "PUT", f"/pulls/{number}/reviews/{review['id']}/dismissals", message="no"
        )
        await env.playground.hub.wait_until_sent()
        gate.open.set()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"


async def test_an_issue_closed_before_its_request_was_heard_is_not_worked_on(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    async with start(SLOW_SCRIPT) as env:
        gate = Gate(env, "/collaborators/alice/permission")
        issue = await env.alice.file_issue("add subtracts")
        await env.alice.add_comment(issue, "/osiris")
        await gate.reached.wait()
        await env.alice.close_issue(issue, "not_planned")
        await env.playground.hub.wait_until_sent()
        # the task must be newer than the closing
        monkeypatch.setattr(tables, "clock", lambda: time.time() + 5)
        gate.open.set()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "rejected"


async def test_what_github_does_not_believe_for_a_moment_is_asked_again(start: Start):
    async with start(timeouts=Timeouts(pauses=(0.05,))) as env:
        refused_paths: list[str] = []

        async def refuse_first_app_request(request: Request, forward) -> Response:
            if (
                from_osiris(request)
                and request.url.path.endswith("/api/v3/app")
                and not refused_paths
            ):
                refused_paths.append(request.url.path)
                return JSONResponse({"message": "Bad credentials"}, 401)
            return await forward()

        env.playground.hub.interceptors.append(refuse_first_app_request)
        issue = await env.alice.file_issue("add subtracts")
        await env.alice.add_comment(issue, "/osiris")
        await env.wait_until_settled()
        assert refused_paths
        assert (await env.get_task()).state == "review"
        assert await env.list_failures() == []


async def rename_repo(env: FlowEnvironment) -> None:
    env.playground.hub.world.set_role(env.playground.hub.world.get_repo(REPO), "alice", "admin")
    await env.alice.send_request("PATCH", "", name="store")
    env.alice.repo = env.bob.repo = NEW_REPO


@pytest.mark.long
async def test_a_repository_renamed_during_a_run_keeps_the_task_going(start: Start):
    async with start({"runs": [build_run(BLOCKING_STEP, *FIX_STEPS)]}) as env:
        await env.file_labelled_issue()
        await env.wait_until_running()
        await rename_repo(env)
        await wait_until(lambda: _is_in_repo(env, NEW_REPO))
        env.release_step()
        # on SQLite, the work is on this machine only, under the old name
        if env.playground.settings.is_embedded:
            await env.wait_until_settled()
            assert "a retry begins a new run" in (await env.get_task()).reason
            await env.alice.add_comment(1, "/osiris retry")
        # the run starts again in another workspace
        release_task = asyncio.create_task(_release_steps_repeatedly(env))
        await env.wait_until_settled()
        release_task.cancel()
        assert (await env.get_task()).state == "review"
        assert len(await env.alice.list_pulls()) == 1


async def _release_steps_repeatedly(env: FlowEnvironment) -> None:
    while True:
        env.release_step()
        await asyncio.sleep(0.05)


async def _is_in_repo(env: FlowEnvironment, repo: str) -> bool:
    return (await env.get_task()).issue.repo == repo


async def test_a_request_under_a_new_name_finds_the_task_there_is(start: Start):
    async with start({"runs": [*SCRIPT["runs"], build_run(*FIX_STEPS)]}) as env:

        async def drop_delivery(delivery: Delivery, send: PendingDelivery) -> None:
            if delivery.event != "repository":
                await send()

        issue, _ = await env.bring_to_review()
        env.playground.hub.hooks.interceptors.append(drop_delivery)
        await rename_repo(env)
        await env.alice.add_comment(issue, "/osiris")
        await env.wait_until_settled()
        task = await env.get_task()  # there is one task, not two
        assert (task.issue.repo, task.state) == (NEW_REPO, "review")
        assert len(await env.alice.list_pulls()) == 1
