"""What our comments tell people to do works when they do it."""

import asyncio

import pytest

from osiris.bot.github import client
from tests.flow.conftest import SCRIPT, FlowEnvironment, Start, build_run, build_submit_step

POLICY = ".github/osiris.yml"
FAILING = {"runs": [*SCRIPT["runs"][:1], build_run(build_submit_step("No idea."))]}


@pytest.fixture(autouse=True)
def policies_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_POLICY_LIFE", 0.0)


async def push_policy(env: FlowEnvironment, text: str) -> None:
    await asyncio.to_thread(env.push_files, "alice", "main", {POLICY: text})
    await env.wait_until_settled()


async def read_last_comment(env: FlowEnvironment, number: int) -> str:
    return (await env.list_bot_comments(number))[-1]


async def test_a_request_under_a_broken_policy_starts_as_its_answer_says(start: Start):
    async with start() as env:
        await push_policy(env, "labels: osiris\n")
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert (
            (await read_last_comment(env, issue)).partition("\n")[0].endswith("Then say `/osiris`.")
        )
        await env.alice.add_comment(issue, "/osiris")
        await env.wait_until_settled()
        assert len(await env.list_bot_comments(issue)) == 2  # it is still broken, and it says so
        await push_policy(env, "label: osiris\n")
        await env.alice.add_comment(issue, "/osiris")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"


async def test_a_retry_under_a_broken_policy_starts_as_its_answer_says(start: Start):
    async with start(FAILING) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        assert (await env.get_task()).state == "failed"
        await push_policy(env, "labels: osiris\n")
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        assert "Then say `/osiris retry`." in await read_last_comment(env, issue)
        await push_policy(env, "label: osiris\n")
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        assert (await env.get_task()).run == 2


async def test_a_review_under_a_broken_policy_starts_as_its_answer_says(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        await push_policy(env, "labels: osiris\n")
        await env.bob.submit_review(number, "REQUEST_CHANGES", "A note, please.")
        await env.wait_until_settled()
        assert "Then submit the review again." in await read_last_comment(env, number)
        await push_policy(env, "label: osiris\n")
        await env.bob.submit_review(number, "REQUEST_CHANGES", "A note, please.")
        await env.wait_until_settled()
        assert (await env.get_task()).run == 2
