"""Outages of GitHub: nothing is lost and nothing is duplicated."""

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.flow.conftest import FlowEnvironment, Start


def is_write(request: Request) -> bool:
    """Return whether a request writes to the repository. Minting a token, fetching, and requests of
    the operator about the App do not write."""
    path = request.url.path
    return (
        request.method not in ("GET", "HEAD")
        and "/app/" not in path
        and not path.endswith("git-upload-pack")
    )


def from_osiris(request: Request) -> bool:
    """Return whether a request comes from Osiris. People use tokens of another kind, and Osiris's
    git sends its token as Basic."""
    authorization = request.headers.get("authorization", "")
    return "ghp_" not in authorization


async def run_task_to_merge(env: FlowEnvironment) -> None:
    """Run a task from label to merge, and assert that nothing is lost or duplicated."""
    issue, number = await env.bring_to_review()
    await env.bob.submit_review(number, "REQUEST_CHANGES", "Nearly.")
    await env.wait_until_settled()
    await env.bob.submit_review(number, "APPROVE")
    await env.wait_until_settled()
    await env.bob.merge_pull(number)
    await env.wait_until_settled()
    assert (await env.get_task()).state == "done"
    assert len(await env.alice.list_pulls()) == 1
    assert len(await env.alice.send_request("GET", f"/pulls/{number}/commits")) == 2
    assert len(await env.list_bot_comments(issue)) == 1
    assert len(await env.list_bot_comments(number)) == 1
    assert await env.list_failures() == []


@pytest.mark.first_case
@pytest.mark.parametrize(
    "after_the_write", [True, False], ids=["after it was done", "before the write"]
)
async def test_every_answer_lost_once_doubles_nothing(start: Start, after_the_write: bool):
    async with start() as env:
        failed_requests: set[str] = set()

        async def lose_answer(request: Request, forward) -> Response:
            name = f"{request.method} {request.url.path}"
            if not is_write(request) or not from_osiris(request) or name in failed_requests:
                return await forward()
            failed_requests.add(name)
            if after_the_write:
                await forward()
            return JSONResponse({"message": "Server Error"}, 502)

        env.playground.hub.interceptors.append(lose_answer)
        await run_task_to_merge(env)
        assert len(failed_requests) > 8


@pytest.mark.first_case
@pytest.mark.parametrize(
    "headers", [{"retry-after": "1"}, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1"}]
)
async def test_a_rate_limit_is_obeyed(start: Start, headers: dict[str, str]):
    async with start() as env:
        refused_paths: list[str] = []

        async def refuse_first_comment(request: Request, forward) -> Response:
            if (
                is_write(request)
                and from_osiris(request)
                and request.url.path.endswith("/comments")
                and not refused_paths
            ):
                refused_paths.append(request.url.path)
                return JSONResponse({"message": "secondary rate limit"}, 403, headers=headers)
            return await forward()

        env.playground.hub.interceptors.append(refuse_first_comment)
        await run_task_to_merge(env)
        assert refused_paths


@pytest.mark.long
async def test_comments_that_came_twice_are_one_again_after_the_next_report(start: Start):
    """A worker that was suspended while it sent a request may complete that request after another
    worker has sent the same."""
    async with start() as env:
        duplicated_paths: list[str] = []

        async def duplicate_comment(request: Request, forward) -> Response:
            is_new_comment = (
                request.method == "POST"
                and from_osiris(request)
                and request.url.path.endswith("/comments")
            )
            if is_new_comment and request.url.path not in duplicated_paths:
                duplicated_paths.append(request.url.path)
                await forward()
            return await forward()

        env.playground.hub.interceptors.append(duplicate_comment)
        await run_task_to_merge(env)
        assert len(duplicated_paths) == 2


async def test_a_read_token_that_was_revoked_is_replaced(start: Start):
    async with start() as env:
        refused_paths: list[str] = []

        async def refuse_first_token(request: Request, forward) -> Response:
            if (
                request.method == "GET"
                and "/collaborators/" in request.url.path
                and len(refused_paths) < 1
            ):
                refused_paths.append(request.url.path)
                return JSONResponse({"message": "Bad credentials"}, 401)
            return await forward()

        env.playground.hub.interceptors.append(refuse_first_token)
        await env.bring_to_review()
        assert refused_paths
