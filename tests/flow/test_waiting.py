"""Work that cannot be done now is deferred with a stated reason, and resumed later. An outage loses
nothing."""

import asyncio
import os
import re
import sqlite3
import time
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bench.load import sign_request
from osiris.bootstrap import Timeouts
from osiris.queue import tables
from osiris.tools.sandbox.probes import attempt, capabilities
from tests.flow.conftest import BLOCKING_STEP, FIX_STEPS, FlowEnvironment, Start, build_run
from tests.flow.test_outages import from_osiris, is_write
from tests.servers import Postgres


def refuse_writes(env: FlowEnvironment, ending: str, answer: Response) -> list[Response]:
    """Answer writes to URLs with this ending with `answer` from now on, until the returned list is
    empty."""
    answers = [answer]

    async def refuse_write(request: Request, forward) -> Response:
        if (
            answers
            and is_write(request)
            and from_osiris(request)
            and str(request.url).endswith(ending)
        ):
            return answers[0]
        return await forward()

    env.playground.hub.interceptors.append(refuse_write)
    return answers


FORBIDDEN_ERROR = {"message": "Resource not accessible by integration"}


async def test_a_pull_request_that_may_not_be_opened_is_parked_told_once_and_taken_up_by_a_retry(
    start: Start, run_cli
):
    async with start() as env:
        refusal = refuse_writes(env, "/pulls", JSONResponse(FORBIDDEN_ERROR, 403))
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run) == ("paused", 1)
        [status] = await env.list_bot_comments(issue)
        assert "not accessible by integration" in status
        environ = {"OSIRIS_DATA_DIR": str(env.playground.settings.osiris_data_dir)}
        _, output, _ = await run_cli("task", "show", "1", **environ)
        assert "OpenDraftPull is parked: " in output
        assert "`osiris task retry` requeues it" in output
        refusal.clear()
        code, _, stderr = await run_cli("task", "retry", "1", **environ)
        assert (code, stderr) == (0, "")
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run) == ("review", 1)  # no agent was started again
        assert len(await env.alice.list_pulls()) == 1
        assert len(await env.list_bot_comments(issue)) == 1


@pytest.mark.long
async def test_a_report_that_could_not_be_made_for_too_long_is_parked_and_taken_up(start: Start):
    async with start(timeouts=Timeouts(pauses=(0.01,), tries=3)) as env:
        refusal = refuse_writes(env, "/comments", JSONResponse({"message": "down"}, 502))
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert await env.list_bot_comments(issue) == []
        assert {failure.what for failure in await env.list_failures()} == {"Report"}
        refusal.clear()
        await env.bob.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        assert any("review" in comment for comment in await env.list_bot_comments(issue))
        assert await env.list_failures() == []


@pytest.mark.parametrize("pair", ["embedded"], indirect=True)  # the test holds a lock of SQLite
async def test_with_its_queue_full_the_door_says_come_again_at_once(start: Start):
    async with start(timeouts=Timeouts(waiting=3)) as env:
        head, body = sign_request(
            b'{"action":"x"}', env.playground.settings.github_webhook_secret.get_secret_value()
        )
        headers = dict(
            line.split(": ", 1) for line in head.decode().splitlines()[1:] if ": " in line
        )
        url = f"http://127.0.0.1:{env.playground.settings.osiris_port}/webhooks/github"
        path = env.playground.settings.osiris_data_dir / "osiris.db"
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # in a thread, so that a writer that is at work can finish
        await asyncio.to_thread(connection.execute, "BEGIN IMMEDIATE")
        try:
            async with httpx.AsyncClient(timeout=10) as http:

                async def send_delivery(number: int) -> httpx.Response:
                    return await http.post(
                        url,
                        content=body,
                        headers={**headers, "X-GitHub-Delivery": f"full-{number}"},
                    )

                sending_tasks = [asyncio.create_task(send_delivery(n)) for n in range(3)]
                async with asyncio.timeout(10):
                    while len(env.osiris.inbox) < 3:
                        await asyncio.sleep(0.05)
                began = time.monotonic()
                refusal = await send_delivery(9)
                assert (refusal.status_code, time.monotonic() - began < 4) == (503, True)
                assert int(refusal.headers["retry-after"]) > 0
                connection.execute("ROLLBACK")
                assert {answer.status_code for answer in await asyncio.gather(*sending_tasks)} == {
                    202
                }
        finally:
            connection.close()


@pytest.mark.parametrize("pair", ["servers"], indirect=True)  # SQLite cannot be stopped
async def test_without_its_database_the_door_says_so_at_once_and_the_delivery_comes_back(
    start: Start, postgres: Postgres
):
    async with start() as env:
        issue = await env.alice.file_issue("add subtracts")
        postgres.stop()
        await env.alice.add_label(issue)
        await env.playground.hub.wait_until_sent()
        assert env.playground.app.deliveries[-1].status_code == 503
        assert env.playground.app.deliveries[-1].duration < 5
        postgres.start()
        await env.osiris.reconciler.run_once()
        await env.wait_until_settled()
        [pull] = await env.alice.list_pulls()
        assert pull["draft"]


@pytest.mark.long
async def test_a_machine_too_slow_to_try_its_sandbox_tries_again_and_nobody_hears_of_it(
    start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    slow_marker = folder / "slow"
    attempts_file = folder / "tried"
    slow_bwrap = folder / "bwrap"
    slow_bwrap.write_text(
        f"#!/bin/sh\n[ -e {slow_marker} ] && echo >>{attempts_file} && sleep 60\n"
        'exec /usr/bin/bwrap "$@"\n'
    )
    slow_bwrap.chmod(0o755)
    for path in (slow_marker, attempts_file):
        path.touch()
    attempts_file.chmod(0o666)
    async with start(timeouts=Timeouts(pauses=(0.05,)), sandbox=None) as env:
        monkeypatch.setattr(capabilities, "BWRAP", str(slow_bwrap))
        monkeypatch.setattr(attempt, "BWRAP", str(slow_bwrap))
        monkeypatch.setattr(attempt, "TIMEOUT", 0.5)
        issue = await env.file_labelled_issue()
        async with asyncio.timeout(30):
            while attempts_file.stat().st_size < 2:
                await asyncio.sleep(0.05)
        monkeypatch.undo()
        slow_marker.unlink()
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run) == ("review", 1)
        [status] = await env.list_bot_comments(issue)
        assert "sandbox" not in status
        assert await env.list_failures() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's workspaces are in memory")
async def test_a_run_without_room_waits_for_another_to_end_and_does_not_pause(start: Start):
    """The disk of the other run may grow beyond the space of this machine."""
    async with start(timeouts=Timeouts(pauses=(0.05,), tries=2), sandbox=None) as env:
        disks_folder = env.sessions_folder / "@disks"
        disks_folder.mkdir(exist_ok=True)
        with (disks_folder / "other.img").open("wb") as other_disk:
            other_disk.truncate(8 << 40)
        await env.file_labelled_issue()
        async with asyncio.timeout(20):
            while (
                " ".join(env.log_lines).count("StartRun waits: this machine's disk has no room") < 5
            ):
                await asyncio.sleep(0.05)
        assert (await env.get_task()).state == "running"
        (disks_folder / "other.img").unlink()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"


@pytest.mark.first_case
@pytest.mark.parametrize(
    "jump", [-7000, -90000, 90000], ids=["two hours back", "a day back", "a day on"]
)
async def test_a_clock_that_jumps_loses_nothing_and_stops_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, jump: int
):
    async with start({"runs": [build_run(BLOCKING_STEP, *FIX_STEPS)]}) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        monkeypatch.setattr(tables, "clock", lambda: time.time() + jump)
        env.release_step()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"
        assert len(await env.list_bot_comments(issue)) == 1


async def test_operators_see_how_often_the_loop_of_a_worker_stood_still(start: Start):
    async with start() as env:
        url = f"http://127.0.0.1:{env.playground.settings.osiris_port}/metrics"
        # this blocks the loop; waiting for a processor on a busy machine does not count as a stall
        time.sleep(3)
        async with httpx.AsyncClient() as http, asyncio.timeout(20):
            while not re.search(
                r'osiris_loop_stalls{worker="[^"]+:\d+"} [1-9]', (await http.get(url)).text
            ):
                await asyncio.sleep(0.05)


async def test_what_waits_is_counted(start: Start):
    async with start(timeouts=Timeouts(pauses=(30.0,))) as env:
        refuse_writes(env, "/comments", JSONResponse({"message": "down"}, 502))
        await env.file_labelled_issue()
        url = f"http://127.0.0.1:{env.playground.settings.osiris_port}/metrics"
        metrics = ""
        async with httpx.AsyncClient() as http, asyncio.timeout(20):
            expected_figures = (
                'osiris_orders_waiting{kind="Report"} 1.0',
                'osiris_tasks{state="',
                "osiris_workers 1.0",
            )
            # Osiris counts the figures at different moments
            while not all(figure in metrics for figure in expected_figures):
                await asyncio.sleep(0.05)
                metrics = (await http.get(url)).text
        env.playground.hub.interceptors.clear()
