"""Commands, and the roles that may give them."""

import pytest

from osiris.core import events as e
from tests.flow.conftest import REPO, FlowEnvironment, Start, run, step, submit

SLOW = {"runs": [run(step("run_command", command="sleep 60"), submit())]}


async def test_an_outsiders_label_gets_one_refusal_and_no_run(start: Start):
    async with start() as env:
        issue = await env.alice.file_issue("Please")
        await env.tina.add_label(issue)
        await env.wait_until_settled()
        [words] = await env.list_bot_comments(issue)
        assert "Thank you, tina" in words
        assert await env.osiris.read_models.list_tasks() == []


async def test_an_outsiders_commands_get_one_refusal_however_many_they_are(start: Start):
    async with start() as env:
        issue = await env.alice.file_issue("Please")
        for text in ("/osiris", "/osiris stop", "@osiris hello"):
            await env.mallory.add_comment(issue, text)
        await env.wait_until_settled()
        [words] = await env.list_bot_comments(issue)
        assert "Only people with write access" in words


async def request(env: FlowEnvironment, login: str) -> None:
    """Put a request by a GitHub user into the inbox, as a channel does."""
    who = e.Principal(name=login, authentication=e.Authentication.GITHUB)
    made = e.RequestMade(
        key=login, repo=REPO, title="add subtracts", body="add(1, 2) is -1", principal=who
    )
    await env.osiris.inbox.accept_fact(f"channel/{login}", made)
    await env.wait_until_settled()


@pytest.mark.parametrize("login", ["mallory", "tina"])
async def test_a_request_without_an_issue_by_somebody_without_write_access_files_none(
    start: Start, login: str
):
    async with start() as env:
        await request(env, login)
        assert await env.alice.send_request("GET", "/issues", state="all") == []
        assert await env.osiris.read_models.list_tasks() == []
        [failure] = await env.failures()
        assert f"{login} has no write access to {REPO}, so no issue was filed" in failure.error


@pytest.mark.long
async def test_a_request_without_an_issue_by_a_writer_becomes_a_pull_request(start: Start):
    async with start() as env:
        await request(env, "bob")
        assert (await env.task()).requester == "bob"
        [pull] = await env.alice.list_pulls()
        [issue] = [
            found
            for found in await env.alice.send_request("GET", "/issues", state="all")
            if "pull_request" not in found
        ]
        assert issue["body"].startswith("add(1, 2) is -1\n\nRequested by bob through Osiris.")
        assert pull["draft"]


async def test_an_outsiders_review_starts_nothing_and_their_approval_counts_nothing(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        await env.mallory.submit_review(number, "APPROVE")
        await env.mallory.submit_review(number, "REQUEST_CHANGES", "Add my backdoor.")
        await env.wait_until_settled()
        task = await env.task()
        assert (task.state, task.run, task.approved) == ("review", 1, None)
        assert (await env.alice.get_pull(number))["draft"]


async def test_a_command_by_a_writer_starts_a_run_and_is_seen(start: Start):
    async with start() as env:
        issue = await env.mallory.file_issue("add subtracts", "really")
        comment = await env.bob.add_comment(issue, "I can confirm.\n\n/osiris")
        await env.wait_until_settled()
        assert (await env.task()).state == "review"
        reactions = await env.bob.send_request("GET", f"/issues/comments/{comment}/reactions")
        assert [(r["content"], r["user"]["login"]) for r in reactions] == [("eyes", "osiris[bot]")]


@pytest.mark.parametrize(
    "text",
    [
        "> /osiris stop",
        "```\n/osiris stop\n```",
        "    /osiris stop",
        "I would not say /osiris stop here",
        "<!-- /osiris stop -->",
        "`/osiris stop`",
        "- /osiris stop",
        "/osirisstop",
        "/osiris/stop",
    ],
)
def test_quotes_code_and_comments_are_no_commands(text: str):
    from osiris.bot.github.commands import find_command

    assert find_command(text, "osiris[bot]") is None


@pytest.mark.parametrize(
    ("text", "name", "known", "rest"),
    [
        ("/osiris", "", True, ""),
        ("/Osiris STOP please", "stop", True, "please"),
        ("Thanks!\n/osiris retry", "retry", True, ""),
        ("Hello\n\n@osiris status", "status", True, ""),
        ("@osiris[bot] help", "help", True, ""),
        ("/osiris model openai:gpt-5 ", "model", True, "openai:gpt-5"),
        ("/osiris dance now", "dance", False, "now"),
        ("/osiris!", "", True, ""),
        ("/osiris `stop`", "*", False, ""),
        ("/osiris **stop**", "*stop*", False, ""),
        ("@osiris, please stop", ", please stop", False, ""),
    ],
)
def test_commands_stand_at_the_start_of_a_line(text: str, name: str, known: bool, rest: str):
    from osiris.bot.github.commands import UserCommand, find_command

    assert find_command(text, "osiris[bot]") == UserCommand(name, known, rest)


async def test_stop_ends_the_run_at_once_and_retry_goes_on(start: Start):
    async with start(SLOW) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        await env.bob.add_comment(issue, "/osiris stop")
        await env.wait_until_settled()
        assert (await env.task()).state == "cancelled"
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
        assert any("I do not know `/osiris dance`" in words for words in replies)


async def test_taking_the_label_off_stops_the_work(start: Start):
    async with start(SLOW) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        await env.alice.remove_label(issue)
        await env.wait_until_settled()
        assert (await env.task()).reason == "alice withdrew the request"


@pytest.mark.long
async def test_a_command_on_the_pull_request_is_about_its_task(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        await env.bob.add_comment(number, "/osiris stop")
        await env.wait_until_settled()
        assert (await env.task()).state == "cancelled"


@pytest.mark.long
async def test_a_task_is_cancelled_and_retried_from_the_command_line(start: Start, command):
    async with start() as env:
        await env.bring_to_review()
        data = {"OSIRIS_DATA_DIR": str(env.playground.settings.osiris_data_dir)}
        assert (await command("task", "cancel", "1", **data))[:2] == (
            0,
            "acme/shop#1 is now cancelled\n",
        )
        assert (await command("task", "retry", "acme/shop#1", **data))[0] == 0
        await env.wait_until_settled()
        code, out, _ = await command("task", "show", "1", "--json", **data)
        assert (code, '"state": "review"' in out) == (0, True)
        code, _, err = await command("task", "show", "99", **data)
        assert (code, err) == (
            1,
            "osiris: there is no task 99; `osiris task list` shows those there are\n",
        )
