"""Commands, and the roles that people need for them."""

import pytest

from osiris.core import events as e
from tests.flow.conftest import (
    REPO,
    FlowEnvironment,
    Start,
    build_run,
    build_step,
    build_submit_step,
)

SLOW_SCRIPT = {
    "runs": [build_run(build_step("run_command", command="sleep 60"), build_submit_step())]
}


async def test_an_outsiders_label_gets_one_refusal_and_no_run(start: Start):
    async with start() as env:
        issue = await env.alice.file_issue("Please")
        await env.tina.add_label(issue)
        await env.wait_until_settled()
        [comment] = await env.list_bot_comments(issue)
        assert "Thank you, tina" in comment
        assert await env.osiris.read_models.list_tasks() == []


async def test_an_outsiders_commands_get_one_refusal_however_many_they_are(start: Start):
    async with start() as env:
        issue = await env.alice.file_issue("Please")
        for text in ("/osiris", "/osiris stop", "@osiris hello"):
            await env.mallory.add_comment(issue, text)
        await env.wait_until_settled()
        [comment] = await env.list_bot_comments(issue)
        assert "Only people with write access" in comment


async def submit_request(env: FlowEnvironment, login: str) -> None:
    """Add a request of a GitHub user to the inbox, as a channel does."""
    principal = e.Principal(name=login, authentication=e.Authentication.GITHUB)
    event = e.RequestMade(
        key=login, repo=REPO, title="add subtracts", body="add(1, 2) is -1", principal=principal
    )
    await env.osiris.inbox.accept_fact(f"channel/{login}", event)
    await env.wait_until_settled()


@pytest.mark.parametrize("login", ["mallory", "tina"])
async def test_a_request_without_an_issue_by_somebody_without_write_access_files_none(
    start: Start, login: str
):
    async with start() as env:
        await submit_request(env, login)
        assert await env.alice.send_request("GET", "/issues", state="all") == []
        assert await env.osiris.read_models.list_tasks() == []
        [failure] = await env.list_failures()
        assert f"{login} has no write access to {REPO}, so no issue was filed" in failure.error


@pytest.mark.long
async def test_a_request_without_an_issue_by_a_writer_becomes_a_pull_request(start: Start):
    async with start() as env:
        await submit_request(env, "bob")
        assert (await env.get_task()).requester == "bob"
        [pull] = await env.alice.list_pulls()
        [issue] = [
            row
            for row in await env.alice.send_request("GET", "/issues", state="all")
            if "pull_request" not in row
        ]
        assert issue["body"].startswith("add(1, 2) is -1\n\nRequested by bob through Osiris.")
        assert pull["draft"]


async def test_an_outsiders_review_starts_nothing_and_their_approval_counts_nothing(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        await env.mallory.submit_review(number, "APPROVE")
        await env.mallory.submit_review(number, "REQUEST_CHANGES", "Add my backdoor.")
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run, task.approved) == ("review", 1, None)
        assert (await env.alice.get_pull(number))["draft"]


async def test_a_command_by_a_writer_starts_a_run_and_is_seen(start: Start):
    async with start() as env:
        issue = await env.mallory.file_issue("add subtracts", "really")
        comment = await env.bob.add_comment(issue, "I can confirm.\n\n/osiris")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"
        reactions = await env.bob.send_request("GET", f"/issues/comments/{comment}/reactions")
        assert [(r["content"], r["user"]["login"]) for r in reactions] == [("eyes", "osiris[bot]")]


async def test_stop_ends_the_run_at_once_and_retry_goes_on(start: Start):
    async with start(SLOW_SCRIPT) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        await env.bob.add_comment(issue, "/osiris stop")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "cancelled"
        [status] = await env.list_bot_comments(issue)
        assert "Bob stopped it" in status
        assert env.osiris.sandbox.list_sessions() == []


@pytest.mark.long
async def test_status_and_help_and_an_unknown_command_get_one_answer_each(start: Start):
    async with start() as env:
        issue, _ = await env.bring_to_review()
        for text in ("/osiris status", "/osiris help", "/osiris dance"):
            await env.bob.add_comment(issue, text)
        await env.wait_until_settled()
        status, *replies = await env.list_bot_comments(issue)
        assert "ready for review" in status
        assert len(replies) == 3
        assert any("I do not know `/osiris dance`" in reply for reply in replies)


async def test_taking_the_label_off_stops_the_work(start: Start):
    async with start(SLOW_SCRIPT) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        await env.alice.remove_label(issue)
        await env.wait_until_settled()
        assert (await env.get_task()).reason == "alice withdrew the request"


@pytest.mark.long
async def test_a_command_on_the_pull_request_is_about_its_task(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        await env.bob.add_comment(number, "/osiris stop")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "cancelled"


@pytest.mark.long
async def test_a_task_is_cancelled_and_retried_from_the_command_line(start: Start, run_cli):
    async with start() as env:
        await env.bring_to_review()
        environ = {"OSIRIS_DATA_DIR": str(env.playground.settings.osiris_data_dir)}
        assert (await run_cli("task", "cancel", "1", **environ))[:2] == (
            0,
            "acme/shop#1 is now cancelled\n",
        )
        assert (await run_cli("task", "retry", "acme/shop#1", **environ))[0] == 0
        await env.wait_until_settled()
        code, out, _ = await run_cli("task", "show", "1", "--brief", **environ)
        assert code == 0
        assert (await env.read_transcript())[1].text in out
        assert "You are Osiris" not in out
        code, out, _ = await run_cli("task", "show", "1", "--json", **environ)
        assert (code, '"state": "review"' in out) == (0, True)
        code, _, err = await run_cli("task", "show", "99", **environ)
        assert (code, err) == (
            1,
            "osiris: there is no task 99; `osiris task list` shows those there are\n",
        )
