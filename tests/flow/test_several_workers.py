"""One web process and several workers. Tests kill, stop and freeze them, and nothing is lost or
duplicated."""

import asyncio
import hashlib
import hmac
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import func, select, text
from starlette.requests import Request
from starlette.responses import Response

from fake_vendors import server as loopback
from osiris.queue.outbox_queries import RUNS
from osiris.queue.tables import LeaseRow, OutboxRow, RunRow
from tests.conftest import create_test_database, list_disks
from tests.flow.conftest import (
    FIX_STEPS,
    build_run,
    build_step,
    build_submit_step,
    get_vendor_settings,
)
from tests.flow.support.cluster import (
    DEFAULT_TIMEOUTS,
    Cluster,
    Machine,
    Snapshot,
    start_cluster,
    wait_until,
)
from tests.flow.support.consistency_audit import (
    TaskAuditor,
    TaskLifecycle,
    WorkerKiller,
    build_tasks_script,
    count_model_requests,
    format_task_name,
    run_concurrently,
    run_tasks,
)
from tests.flow.test_outages import from_osiris, is_write
from tests.servers import Postgres, Redis

THREE_FILES_SCRIPT = {
    "runs": [
        build_run(
            build_step("write_file", path="first.txt", content="1\n"),
            build_step("run_command", {"exit_code": 0}, command="echo 2 >> second.txt"),
            build_step(
                "run_command", {"contains": "1\n2"}, command="sleep 2; cat first.txt second.txt"
            ),
            build_step("write_file", path="third.txt", content="3\n"),
            build_submit_step("Three files."),
        )
    ]
}
EXPECTED_FILES = {"first.txt": "1\n", "second.txt": "2\n", "third.txt": "3\n"}


@pytest.fixture
def pair(
    postgres: Postgres, migrated_database: str, redis_server: Redis
) -> Iterator[dict[str, str]]:
    """Use PostgreSQL and Redis only: several machines need them."""
    redis_server.flush()
    with create_test_database(postgres, migrated_database) as url:
        yield {"database_url": url, "redis_url": redis_server.url}


async def count_interrupted(env: Cluster) -> int:
    return sum(
        m.role == "tool" and m.text.startswith("interrupted") for m in await env.read_transcript()
    )


@pytest.mark.parametrize(
    "has_checkpoint",
    [
        pytest.param(False, id="nothing put away"),
        pytest.param(True, id="put away before", marks=pytest.mark.long),
    ],
)
async def test_another_machine_goes_on_where_a_killed_one_was(
    folder: Path, pair: dict[str, str], has_checkpoint: bool
):
    async with (
        loopback.serve_vendors(THREE_FILES_SCRIPT) as vendors,
        start_cluster(
            folder, pair, THREE_FILES_SCRIPT, model=get_vendor_settings(vendors, "anthropic")
        ) as env,
    ):
        await env.file_labelled_issue()
        await env.wait_for_replies(3)
        if has_checkpoint:
            env.start_worker()
            assert (await env.workers[0].stop())[0] == 0
            await env.wait_for_replies(4)
        env.start_worker()
        env.workers[-2].kill()
        await env.wait_until_settled()
        assert await env.read_pull_files() == EXPECTED_FILES
        assert await count_interrupted(env) == 1 + has_checkpoint
        assert (
            len([m for m in await env.read_transcript() if m.role == "assistant"])
            == 6 + has_checkpoint
        )
        assert count_model_requests(vendors) == (6 + has_checkpoint, 0)
        assert len(await env.alice.list_pulls()) == 1
        assert await env.read_models.list_failures() == []


@pytest.mark.long
async def test_killed_while_it_does_steps_again_a_machine_does_them_all_again(
    folder: Path, pair: dict[str, str]
):
    """A partly replayed workspace must not count as complete, neither on that machine nor on the
    first one."""
    script = {
        "runs": [
            build_run(
                build_step("run_command", {"exit_code": 0}, command="sleep 2"),
                build_step("write_file", path="first.txt", content="1\n"),
                build_step("run_command", {"contains": "1"}, command="sleep 2; cat first.txt"),
                build_submit_step("One file."),
            )
        ]
    }
    async with start_cluster(folder, pair, script) as env:
        await env.file_labelled_issue()
        await env.wait_for_replies(3)
        second = env.start_worker()
        await env.wait_until_ready(second)
        env.workers[0].kill()

        async def has_begun_replay() -> bool:
            return any(
                (disk.host_path / "work/README.md").exists()
                for disk in list_disks(second.folder / "sessions")
            )

        await wait_until(has_begun_replay)
        second.restart()
        await env.wait_until_settled()
        assert await env.read_pull_files() == {"first.txt": "1\n"}
        assert await env.read_models.list_failures() == []


@pytest.mark.long
async def test_a_machine_that_is_told_to_end_hands_its_run_over_at_once(
    folder: Path, pair: dict[str, str]
):
    async with loopback.serve_vendors(THREE_FILES_SCRIPT) as vendors:
        model = get_vendor_settings(vendors, "anthropic")
        async with start_cluster(
            folder, pair, THREE_FILES_SCRIPT, timeouts=DEFAULT_TIMEOUTS, workers=1, model=model
        ) as env:
            await env.file_labelled_issue()
            await env.wait_for_replies(3)
            second = env.start_worker()
            await env.wait_until_ready(second)
            lease = await env.get_lease(second)

            async def is_taken_over() -> bool:
                return await env.query_scalar(select(RunRow.lease)) == lease

            code, seconds = await env.workers[0].stop()
            assert code == 0
            assert seconds < 10
            await wait_until(is_taken_over, within=3)
            # two messages of the briefing, two steps, the third call, and perhaps its answer
            assert await env.query_scalar(select(RunRow.kept_steps)) in (7, 8)
            await env.wait_until_settled()
            assert await env.read_pull_files() == EXPECTED_FILES
            assert count_model_requests(vendors) == (6, 0)
            assert await env.read_models.list_failures() == []


async def wait_for_new_lease(env: Cluster, machine: Machine, previous: int | None) -> None:
    """Wait until a machine has noticed that its lease is over, and renews a new one."""

    async def has_new_lease() -> bool:
        number = await env.get_lease(machine)
        heartbeat = await env.query_scalar(
            select(LeaseRow.beat).where(LeaseRow.place == machine.place)
        )
        return number is not None and number != previous and heartbeat >= 2

    await wait_until(has_new_lease)


@pytest.mark.long
async def test_a_machine_that_stood_still_writes_nothing_once_another_has_gone_on(
    folder: Path, pair: dict[str, str]
):
    async with start_cluster(folder, pair, THREE_FILES_SCRIPT) as env:
        await env.file_labelled_issue()
        await env.wait_for_replies(3)
        [first] = env.workers
        previous = await env.get_lease(env.workers[0])
        first.freeze()
        env.start_worker()
        await env.wait_until_settled()
        assert await env.read_pull_files() == EXPECTED_FILES
        before = await Snapshot.create(env)
        first.thaw()
        await wait_for_new_lease(env, first, previous)
        assert before.find_changes(await Snapshot.create(env)) == {}
        assert await env.read_models.list_failures() == []


@pytest.mark.long
async def test_a_machine_frozen_in_a_transaction_holds_up_no_beat_of_another(
    folder: Path, pair: dict[str, str]
):
    async with start_cluster(folder, pair, THREE_FILES_SCRIPT, workers=2) as env:
        first, second = env.workers
        previous = await env.get_lease(first)
        # a transaction that holds the same lock as one of the first worker
        async with env.engine.connect() as transaction:
            # a slow machine must not end the transaction
            await transaction.execute(text("set idle_in_transaction_session_timeout = 0"))
            await transaction.execute(
                select(LeaseRow.number)
                .where(LeaseRow.number == previous)
                .with_for_update(read=True)
            )
            first.freeze()
            first_heartbeat = await env.query_scalar(
                heartbeat := select(LeaseRow.beat).where(LeaseRow.place == second.place)
            )

            async def has_renewed_lease() -> bool:
                # 12 heartbeats take six seconds: three times the timeout of the lease
                return await env.query_scalar(heartbeat) >= first_heartbeat + 12

            await wait_until(has_renewed_lease, within=12)
        await wait_until(lambda: env.is_lease_over(previous), within=12)


FREEZE_POINTS = {
    "POST comments": True,
    "git-receive-pack": False,
    "POST pulls": True,
    "POST check-runs": False,
}
"""Writes, and whether the worker is frozen after the write (True) or before it (False). `make
torture` freezes workers at any moment."""


@pytest.mark.parametrize(
    ("write", "after_write"),
    [
        pytest.param(*case, id=case[0], marks=[pytest.mark.long] if n else [])
        for n, case in enumerate(FREEZE_POINTS.items())
    ],
)
async def test_frozen_inside_a_write_it_writes_nothing_more(
    folder: Path, pair: dict[str, str], write: str, after_write: bool
):
    async with start_cluster(folder, pair, {"runs": [build_run(*FIX_STEPS)]}) as env:
        [first] = env.workers
        previous = await env.get_lease(env.workers[0])
        thaw_event = asyncio.Event()
        frozen_event = asyncio.Event()

        async def freeze_in_write(
            request: Request, forward: Callable[[], Awaitable[Response]]
        ) -> Response:
            if (
                frozen_event.is_set()
                or not is_write(request)
                or not from_osiris(request)
                or not _matches_write(request, write)
            ):
                return await forward()
            frozen_event.set()
            if write != "git-receive-pack":
                # read all of the request: one that is interrupted halfway cannot be fenced
                await request.body()
            first.freeze()
            response = await forward() if after_write else Response(status_code=502)
            await thaw_event.wait()
            return response

        env.playground.hub.interceptors.append(freeze_in_write)
        issue = await env.file_labelled_issue()
        await asyncio.wait_for(frozen_event.wait(), 20)
        env.start_worker()
        await env.wait_until_settled()
        before = await Snapshot.create(env)
        assert (len(before.github["pulls"]), len(before.github["comments"][issue])) == (1, 1)
        thaw_event.set()
        first.thaw()
        await wait_for_new_lease(env, first, previous)
        assert before.find_changes(await Snapshot.create(env)) == {}
        assert await env.read_models.list_failures() == []


def _matches_write(request: Request, write: str) -> bool:
    method, _, path_end = write.rpartition(" ")
    return request.method == (method or "POST") and request.url.path.endswith(path_end)


@pytest.mark.long
async def test_ten_tasks_on_two_workers_that_are_killed_in_turn_all_end_well(
    folder: Path, pair: dict[str, str]
):
    names = [format_task_name(number) for number in range(10)]
    async with start_cluster(folder, pair, build_tasks_script(len(names)), workers=2) as env:
        killer = WorkerKiller(env, random.Random(6), (0.5, 1.5), max_kills=6)
        async with run_concurrently(killer.kill_workers()):
            assert await run_tasks(env, names, at_once=10, has_review=False) == []
        await env.wait_until_settled()
        audit = await TaskAuditor(env, names, has_review=False).audit_tasks()
        assert (audit.doubles, audit.losses) == ([], [])
        assert (audit.done, audit.pulls, audit.comments, audit.commits) == (10, 10, 20, 10)
        assert killer.kills == 6


@pytest.mark.long
async def test_work_goes_on_while_redis_is_away_or_has_forgotten_everything(
    folder: Path, pair: dict[str, str], redis_server: Redis
):
    names = [format_task_name(number) for number in range(3)]
    async with start_cluster(folder, pair, build_tasks_script(len(names)), workers=2) as env:
        redis_server.flush()
        await TaskLifecycle(env, names[0], has_review=False).run_to_merge()
        redis_server.stop()
        try:
            await TaskLifecycle(env, names[1], has_review=False).run_to_merge()
        finally:
            redis_server.start()
        await TaskLifecycle(env, names[2], has_review=False).run_to_merge()
        await env.wait_until_settled()
        audit = await TaskAuditor(env, names, has_review=False).audit_tasks()
        assert (audit.doubles, audit.losses, audit.done) == ([], [], 3)


@pytest.mark.long
async def test_a_database_that_stops_in_the_middle_parks_nothing(
    folder: Path, pair: dict[str, str], postgres: Postgres
):
    async with start_cluster(folder, pair, THREE_FILES_SCRIPT, workers=2) as env:
        await env.file_labelled_issue()
        await env.wait_for_replies(3)
        await asyncio.to_thread(postgres.stop)
        assert not await is_ready(env)
        await asyncio.to_thread(postgres.start)
        await wait_until(lambda: env.is_healthy(), within=30)
        await env.wait_until_settled()
        [line] = await env.read_models.list_tasks()
        assert (line.task.state, line.task.reason) == ("review", "")
        assert await env.read_pull_files() == EXPECTED_FILES
        assert await env.read_models.list_failures() == []
        replies = [m for m in await env.read_transcript() if m.role == "assistant"]
        assert len(replies) == 5 + await count_interrupted(env)


@pytest.mark.long
async def test_with_a_frozen_database_the_door_says_come_again(
    folder: Path, pair: dict[str, str], postgres: Postgres
):
    async with start_cluster(folder, pair, {"runs": [build_run(*FIX_STEPS)]}) as env:
        await asyncio.to_thread(postgres.freeze)
        began = time.monotonic()
        response = await send_ping(env)
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert time.monotonic() - began < 10  # GitHub waits no longer
        issue = await env.file_labelled_issue()
        await env.playground.hub.wait_until_sent()
        await asyncio.to_thread(postgres.thaw)
        await wait_until(lambda: env.is_healthy(), within=30)
        assert (await send_ping(env)).status_code == 202
        await env.wait_until_settled()
        assert [pull["draft"] for pull in await env.alice.list_pulls()] == [True]
        assert len(await env.alice.list_comments(issue)) == 1
        assert await env.read_models.list_failures() == []


async def send_ping(env: Cluster) -> httpx.Response:
    """Send a delivery that concerns no task to the webhook endpoint."""
    body = b'{"zen": "Keep it simple."}'
    secret = env.playground.settings.github_webhook_secret.get_secret_value().encode()
    headers = {
        "X-Hub-Signature-256": f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}",
        "X-GitHub-Event": "ping",
        "X-GitHub-Delivery": uuid4().hex,
    }
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        return await http.post(env.playground.app.webhook_url, content=body, headers=headers)


async def is_ready(env: Cluster) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        return (
            await http.get(f"http://127.0.0.1:{env.playground.settings.osiris_port}/readyz")
        ).is_success


@pytest.mark.long
async def test_the_limit_of_a_repository_holds_across_workers(folder: Path, pair: dict[str, str]):
    script = {
        "runs": [
            build_run(
                build_step("run_command", command="sleep 0.3; echo 1 > $RANDOM$RANDOM.txt"),
                build_submit_step(),
            )
        ]
    }
    async with start_cluster(
        folder, {**pair, "osiris_repository_runs": 1}, script, workers=2
    ) as env:
        max_runs = 0

        async def watch_runs() -> None:
            nonlocal max_runs
            while True:
                is_claimed_run = (
                    OutboxRow.not_before.is_not(None)
                    & OutboxRow.lease.is_not(None)
                    & (OutboxRow.lane == RUNS)
                )
                max_runs = max(
                    max_runs, await env.query_scalar(select(func.count()).where(is_claimed_run))
                )
                await asyncio.sleep(0.05)

        async with run_concurrently(watch_runs()):
            task_count = 0
            worker_count = 0
            while worker_count < 2 and task_count < 30:  # chance decides which worker is first
                for _ in range(5):
                    await env.file_labelled_issue(f"Task {task_count}")
                    task_count += 1
                await env.wait_until_settled()
                worker_count = await env.query_scalar(
                    select(func.count(func.distinct(RunRow.place)))
                )
        assert max_runs == 1
        assert [pull["draft"] for pull in await env.alice.list_pulls()] == [True] * task_count
        assert worker_count == 2
