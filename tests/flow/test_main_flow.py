"""The workflow from label to merge, as people on GitHub see it."""

import asyncio

import pytest

from osiris.core.ports.live import AuditEntryAdded, ReplyDelta
from tests.flow.conftest import (
    BLOCKING_STEP,
    FILES,
    FIX_STEPS,
    SCRIPT,
    Start,
    build_run,
    build_step,
    build_submit_step,
)


@pytest.mark.both_pairs
async def test_a_labelled_issue_becomes_a_draft_pull_request_with_evidence(start: Start):
    unittest_step = build_step("run_command", {"exit_code": 0}, command="python3 -m unittest")
    async with start({"runs": [build_run(FIX_STEPS[0], unittest_step, FIX_STEPS[-1])]}) as env:
        issue, number = await env.bring_to_review()
        pull = await env.alice.get_pull(number)
        assert (pull["draft"], pull["title"]) == (True, "add subtracts")
        assert pull["head"]["ref"] == f"osiris/{issue}-add-subtracts"
        assert f"Closes #{issue}" in pull["body"]
        assert "| `shop.py` | modified | +1 −1 |" in pull["body"]
        assert "| `python3 -m unittest` | 0 |" in pull["body"]
        assert "Instructions read from the base branch: `AGENTS.md`" in pull["body"]
        assert "> `add` subtracted. Now it adds." in pull["body"]
        assert (await env.get_task()).state == "review"


@pytest.mark.long
async def test_a_commit_names_the_task_the_model_and_the_requester(start: Start):
    async with start() as env:
        issue, number = await env.bring_to_review()
        [commit] = await env.alice.send_request("GET", f"/pulls/{number}/commits")
        message = commit["commit"]["message"]
        assert message.startswith("add subtracts\n\n")
        assert f"Osiris-Task: acme/shop#{issue}" in message
        assert "Osiris-Model: scripted:script.yml" in message
        assert "Co-authored-by: alice <" in message
        assert commit["commit"]["author"]["name"] == "osiris[bot]"


async def test_there_is_one_status_comment_and_it_is_edited_in_place(start: Start):
    async with start() as env:
        issue, number = await env.bring_to_review()
        for conversation in (issue, number):
            [status] = await env.list_bot_comments(conversation)
            assert "ready for review" in status
        await env.bob.submit_review(number, "APPROVE")
        await env.wait_until_settled()
        await env.bob.merge_pull(number)
        await env.wait_until_settled()
        for conversation in (issue, number):
            [status] = await env.list_bot_comments(conversation)
            assert "merged" in status


async def test_a_review_is_answered_with_a_commit_on_the_same_pull_request(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        await env.bob.submit_review(
            number,
            "REQUEST_CHANGES",
            "Nearly.",
            [{"path": "shop.py", "line": 2, "body": "Say why, in a note."}],
        )
        await env.wait_until_settled()
        assert len(await env.alice.list_pulls()) == 1
        commits = await env.alice.send_request("GET", f"/pulls/{number}/commits")
        assert [c["commit"]["message"].partition("\n")[0] for c in commits] == [
            "add subtracts",
            "Answer the review of bob",
        ]
        [line] = await env.osiris.read_models.list_tasks()
        briefs = [
            s.message.text
            for s in await env.osiris.read_models.list_steps(line.id)
            if s.message.role == "user"
        ]
        for expected in (
            "Nearly.",
            'file="shop.py" line="2"',
            "+    return a + b",
            "Say why, in a note.",
        ):
            assert expected in briefs[-1]


@pytest.mark.long
async def test_line_comments_alone_start_a_run_and_a_mere_remark_does_not(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        await env.bob.submit_review(number, "COMMENT", "Looks interesting.")
        await env.wait_until_settled()
        assert (await env.get_task()).run == 1
        await env.bob.submit_review(
            number, "COMMENT", "", [{"path": "shop.py", "line": 2, "body": "A note, please."}]
        )
        await env.wait_until_settled()
        assert (await env.get_task()).run == 2
        assert (await env.alice.get_pull(number))["commits"] == 2


async def test_an_approval_takes_the_draft_mark_off_and_a_merge_ends_it(start: Start):
    async with start() as env:
        issue, number = await env.bring_to_review()
        await env.bob.submit_review(number, "APPROVE", "Good.")
        await env.wait_until_settled()
        pull = await env.alice.get_pull(number)
        task = await env.get_task()
        assert (pull["draft"], task.state, task.approved) == (
            False,
            "approved",
            pull["head"]["sha"],
        )
        await env.bob.merge_pull(number)
        await env.wait_until_settled()
        assert (await env.get_task()).state == "done"
        assert (await env.alice.send_request("GET", f"/issues/{issue}"))["state"] == "closed"


async def test_new_commits_by_a_person_void_an_approval(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        await env.bob.submit_review(number, "APPROVE")
        await env.wait_until_settled()
        branch = (await env.alice.get_pull(number))["head"]["ref"]
        await asyncio.to_thread(env.push_files, "bob", branch, {"extra.txt": "more"})
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.approved) == ("review", None)


async def test_one_check_run_stands_on_each_head(start: Start):
    async with start() as env:
        _, number = await env.bring_to_review()
        head = (await env.alice.get_pull(number))["head"]["sha"]
        runs = (await env.alice.send_request("GET", f"/commits/{head}/check-runs"))["check_runs"]
        assert [(r["name"], r["status"], r["conclusion"]) for r in runs] == [
            ("Osiris", "completed", "neutral")
        ]


@pytest.mark.long
async def test_a_closed_pull_request_is_a_no_until_somebody_asks_again(start: Start):
    async with start() as env:
        issue, number = await env.bring_to_review()
        await env.bob.close_pull(number)
        await env.wait_until_settled()
        assert (await env.get_task()).state == "rejected"
        await env.alice.add_comment(issue, "/osiris retry")
        await env.wait_until_settled()
        task = await env.get_task()
        pulls = await env.alice.list_pulls()
        assert (task.state, task.branch) == ("review", f"osiris/{issue}-add-subtracts-2")
        assert [(p["number"], p["state"]) for p in sorted(pulls, key=lambda p: p["number"])] == [
            (number, "closed"),
            (task.pull, "open"),
        ]


@pytest.mark.long
async def test_a_merged_issue_that_is_opened_and_labelled_again_gets_a_new_branch(start: Start):
    more = [
        build_step("write_file", path="MORE.md", content="More.\n"),
        build_submit_step("There is more now."),
    ]
    script = {"runs": [build_run(*more, when="and more"), build_run(*FIX_STEPS)]}
    async with start(script) as env:
        issue, number = await env.bring_to_review()
        await env.bob.submit_review(number, "APPROVE")
        await env.wait_until_settled()
        await env.bob.merge_pull(number)
        await env.alice.add_comment(issue, "/osiris")
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.run) == ("done", 1)
        assert (await env.list_bot_comments(issue))[-1].startswith("**Osiris: merged**")
        await env.alice.send_request(
            "PATCH", f"/issues/{issue}", state="open", title="add subtracts and more"
        )
        await env.alice.remove_label(issue)
        await env.alice.add_label(issue)
        await env.wait_until_settled()
        task = await env.get_task()
        assert (task.state, task.branch) == ("review", f"osiris/{issue}-add-subtracts-and-more-2")
        assert task.pull not in (None, number)
        assert await env.list_failures() == []


async def test_an_issue_closed_as_not_planned_stops_the_work(start: Start):
    async with start(
        {"runs": [build_run(build_step("run_command", command="sleep 60"), build_submit_step())]}
    ) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        await env.alice.close_issue(issue, "not_planned")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "rejected"
        assert await env.alice.list_pulls() == []


@pytest.mark.long
async def test_a_review_that_comes_during_a_run_becomes_the_next_run(start: Start):
    blocking_run = build_run(
        BLOCKING_STEP,
        build_step("write_file", path="A", content="a"),
        build_submit_step(),
        when="FIRST",
    )
    second_run = build_run(
        build_step("write_file", path="B", content="b"), build_submit_step(), when="SECOND"
    )
    async with start({"runs": [second_run, blocking_run, *SCRIPT["runs"]]}) as env:
        _, number = await env.bring_to_review()
        await env.bob.submit_review(number, "REQUEST_CHANGES", "FIRST")
        await env.wait_until_running()
        await env.bob.submit_review(number, "REQUEST_CHANGES", "SECOND")
        await env.wait_until_answered()
        env.release_step()
        await env.wait_until_settled()
        files = await env.alice.send_request("GET", f"/pulls/{number}/files")
        assert {f["filename"] for f in files} == {"A", "B", "shop.py"}
        assert (await env.alice.get_pull(number))["commits"] == 3


@pytest.mark.long
async def test_a_request_from_the_command_line_becomes_an_issue_and_a_pull_request(
    start: Start, run_cli
):
    async with start() as env:
        data_folder = str(env.playground.settings.osiris_data_dir)
        code, out, err = await run_cli(
            "request", "Fix add\nIt subtracts.", "--repo", "acme/shop", OSIRIS_DATA_DIR=data_folder
        )
        assert (code, err) == (0, ""), out
        await env.wait_until_settled()
        issue = await env.alice.send_request("GET", "/issues/1")
        assert (issue["title"], issue["user"]["login"]) == ("Fix add", "osiris[bot]")
        assert ", the operator of this Osiris, on its command line." in issue["body"]
        assert (await env.get_task()).state == "review"


async def test_a_request_for_a_repository_without_the_app_is_given_up_and_says_why(
    start: Start, run_cli
):
    async with start() as env:
        env.playground.hub.remove_installation(
            env.playground.hub.get_installation(env.playground.app, "acme/shop")
        )
        data_folder = str(env.playground.settings.osiris_data_dir)
        assert (
            await run_cli("request", "Fix add", "--repo", "acme/shop", OSIRIS_DATA_DIR=data_folder)
        )[0] == 0
        await env.wait_until_settled()
        [failure] = await env.list_failures()
        assert (failure.what, failure.error) == (
            "OpenIssue",
            "the App is not installed on acme/shop",
        )
        assert failure.at > 0


@pytest.mark.long
async def test_instructions_are_those_of_the_base_branch_nearest_named_first(start: Start):
    files = {
        **FILES,
        "sub/AGENTS.md": "Deeper.\n",
        ".github/copilot-instructions.md": "C\n",
        "CLAUDE.md": "D\n",
    }
    async with start(files=files) as env:
        _, number = await env.bring_to_review()
        body = (await env.alice.get_pull(number))["body"]
        for path in ("AGENTS.md", "CLAUDE.md", ".github/copilot-instructions.md", "sub/AGENTS.md"):
            assert f"`{path}`" in body


@pytest.mark.long
async def test_every_line_of_a_journal_is_news(start: Start):
    async with start() as env, asyncio.timeout(30):
        with env.osiris.live_events.subscribe() as events:
            await asyncio.sleep(0.2)  # a subscriber through Redis only receives later events
            await env.bring_to_review()
            last_seq = (await env.osiris.read_models.read_audit_log(1))[-1].seq
            while (event := await events.get()) != AuditEntryAdded(task=1, seq=last_seq):
                assert isinstance(event, AuditEntryAdded | ReplyDelta)
