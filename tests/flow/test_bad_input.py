"""Bad input: the task always ends in a defined state, with a message for the person concerned."""

import asyncio
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.flow.conftest import (
    BLOCKING_STEP,
    FILES,
    FIX_STEPS,
    FlowEnvironment,
    Start,
    build_run,
    build_step,
    build_submit_step,
)


def build_script(*steps: dict) -> dict:
    """Return a script with one run."""
    return {"runs": [build_run(*steps)]}


async def run_task_to_end(env: FlowEnvironment) -> str:
    """File a labelled issue and wait until its task has ended. Return the status comment."""
    issue = await env.file_labelled_issue()
    await env.wait_until_settled()
    [status] = await env.list_bot_comments(issue)
    return status


async def test_an_empty_change_is_said_and_opens_nothing(start: Start):
    async with start(build_script(build_submit_step("There is nothing to do."))) as env:
        status = await run_task_to_end(env)
        assert "could not finish" in status
        assert "The agent changed no file; it said: There is nothing to do" in status
        assert await env.alice.list_pulls() == []


@pytest.mark.long
async def test_a_review_answered_without_a_change_is_answered_in_words(start: Start):
    answer_run = build_run(build_submit_step("It is right as it is: see line 2."), when="<review")
    async with start({"runs": [answer_run, build_run(*FIX_STEPS)]}) as env:
        _, number = await env.bring_to_review()
        await env.bob.submit_review(number, "REQUEST_CHANGES", "Is this right?")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"
        assert any("> It is right as it is" in text for text in await env.list_bot_comments(number))


async def test_a_repository_without_tests_gets_a_pull_request_that_says_so(start: Start):
    steps = (
        build_step("write_file", path="a.txt", content="a"),
        build_submit_step("Added a file."),
    )
    async with start(build_script(*steps), files={"README.md": "x"}) as env:
        _, number = await env.bring_to_review()
        body = (await env.alice.get_pull(number))["body"]
        assert "Nothing was run, so nothing shows that it works." in body
        assert "No test was changed or added." in body


@pytest.mark.long
async def test_binary_files_and_odd_names_are_carried_whole(start: Start):
    command = (
        "touch \"$(printf 'caf\\351.txt')\" 'with space.txt' && head -c 3000 /dev/urandom >"
        " blob.bin && rm README.md"
    )
    async with start(
        build_script(
            build_step("run_command", {"exit_code": 0}, command=command), build_submit_step("Odd.")
        )
    ) as env:
        _, number = await env.bring_to_review()
        body = (await env.alice.get_pull(number))["body"]
        assert "| `blob.bin` | added | binary |" in body
        assert r"caf\xe9.txt" in body
        names = env.run_git("ls-tree", "-z", "--name-only", (await env.get_task()).branch)
        assert {r"caf\xe9.txt", "with space.txt", "blob.bin"} <= set(names.split("\0"))
        assert "README.md" not in names


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("touch \"$(printf 'a\\nb')\"", "contains a control character"),
        (
            "mkdir -p .github/workflows && echo 'on: push' > .github/workflows/x.yml",
            "is protected in this repository",
        ),
        ("ln -s /etc/passwd link", "The link `link` leaves the repository"),
        (
            "git init -q inner && git -C inner commit -q --allow-empty -m x",
            "is a submodule or a repository in the",
        ),
        ("head -c 30000000 /dev/zero > big", "is larger than 20 MiB"),
    ],
)
async def test_work_that_needs_a_person_is_not_pushed(start: Start, command: str, sentence: str):
    """The agent may mend it; one that submits the same five times has failed."""
    making = build_step("run_command", {"exit_code": 0}, command=command)
    async with start(build_script(making, *[build_submit_step("Done.")] * 5)) as env:
        assert sentence in await run_task_to_end(env)
        assert "osiris/" not in env.run_git("branch", "--list")


@pytest.mark.long
async def test_a_script_that_meets_another_world_fails_loudly(start: Start):
    async with start(
        build_script(
            build_step("read_file", {"contains": "unicorn"}, path="shop.py"), build_submit_step()
        )
    ) as env:
        status = await run_task_to_end(env)
        assert (
            "The world differs from the script scripted:script.yml at step 1: 'unicorn' is not in"
            " the answer" in status
        )


async def test_a_spent_budget_pauses_and_retry_goes_on_where_it_stopped(start: Start):
    files = {**FILES, ".github/osiris.yml": "budget: {steps: 2}\n"}
    async with start(files=files) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.reason) == ("paused", "the budget of 2 steps is spent")
        await env.bob.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"
        assert len(await env.osiris.read_models.list_steps(1)) == 2 + 2 * len(FIX_STEPS) - 1


async def test_a_policy_file_with_a_mistake_starts_nothing_and_says_where(start: Start):
    async with start(files={**FILES, ".github/osiris.yml": "budget: {steps: many}\n"}) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        [comment] = await env.list_bot_comments(issue)
        assert "`.github/osiris.yml`: budget.steps: input should be a valid integer" in comment
        assert await env.osiris.read_models.list_tasks() == []


async def test_commits_of_a_person_during_a_run_are_never_overwritten(start: Start):
    blocking_run = build_run(
        BLOCKING_STEP,
        build_step("write_file", path="A", content="a"),
        build_submit_step(),
        when="<review",
    )
    async with start({"runs": [blocking_run, build_run(*FIX_STEPS)]}) as env:
        _, number = await env.bring_to_review()
        branch = (await env.alice.get_pull(number))["head"]["ref"]
        await env.bob.submit_review(number, "REQUEST_CHANGES", "More.")
        await env.wait_until_running()
        await asyncio.to_thread(env.push_files, "bob", branch, {"by-hand.txt": "mine"})
        await env.wait_until_answered()
        env.release_step()
        await env.wait_until_settled()
        task = await env.get_task()
        assert (
            task.reason
            == "somebody else pushed to the branch while I worked, and I never force a push"
        )
        assert "by-hand.txt" in env.run_git("ls-tree", "--name-only", branch)
        await env.bob.add_comment(number, "/osiris retry")
        await env.wait_until_running()
        env.release_step()
        await env.wait_until_settled()
        assert {"A", "by-hand.txt"} <= set(env.run_git("ls-tree", "--name-only", branch).split())


async def test_a_push_that_github_refuses_is_said(start: Start):
    async with start() as env:

        async def refuse_push(request: Request, forward) -> Response:
            if request.url.path.endswith("git-receive-pack"):
                return Response("no", 403)
            return await forward()

        env.playground.hub.interceptors.append(refuse_push)
        assert (
            "does not let Osiris push here; the App needs Contents: write"
            in await run_task_to_end(env)
        )


async def test_a_token_that_is_refused_is_said_to_the_operator(start: Start):
    async with start() as env:

        async def refuse_token(request: Request, forward) -> Response:
            if request.url.path.endswith("access_tokens"):
                return JSONResponse({"message": "This installation has been suspended"}, 403)
            return await forward()

        env.playground.hub.interceptors.append(refuse_token)
        await env.file_labelled_issue()
        await env.wait_until_settled()
        [failure] = await env.list_failures()
        assert "This installation has been suspended" in failure.error


@pytest.mark.long
async def test_a_repository_that_is_gone_ends_the_work_and_nothing_waits_for_ever(start: Start):
    async with start(build_script(BLOCKING_STEP, *FIX_STEPS)) as env:

        async def return_not_found(request: Request, forward) -> Response:
            if "/acme/shop" in request.url.path:
                return JSONResponse({"message": "Not Found"}, 404)
            return await forward()

        await env.file_labelled_issue()
        await env.wait_until_running()
        env.playground.hub.interceptors.append(return_not_found)
        env.release_step()
        await env.wait_until_settled()
        env.playground.hub.interceptors.clear()
        assert (await env.get_task()).state in ("paused", "failed")
        has_push_failed = "Push" in {failure.what for failure in await env.list_failures()}
        # the push or the reconciler, whichever is first, finds it
        assert has_push_failed or (await env.get_task()).read_only


async def test_without_a_sandbox_no_run_starts_and_everybody_is_told(start: Start, folder):
    from osiris.tools.sandbox.backend import BubblewrapSandbox

    sandbox = BubblewrapSandbox(folder / "sessions", Path)
    [passwd] = (folder / "sessions").rglob("passwd")
    passwd.chmod(0)  # the jail's user cannot read what it needs
    async with start(sandbox=sandbox) as env:
        status = await run_task_to_end(env)
        assert "could not finish" in status
        assert "sandbox" in status
        import httpx

        async with httpx.AsyncClient() as http:
            response = await http.get(
                f"http://127.0.0.1:{env.playground.settings.osiris_port}/readyz"
            )
        assert (response.status_code, response.json()["ready"]) == (503, False)


@pytest.mark.long
async def test_no_model_is_a_sentence(start: Start):
    from osiris.agents.models.registry import ModelRegistry

    async with start(select_model=ModelRegistry("", {}).select) as env:
        assert "No model is configured; the operator sets OSIRIS_MODEL" in await run_task_to_end(
            env
        )
