"""One web process and several workers: whichever of them is killed, stopped or frozen, nothing is
lost or duplicated."""

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
from tests.conftest import a_database, disks_in
from tests.flow.conftest import FIX, run, settings_of, step, submit
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
    count_model_requests,
    name_of,
    run_concurrently,
    run_tasks,
    story,
)
from tests.flow.test_outages import from_osiris, is_write
from tests.servers import Postgres, Redis

STEPS = {
    "runs": [
        run(
            step("write_file", path="first.txt", content="1\n"),
            step("run_command", {"exit_code": 0}, command="echo 2 >> second.txt"),
            step("run_command", {"contains": "1\n2"}, command="sleep 2; cat first.txt second.txt"),
            step("write_file", path="third.txt", content="3\n"),
            submit("Three files."),
        )
    ]
}
EXPECTED_FILES = {"first.txt": "1\n", "second.txt": "2\n", "third.txt": "3\n"}


@pytest.fixture
def pair(postgres: Postgres, migrated: str, redis_server: Redis) -> Iterator[dict[str, str]]:
    """Use PostgreSQL and Redis only: several machines need them."""
    redis_server.flush()
    with a_database(postgres, migrated) as url:
        yield {"database_url": url, "redis_url": redis_server.url}


async def count_interrupted(env: Cluster) -> int:
    return sum(
        m.role == "tool" and m.text.startswith("interrupted") for m in await env.transcript()
    )


@pytest.mark.parametrize(
    "put_away",
    [
        pytest.param(False, id="nothing put away"),
        pytest.param(True, id="put away before", marks=pytest.mark.long),
    ],
)
async def test_another_machine_goes_on_where_a_killed_one_was(
    place: Path, pair: dict[str, str], put_away: bool
):
    async with (
        loopback.serving(STEPS) as vendors,
        start_cluster(place, pair, STEPS, model=settings_of(vendors, "anthropic")) as env,
    ):
        await env.file_labelled_issue()
        await env.wait_for_replies(3)
        if put_away:
            env.start_worker()
            assert (await env.workers[0].stop())[0] == 0
            await env.wait_for_replies(4)
        env.start_worker()
        env.workers[-2].kill()
        await env.wait_until_settled()
        assert await env.files() == EXPECTED_FILES
        assert await count_interrupted(env) == 1 + put_away
        assert len([m for m in await env.transcript() if m.role == "assistant"]) == 6 + put_away
        assert count_model_requests(vendors) == (6 + put_away, 0)
        assert len(await env.alice.list_pulls()) == 1
        assert await env.views.list_failures() == []


@pytest.mark.long
async def test_killed_while_it_does_steps_again_a_machine_does_them_all_again(
    place: Path, pair: dict[str, str]
):
    """A partly replayed workspace must not pass for a complete one, neither on that machine nor on
    the first one."""
    story = {
        "runs": [
            run(
                step("run_command", {"exit_code": 0}, command="sleep 2"),
                step("write_file", path="first.txt", content="1\n"),
                step("run_command", {"contains": "1"}, command="sleep 2; cat first.txt"),
                submit("One file."),
            )
        ]
    }
    async with start_cluster(place, pair, story) as env:
        await env.file_labelled_issue()
        await env.wait_for_replies(3)
        second = env.start_worker()
        await env.wait_until_ready(second)
        env.workers[0].kill()

        async def has_begun_replay() -> bool:
            return any(
                (disk.host_path / "work/README.md").exists()
                for disk in disks_in(second.folder / "sessions")
            )

        await wait_until(has_begun_replay)
        second.restart()
        await env.wait_until_settled()
        assert await env.files() == {"first.txt": "1\n"}
        assert await env.views.list_failures() == []


@pytest.mark.long
async def test_a_machine_that_is_told_to_end_hands_its_run_over_at_once(
    place: Path, pair: dict[str, str]
):
    async with loopback.serving(STEPS) as vendors:
        model = settings_of(vendors, "anthropic")
        async with start_cluster(
            place, pair, STEPS, timeouts=DEFAULT_TIMEOUTS, workers=1, model=model
        ) as env:
            await env.file_labelled_issue()
            await env.wait_for_replies(3)
            second = env.start_worker()
            await env.wait_until_ready(second)
            number = await env.get_lease(second)

            async def is_taken_over() -> bool:
                return await env.scalar(select(RunRow.lease)) == number

            code, seconds = await env.workers[0].stop()
            assert code == 0
            assert seconds < 10
            await wait_until(is_taken_over, within=3)
            # two messages of the briefing, two steps, the third call, and its answer if it had come
            assert await env.scalar(select(RunRow.kept_steps)) in (7, 8)
            await env.wait_until_settled()
            assert await env.files() == EXPECTED_FILES
            assert count_model_requests(vendors) == (6, 0)
            assert await env.views.list_failures() == []


async def wait_for_new_lease(env: Cluster, machine: Machine, previous: int | None) -> None:
    """Wait until a machine has noticed that its lease is over and renews a new one."""

    async def has_new_lease() -> bool:
        number = await env.get_lease(machine)
        beat = await env.scalar(select(LeaseRow.beat).where(LeaseRow.place == machine.place))
        return number is not None and number != previous and beat >= 2

    await wait_until(has_new_lease)


@pytest.mark.long
async def test_a_machine_that_stood_still_writes_nothing_once_another_has_gone_on(
    place: Path, pair: dict[str, str]
):
    async with start_cluster(place, pair, STEPS) as env:
        await env.file_labelled_issue()
        await env.wait_for_replies(3)
        [first] = env.workers
        previous = await env.get_lease(env.workers[0])
        first.freeze()
        env.start_worker()
        await env.wait_until_settled()
        assert await env.files() == EXPECTED_FILES
        before = await Snapshot.of(env)
        first.thaw()
        await wait_for_new_lease(env, first, previous)
        assert before.changes(await Snapshot.of(env)) == {}
        assert await env.views.list_failures() == []


@pytest.mark.long
async def test_a_machine_frozen_in_a_transaction_holds_up_no_beat_of_another(
    place: Path, pair: dict[str, str]
):
    async with start_cluster(place, pair, STEPS, workers=2) as env:
        first, second = env.workers
        previous = await env.get_lease(first)
        async with env.engine.connect() as holding:  # as a transaction of the first worker would
            # so that a slow machine does not end the transaction
            await holding.execute(text("set idle_in_transaction_session_timeout = 0"))
            await holding.execute(
                select(LeaseRow.number)
                .where(LeaseRow.number == previous)
                .with_for_update(read=True)
            )
            first.freeze()
            begun = await env.scalar(
                beat := select(LeaseRow.beat).where(LeaseRow.place == second.place)
            )

            async def has_renewed_lease() -> bool:
                return await env.scalar(beat) >= begun + 12  # six seconds: three times the lease

            await wait_until(has_renewed_lease, within=12)
        await wait_until(lambda: env.is_lease_over(previous), within=12)


FREEZE_POINTS = {
    "POST comments": True,
    "git-receive-pack": False,
    "POST pulls": True,
    "POST check-runs": False,
}
"""True: the worker is frozen after the write was done; False: before. `make torture` freezes at any
moment."""


@pytest.mark.parametrize(
    ("write", "done"),
    [
        pytest.param(*one, id=one[0], marks=[pytest.mark.long] if n else [])
        for n, one in enumerate(FREEZE_POINTS.items())
    ],
)
async def test_frozen_inside_a_write_it_writes_nothing_more(
    place: Path, pair: dict[str, str], write: str, done: bool
):
    async with start_cluster(place, pair, {"runs": [run(*FIX)]}) as env:
        [first] = env.workers
        previous = await env.get_lease(env.workers[0])
        thawed = asyncio.Event()
        cut = asyncio.Event()

        async def freeze(request: Request, forward: Callable[[], Awaitable[Response]]) -> Response:
            if (
                cut.is_set()
                or not is_write(request)
                or not from_osiris(request)
                or not _matches_write(request, write)
            ):
                return await forward()
            cut.set()
            if write != "git-receive-pack":
                # read all of it: a request that is interrupted while it is sent cannot be fenced
                await request.body()
            first.freeze()
            answer = await forward() if done else Response(status_code=502)
            await thawed.wait()
            return answer

        env.playground.hub.interceptors.append(freeze)
        issue = await env.file_labelled_issue()
        await asyncio.wait_for(cut.wait(), 20)
        env.start_worker()
        await env.wait_until_settled()
        before = await Snapshot.of(env)
        assert (len(before.github["pulls"]), len(before.github["comments"][issue])) == (1, 1)
        thawed.set()
        first.thaw()
        await wait_for_new_lease(env, first, previous)
        assert before.changes(await Snapshot.of(env)) == {}
        assert await env.views.list_failures() == []


def _matches_write(request: Request, write: str) -> bool:
    method, _, end = write.rpartition(" ")
    return request.method == (method or "POST") and request.url.path.endswith(end)


@pytest.mark.long
async def test_ten_tasks_on_two_workers_that_are_killed_in_turn_all_end_well(
    place: Path, pair: dict[str, str]
):
    names = [name_of(number) for number in range(10)]
    async with start_cluster(place, pair, story(len(names)), workers=2) as env:
        killer = WorkerKiller(env, random.Random(6), (0.5, 1.5), most=6)
        async with run_concurrently(killer.kill_workers()):
            assert await run_tasks(env, names, at_once=10, reviewed=False) == []
        await env.wait_until_settled()
        audit = await TaskAuditor(env, names, reviewed=False).count()
        assert (audit.doubles, audit.losses) == ([], [])
        assert (audit.done, audit.pulls, audit.comments, audit.commits) == (10, 10, 20, 10)
        assert killer.kills == 6


@pytest.mark.long
async def test_work_goes_on_while_redis_is_away_or_has_forgotten_everything(
    place: Path, pair: dict[str, str], redis_server: Redis
):
    names = [name_of(number) for number in range(3)]
    async with start_cluster(place, pair, story(len(names)), workers=2) as env:
        redis_server.flush()
        await TaskLifecycle(env, names[0], reviewed=False).run_to_merge()
        redis_server.stop()
        try:
            await TaskLifecycle(env, names[1], reviewed=False).run_to_merge()
        finally:
            redis_server.start()
        await TaskLifecycle(env, names[2], reviewed=False).run_to_merge()
        await env.wait_until_settled()
        audit = await TaskAuditor(env, names, reviewed=False).count()
        assert (audit.doubles, audit.losses, audit.done) == ([], [], 3)


@pytest.mark.long
async def test_a_database_that_stops_in_the_middle_parks_nothing(
    place: Path, pair: dict[str, str], postgres: Postgres
):
    async with start_cluster(place, pair, STEPS, workers=2) as env:
        await env.file_labelled_issue()
        await env.wait_for_replies(3)
        await asyncio.to_thread(postgres.stop)
        assert not await is_ready(env)
        await asyncio.to_thread(postgres.start)
        await wait_until(lambda: env.is_healthy(), within=30)
        await env.wait_until_settled()
        [line] = await env.views.list_tasks()
        assert (line.task.state, line.task.reason) == ("review", "")
        assert await env.files() == EXPECTED_FILES
        assert await env.views.list_failures() == []
        said = [m for m in await env.transcript() if m.role == "assistant"]
        assert len(said) == 5 + await count_interrupted(env)


@pytest.mark.long
async def test_with_a_frozen_database_the_door_says_come_again(
    place: Path, pair: dict[str, str], postgres: Postgres
):
    async with start_cluster(place, pair, {"runs": [run(*FIX)]}) as env:
        await asyncio.to_thread(postgres.freeze)
        began = time.monotonic()
        answer = await send_ping(env)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert time.monotonic() - began < 5
        issue = await env.file_labelled_issue()
        await env.playground.hub.wait_until_sent()
        await asyncio.to_thread(postgres.thaw)
        await wait_until(lambda: env.is_healthy(), within=30)
        assert (await send_ping(env)).status_code == 202
        await env.wait_until_settled()
        assert [pull["draft"] for pull in await env.alice.list_pulls()] == [True]
        assert len(await env.alice.list_comments(issue)) == 1
        assert await env.views.list_failures() == []


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
async def test_the_limit_of_a_repository_holds_across_workers(place: Path, pair: dict[str, str]):
    steps = {
        "runs": [
            run(step("run_command", command="sleep 0.3; echo 1 > $RANDOM$RANDOM.txt"), submit())
        ]
    }
    async with start_cluster(place, {**pair, "osiris_repository_runs": 1}, steps, workers=2) as env:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                held = (
                    OutboxRow.not_before.is_not(None)
                    & OutboxRow.lease.is_not(None)
                    & (OutboxRow.lane == RUNS)
                )
                most = max(most, await env.scalar(select(func.count()).where(held)))
                await asyncio.sleep(0.05)

        async with run_concurrently(watch()):
            tasks = 0
            places = 0
            while places < 2 and tasks < 30:  # which worker is first is a matter of chance
                for _ in range(5):
                    await env.file_labelled_issue(f"Task {tasks}")
                    tasks += 1
                await env.wait_until_settled()
                places = await env.scalar(select(func.count(func.distinct(RunRow.place))))
        assert most == 1
        assert [pull["draft"] for pull in await env.alice.list_pulls()] == [True] * tasks
        assert places == 2
