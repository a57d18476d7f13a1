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
from tests.flow.support.cluster import REAL, Machine, Site, Snapshot, site, until
from tests.flow.support.consistency_audit import (
    Counting,
    Life,
    Reaper,
    asked,
    live_all,
    meanwhile,
    name_of,
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
MADE = {"first.txt": "1\n", "second.txt": "2\n", "third.txt": "3\n"}


@pytest.fixture
def pair(postgres: Postgres, migrated: str, redis_server: Redis) -> Iterator[dict[str, str]]:
    """Use PostgreSQL and Redis only: several machines need them."""
    redis_server.flush()
    with a_database(postgres, migrated) as url:
        yield {"database_url": url, "redis_url": redis_server.url}


async def interrupted(it: Site) -> int:
    return sum(m.role == "tool" and m.text.startswith("interrupted") for m in await it.transcript())


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
        site(place, pair, STEPS, model=settings_of(vendors, "anthropic")) as it,
    ):
        await it.labelled()
        await it.said(3)
        if put_away:
            it.worker()
            assert (await it.workers[0].end())[0] == 0
            await it.said(4)
        it.worker()
        it.workers[-2].kill()
        await it.settled()
        assert await it.files() == MADE
        assert await interrupted(it) == 1 + put_away
        assert len([m for m in await it.transcript() if m.role == "assistant"]) == 6 + put_away
        assert asked(vendors) == (6 + put_away, 0)
        assert len(await it.alice.list_pulls()) == 1
        assert await it.views.list_failures() == []


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
    async with site(place, pair, story) as it:
        await it.labelled()
        await it.said(3)
        second = it.worker()
        await it.ready(second)
        it.workers[0].kill()

        async def begun() -> bool:
            return any(
                (disk.host_path / "work/README.md").exists()
                for disk in disks_in(second.folder / "sessions")
            )

        await until(begun)
        second.again()
        await it.settled()
        assert await it.files() == {"first.txt": "1\n"}
        assert await it.views.list_failures() == []


async def test_a_machine_that_is_told_to_end_hands_its_run_over_at_once(
    place: Path, pair: dict[str, str]
):
    async with loopback.serving(STEPS) as vendors:
        model = settings_of(vendors, "anthropic")
        async with site(place, pair, STEPS, patience=REAL, workers=1, model=model) as it:
            await it.labelled()
            await it.said(3)
            second = it.worker()
            await it.ready(second)
            number = await it.holds(second)

            async def taken() -> bool:
                return await it.scalar(select(RunRow.lease)) == number

            code, seconds = await it.workers[0].end()
            assert code == 0
            assert seconds < 10
            await until(taken, within=3)
            # two messages of the briefing, two steps, and the third call
            assert await it.scalar(select(RunRow.kept_steps)) == 7
            await it.settled()
            assert await it.files() == MADE
            assert asked(vendors) == (6, 0)
            assert await it.views.list_failures() == []


async def begins_again(it: Site, machine: Machine, was: int | None) -> None:
    """Wait until a machine has noticed that its lease is over and renews a new one."""

    async def noticed() -> bool:
        number = await it.holds(machine)
        beat = await it.scalar(select(LeaseRow.beat).where(LeaseRow.place == machine.place))
        return number is not None and number != was and beat >= 2

    await until(noticed)


@pytest.mark.long
async def test_a_machine_that_stood_still_writes_nothing_once_another_has_gone_on(
    place: Path, pair: dict[str, str]
):
    async with site(place, pair, STEPS) as it:
        await it.labelled()
        await it.said(3)
        [first] = it.workers
        was = await it.holds(it.workers[0])
        first.freeze()
        it.worker()
        await it.settled()
        assert await it.files() == MADE
        before = await Snapshot.of(it)
        first.thaw()
        await begins_again(it, first, was)
        assert before.changes(await Snapshot.of(it)) == {}
        assert await it.views.list_failures() == []


@pytest.mark.long
async def test_a_machine_frozen_in_a_transaction_holds_up_no_beat_of_another(
    place: Path, pair: dict[str, str]
):
    async with site(place, pair, STEPS, workers=2) as it:
        first, second = it.workers
        was = await it.holds(first)
        async with it.engine.connect() as holding:  # as a transaction of the first worker would
            # so that a slow machine does not end the transaction
            await holding.execute(text("set idle_in_transaction_session_timeout = 0"))
            await holding.execute(
                select(LeaseRow.number).where(LeaseRow.number == was).with_for_update(read=True)
            )
            first.freeze()
            begun = await it.scalar(
                beat := select(LeaseRow.beat).where(LeaseRow.place == second.place)
            )

            async def beats_on() -> bool:
                return await it.scalar(beat) >= begun + 12  # six seconds: three times the lease

            await until(beats_on, within=12)
        await until(lambda: it.gone(was), within=12)


MOMENTS = {
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
        for n, one in enumerate(MOMENTS.items())
    ],
)
async def test_frozen_inside_a_write_it_writes_nothing_more(
    place: Path, pair: dict[str, str], write: str, done: bool
):
    async with site(place, pair, {"runs": [run(*FIX)]}) as it:
        [first] = it.workers
        was = await it.holds(it.workers[0])
        thawed = asyncio.Event()
        cut = asyncio.Event()

        async def freeze(request: Request, forward: Callable[[], Awaitable[Response]]) -> Response:
            if (
                cut.is_set()
                or not is_write(request)
                or not from_osiris(request)
                or not _is(request, write)
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

        it.stage.hub.interceptors.append(freeze)
        issue = await it.labelled()
        await asyncio.wait_for(cut.wait(), 20)
        it.worker()
        await it.settled()
        before = await Snapshot.of(it)
        assert (len(before.github["pulls"]), len(before.github["comments"][issue])) == (1, 1)
        thawed.set()
        first.thaw()
        await begins_again(it, first, was)
        assert before.changes(await Snapshot.of(it)) == {}
        assert await it.views.list_failures() == []


def _is(request: Request, write: str) -> bool:
    method, _, end = write.rpartition(" ")
    return request.method == (method or "POST") and request.url.path.endswith(end)


@pytest.mark.long
async def test_ten_tasks_on_two_workers_that_are_killed_in_turn_all_end_well(
    place: Path, pair: dict[str, str]
):
    names = [name_of(number) for number in range(10)]
    async with site(place, pair, story(len(names)), workers=2) as it:
        reaper = Reaper(it, random.Random(6), (0.5, 1.5), most=6)
        async with meanwhile(reaper.reap()):
            assert await live_all(it, names, at_once=10, reviewed=False) == []
        await it.settled()
        toll = await Counting(it, names, reviewed=False).count()
        assert (toll.doubles, toll.losses) == ([], [])
        assert (toll.done, toll.pulls, toll.comments, toll.commits) == (10, 10, 20, 10)
        assert reaper.kills == 6


@pytest.mark.long
async def test_work_goes_on_while_redis_is_away_or_has_forgotten_everything(
    place: Path, pair: dict[str, str], redis_server: Redis
):
    names = [name_of(number) for number in range(3)]
    async with site(place, pair, story(len(names)), workers=2) as it:
        redis_server.flush()
        await Life(it, names[0], reviewed=False).live()
        redis_server.stop()
        try:
            await Life(it, names[1], reviewed=False).live()
        finally:
            redis_server.start()
        await Life(it, names[2], reviewed=False).live()
        await it.settled()
        toll = await Counting(it, names, reviewed=False).count()
        assert (toll.doubles, toll.losses, toll.done) == ([], [], 3)


async def test_a_database_that_stops_in_the_middle_parks_nothing(
    place: Path, pair: dict[str, str], postgres: Postgres
):
    async with site(place, pair, STEPS, workers=2) as it:
        await it.labelled()
        await it.said(3)
        await asyncio.to_thread(postgres.stop)
        assert not await is_ready(it)
        await asyncio.to_thread(postgres.start)
        await until(lambda: it.calm(), within=30)
        await it.settled()
        [line] = await it.views.list_tasks()
        assert (line.task.state, line.task.reason) == ("review", "")
        assert await it.files() == MADE
        assert await it.views.list_failures() == []
        said = [m for m in await it.transcript() if m.role == "assistant"]
        assert len(said) == 5 + await interrupted(it)


@pytest.mark.long
async def test_with_a_frozen_database_the_door_says_come_again(
    place: Path, pair: dict[str, str], postgres: Postgres
):
    async with site(place, pair, {"runs": [run(*FIX)]}) as it:
        await asyncio.to_thread(postgres.freeze)
        began = time.monotonic()
        answer = await knock(it)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert time.monotonic() - began < 5
        issue = await it.labelled()
        await it.stage.hub.wait_until_sent()
        await asyncio.to_thread(postgres.thaw)
        await until(lambda: it.calm(), within=30)
        assert (await knock(it)).status_code == 202
        await it.settled()
        assert [pull["draft"] for pull in await it.alice.list_pulls()] == [True]
        assert len(await it.alice.list_comments(issue)) == 1
        assert await it.views.list_failures() == []


async def knock(it: Site) -> httpx.Response:
    """Send a delivery that concerns no task to the webhook endpoint."""
    body = b'{"zen": "Keep it simple."}'
    secret = it.stage.settings.github_webhook_secret.get_secret_value().encode()
    headers = {
        "X-Hub-Signature-256": f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}",
        "X-GitHub-Event": "ping",
        "X-GitHub-Delivery": uuid4().hex,
    }
    async with httpx.AsyncClient(trust_env=False, timeout=10) as http:
        return await http.post(it.stage.app.webhook_url, content=body, headers=headers)


async def is_ready(it: Site) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as http:
        return (
            await http.get(f"http://127.0.0.1:{it.stage.settings.osiris_port}/readyz")
        ).is_success


@pytest.mark.long
async def test_the_limit_of_a_repository_holds_across_workers(place: Path, pair: dict[str, str]):
    steps = {
        "runs": [
            run(step("run_command", command="sleep 0.3; echo 1 > $RANDOM$RANDOM.txt"), submit())
        ]
    }
    async with site(place, {**pair, "osiris_repository_runs": 1}, steps, workers=2) as it:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                held = (
                    OutboxRow.not_before.is_not(None)
                    & OutboxRow.lease.is_not(None)
                    & (OutboxRow.lane == RUNS)
                )
                most = max(most, await it.scalar(select(func.count()).where(held)))
                await asyncio.sleep(0.05)

        async with meanwhile(watch()):
            for number in range(5):
                await it.labelled(f"Task {number}")
            await it.settled()
        assert most == 1
        assert [pull["draft"] for pull in await it.alice.list_pulls()] == [True] * 5
        begun = await it.scalar(select(func.count(func.distinct(RunRow.place))))
        assert begun == 2
