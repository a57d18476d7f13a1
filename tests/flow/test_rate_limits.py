"""GitHub's rate limits: Osiris sends writes one at a time, defers reads that can wait, and sends
nothing while GitHub allows no request."""

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import pytest
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris.bot.github.app_auth import Suspended
from osiris.core.errors import NeedsOperator, Refused, Unavailable
from osiris.core.events import IssueRef
from tests.flow.conftest import REPO, FlowEnvironment, Start
from tests.flow.test_outages import from_osiris

LIMITS_ON = {"osiris_github_limits": "on"}


@pytest.fixture
def pair() -> dict[str, str]:
    """Use SQLite only: the storage makes no difference here."""
    return {}


@dataclass
class RequestLog:
    """A log of Osiris's REST and GraphQL requests. `writes` holds the path of each write, and its
    start and end in seconds.

    `forced_answer` is the end of a path and the answer to the first write to such a path.
    """

    forced_answer: tuple[str, JSONResponse] | None = None
    requests: list[Request] = field(default_factory=list)
    writes: list[tuple[str, float, float]] = field(default_factory=list)

    async def __call__(self, request: Request, forward) -> Response:
        path = request.url.path
        if not from_osiris(request) or not path.startswith("/api/"):
            return await forward()
        self.requests.append(request)
        if request.method == "GET" or "/app/" in path:
            return await forward()
        if self.forced_answer and path.endswith(self.forced_answer[0]):
            answer = self.forced_answer[1]
            self.forced_answer = None
            self.writes.append((path, time.monotonic(), time.monotonic()))
            return answer
        began = time.monotonic()
        answer = await forward()
        self.writes.append((path, began, time.monotonic()))
        return answer


def log_requests(
    env: FlowEnvironment, forced_answer: tuple[str, JSONResponse] | None = None
) -> RequestLog:
    request_log = RequestLog(forced_answer)
    env.playground.hub.interceptors.append(request_log)
    return request_log


def set_remaining_requests(
    env: FlowEnvironment, remaining: int, *, seconds: float = 3600.0
) -> None:
    """Set the number of requests that Osiris has left, and the seconds until the limit is reset."""
    installation = env.playground.hub.get_installation(env.playground.app, REPO)
    env.playground.hub.rates.set_remaining(
        "installation", installation.id, remaining, seconds=seconds
    )


async def test_writes_go_one_at_a_time_a_second_apart(start: Start):
    async with start(more=LIMITS_ON) as env:
        request_log = log_requests(env)
        for n in range(4):
            await env.alice.add_comment(await env.alice.file_issue(f"Issue {n}"), "/osiris help")
        async with asyncio.timeout(30):
            while len(request_log.writes) < 4:
                await asyncio.sleep(0.05)
        for (_, _, ended), (_, began, _) in itertools.pairwise(request_log.writes):
            assert began >= ended
        starts = [began for _, began, _ in request_log.writes]
        assert all(later - before > 0.9 for before, later in itertools.pairwise(starts))


async def test_a_limit_holds_back_every_write_through_that_account(start: Start):
    limit = JSONResponse(
        {"message": "You have exceeded a secondary rate limit."}, 403, headers={"retry-after": "4"}
    )
    async with start(more=LIMITS_ON) as env:
        request_log = log_requests(env, ("/comments", limit))
        for n in range(3):
            await env.alice.add_comment(await env.alice.file_issue(f"Issue {n}"), "/osiris help")
        async with asyncio.timeout(40):
            while len(request_log.writes) < 4:
                await asyncio.sleep(0.05)
        (_, refused_at, _), *later_writes = request_log.writes
        assert all(began > refused_at + 3.9 for _, began, _ in later_writes)
        assert await env.list_failures() == []


@pytest.mark.parametrize("headers", [{"retry-after": "99999999"}, {"x-ratelimit-remaining": "0"}])
async def test_no_pause_is_longer_than_an_hour_whatever_is_said(
    start: Start, headers: dict[str, str]
):
    """GitHub's limits last an hour. A reset time further ahead means that one of the two clocks is
    wrong."""
    headers = {**headers, "x-ratelimit-reset": str(int(time.time()) + 10**8)}
    limit = JSONResponse(
        {"message": "You have exceeded a secondary rate limit."}, 403, headers=headers
    )
    next_attempt_query = text("select not_before from outbox where not_before is not null")
    async with start() as env:
        request_log = log_requests(env, ("/comments", limit))
        await env.alice.add_comment(await env.alice.file_issue("Help"), "/osiris help")

        async def read_next_attempt() -> float:
            async with env.osiris.engine.connect() as connection:
                return await connection.scalar(next_attempt_query) or 0.0

        async with asyncio.timeout(20):
            while not request_log.writes or await read_next_attempt() < time.time() + 60:
                await asyncio.sleep(0.05)
        assert await read_next_attempt() <= time.time() + 3700


async def test_when_nothing_is_left_nothing_is_asked_until_there_is_again(start: Start):
    async with start() as env:
        await env.playground.wait_until_settled(env.osiris.store)
        issue = await env.alice.file_issue("add subtracts")
        set_remaining_requests(env, 0, seconds=4)
        request_log = log_requests(env)
        allowed_at = time.time() + 3
        await env.alice.add_label(issue)
        async with asyncio.timeout(30):
            while not await env.alice.list_pulls():
                assert (
                    time.time() > allowed_at or len(_list_installation_requests(request_log)) <= 1
                )
                await asyncio.sleep(0.05)
        assert time.time() > allowed_at


def _list_installation_requests(request_log: RequestLog) -> list[str]:
    """Return the paths of the requests with a token of the installation, without the requests that
    the App signs with its own key."""
    paths = [request.url.path.removeprefix("/api/v3") for request in request_log.requests]
    return [
        path for path in paths if not path.startswith("/app") and not path.endswith("/installation")
    ]


@pytest.mark.long
async def test_the_last_part_of_an_hour_is_for_what_people_wait_for(start: Start):
    async with start() as env:
        assert env.osiris.reconciler is not None
        await env.bring_to_review()
        set_remaining_requests(env, 240)
        await env.alice.add_comment(1, "/osiris status")
        await env.wait_until_settled()  # the answers state that few requests are left
        request_log = log_requests(env)
        with pytest.raises(Unavailable, match="are left") as error:
            await env.osiris.reconciler.compare_with_github()
        assert 3000 < (error.value.retry_in or 0) <= 3600
        assert _list_installation_requests(request_log) == []
        await env.alice.add_label(await env.alice.file_issue("Another"))
        await env.wait_until_settled()
        assert [line.task.state for line in await env.osiris.read_models.list_tasks()] == [
            "review",
            "review",
        ]


@pytest.mark.long
async def test_an_hour_that_ends_in_a_day_was_told_before_the_clock_was_set_back(start: Start):
    async with start() as env:
        assert env.osiris.reconciler is not None
        await env.bring_to_review()
        set_remaining_requests(env, 240, seconds=86400)
        await env.alice.add_comment(1, "/osiris status")
        await env.wait_until_settled()
        request_log = log_requests(env)
        await env.osiris.reconciler.compare_with_github()
        assert _list_installation_requests(request_log) != []


async def test_a_token_that_ends_in_the_middle_of_a_write_is_replaced(start: Start):
    async with start() as env:
        bad_credentials = JSONResponse({"message": "Bad credentials"}, 401)
        rest_log = log_requests(env, ("/comments", bad_credentials))
        _, number = await env.bring_to_review()
        graphql_log = log_requests(env, ("/api/graphql", bad_credentials))
        await env.bob.submit_review(number, "APPROVE")
        await env.wait_until_settled()
        assert (rest_log.forced_answer, graphql_log.forced_answer) == (None, None)
        assert not (await env.alice.get_pull(number))["draft"]
        assert len(await env.list_bot_comments(1)) == 1
        assert await env.list_failures() == []


@pytest.mark.long
async def test_every_request_names_the_version_of_rest_that_is_meant(start: Start):
    async with start() as env:
        request_log = log_requests(env)
        await env.bring_to_review()
        versions = {
            request.headers.get("x-github-api-version")
            for request in request_log.requests
            if not request.url.path.endswith("/graphql")
        }
        assert versions == {"2022-11-28"}


async def test_what_a_person_can_mend_is_told_apart_from_what_is_final(start: Start):
    async with start() as env:
        github, hub = env.osiris.github, env.playground.hub
        assert github is not None
        issue = IssueRef(REPO, await env.alice.file_issue("x"))
        await env.wait_until_settled()  # the worker writes only while it has its lease
        repo = hub.world.get_repo(REPO)
        installation = hub.get_installation(env.playground.app, REPO)

        repo.archived = True
        with pytest.raises(NeedsOperator, match="has to unarchive the repository"):
            await github.upsert_comment(issue, issue.number, "Hello.", marker="status")
        repo.archived = False

        env.playground.app.permissions = {**env.playground.app.permissions, "checks": "read"}
        with pytest.raises(NeedsOperator, match="give the App that permission"):
            await github.upsert_check_run(issue, repo.heads["main"], {"status": "queued"})

        hub.suspend_installation(installation)
        for request in (
            github.upsert_comment(issue, issue.number, "Hello.", marker="status"),
            github.read_issue(REPO, issue.number),
        ):
            with pytest.raises(Suspended, match="end"):
                await request
        hub.unsuspend_installation(installation)
        assert (await github.read_issue(REPO, issue.number)).open

        with pytest.raises(Refused) as error:
            await github.upsert_comment(issue, issue.number, "x" * 70_000, marker="status")
        assert not isinstance(error.value, NeedsOperator)
