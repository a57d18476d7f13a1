"""Maintenance: it removes finished data, and keeps data that is still needed."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.util import await_only
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris import maintenance
from osiris.bootstrap import Timeouts, run_in_background
from osiris.core.ports.task_reader import AuditEntry
from osiris.playground.users import Person
from osiris.queue import audit_log, tables
from osiris.queue.database import connect
from osiris.queue.retention import Retention
from tests.flow.conftest import (
    BLOCKING_STEP,
    FILES,
    FIX_STEPS,
    REPO,
    FlowEnvironment,
    Start,
    build_run,
    build_submit_step,
    run_plain_git,
)
from tests.flow.test_races import wait_until, wait_until_state
from tests.flow.test_waiting import refuse_writes

DAY = 86400
OTHER_REPO = "acme/other"


def create_retention(env: FlowEnvironment) -> Retention:
    return Retention(
        env.osiris.engine, env.playground.settings.osiris_data_dir / "exports", days=30
    )


@pytest.fixture
def advance_one_month(monkeypatch: pytest.MonkeyPatch) -> Callable[[FlowEnvironment], None]:
    """Provide a function that advances the clock of Osiris by a month, and deletes the deliveries
    that GitHub has on record."""

    def advance_clock(env: FlowEnvironment) -> None:
        monkeypatch.setattr(tables, "clock", lambda: time.time() + 31 * DAY)
        env.playground.app.deliveries.clear()

    return advance_clock


async def run_task_to_end(env: FlowEnvironment) -> int:
    issue, number = await env.bring_to_review()
    await env.bob.submit_review(number, "APPROVE")
    await env.wait_until_settled()
    await env.bob.merge_pull(number)
    await env.wait_until_settled()
    assert (await env.get_task()).state == "done"
    return issue


def assert_export_contains(path: Path, entries: Sequence[AuditEntry]) -> None:
    """Assert that an export contains exactly these entries in order, and that its hash chain is
    intact."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    link = ""
    assert [line["seq"] for line in lines] == [line.seq for line in entries]
    for line in lines:
        link = audit_log.hash_entry(
            link, line["seq"], line["at"], line["kind"], line["what"], line["detail"]
        )
        assert link == line["hash"]


async def test_a_finished_task_is_pruned_and_its_journal_is_in_a_file_whose_chain_holds(
    start: Start, advance_one_month: Callable[[FlowEnvironment], None]
):
    async with start() as env:
        issue = await run_task_to_end(env)
        entries_before = await env.osiris.read_models.read_audit_log(1)
        advance_one_month(env)
        data_folder = env.playground.settings.osiris_data_dir
        pruned = await create_retention(env).prune()
        assert (pruned.tasks, pruned.lines) == (1, len(entries_before) - 1)
        assert pruned.steps > 0
        assert pruned.deliveries > 0
        [remaining_entry] = await env.osiris.read_models.read_audit_log(1)
        assert (remaining_entry.seq, await env.osiris.read_models.list_steps(1)) == (
            entries_before[-1].seq,
            [],
        )
        assert_export_contains(
            data_folder / f"exports/acme.shop-{issue}.jsonl", entries_before[:-1]
        )
        await env.alice.remove_label(issue)
        await env.alice.add_label(issue)
        await env.wait_until_settled()
        assert (await env.get_task()).state == "done"  # the task is known: nothing is done twice
        assert len(await env.alice.list_pulls()) == 1


async def test_what_is_not_over_or_not_old_is_left_alone(
    start: Start, run_cli, advance_one_month: Callable[[FlowEnvironment], None]
):
    async with start() as env:
        await env.bring_to_review()
        settings = env.playground.settings
        environ = {"OSIRIS_DATA_DIR": str(settings.osiris_data_dir)}
        code, output, _ = await run_cli("prune", "--json", **environ)
        assert (code, json.loads(output)) == (
            0,
            {"tasks": 0, "steps": 0, "lines": 0, "deliveries": 0, "conversations": 0},
        )
        advance_one_month(env)
        pruned = await create_retention(env).prune()
        assert (pruned.tasks, pruned.steps) == (0, 0)
        assert await env.osiris.read_models.list_steps(1)


async def list_inbox_ids(env: FlowEnvironment) -> list[int]:
    async with env.osiris.engine.connect() as connection:
        return list(await connection.scalars(text("select id from inbox order by id")))


@pytest.mark.long
async def test_people_are_heard_after_a_quiet_month_in_which_every_delivery_was_pruned(
    start: Start, advance_one_month: Callable[[FlowEnvironment], None]
):
    async with start() as env:
        _, number = await env.bring_to_review()
        advance_one_month(env)
        [*_, newest_id] = await list_inbox_ids(env)
        assert (await create_retention(env).prune()).deliveries > 0
        await env.bob.add_comment(number, "/osiris status")
        await env.bob.submit_review(number, "APPROVE")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "approved"
        # no id is used again: the keys of the task's orders contain earlier ids
        assert min(await list_inbox_ids(env)) >= newest_id
        await env.bob.merge_pull(number)
        await env.wait_until_settled()
        assert ((await env.get_task()).state, await env.list_failures()) == ("done", [])


async def test_a_task_that_is_taken_up_again_while_others_are_pruned_keeps_all_it_has(
    start: Start, advance_one_month: Callable[[FlowEnvironment], None]
):
    async with start({"runs": [build_run(BLOCKING_STEP, *FIX_STEPS)]}) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_running()
        await env.alice.add_comment(issue, "/osiris stop")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "cancelled"
        advance_one_month(env)
        entries_before = await env.osiris.read_models.read_audit_log(1)
        resumed_tasks: list[str] = []

        def request_retry(connection: Connection) -> None:
            """Request a retry after the list of removable tasks was read, and before the first
            transaction that may delete something."""
            options = connection.get_execution_options()
            if (
                not options.get("readonly")
                and options.get("isolation_level") != "AUTOCOMMIT"
                and not resumed_tasks
            ):
                resumed_tasks.append("once")
                await_only(env.alice.add_comment(issue, "/osiris retry"))
                await_only(env.wait_until_running())

        exports = env.playground.settings.osiris_data_dir / "exports"
        engine = connect(env.playground.settings.database)
        event.listen(engine.sync_engine, "engine_connect", request_retry)
        pruned = await Retention(engine, exports, days=30).prune()
        await engine.dispose()
        assert (resumed_tasks, pruned.tasks, pruned.lines) == (["once"], 0, 0)
        assert not exports.exists()
        assert (await env.osiris.read_models.read_audit_log(1))[
            : len(entries_before)
        ] == entries_before
        env.release_step()
        await env.wait_until_settled()
        assert ((await env.get_task()).state, await env.list_failures()) == ("review", [])


@pytest.mark.long
async def test_what_is_still_to_be_said_of_an_ended_task_is_said_before_it_is_pruned(
    start: Start, advance_one_month: Callable[[FlowEnvironment], None]
):
    async with start(timeouts=Timeouts(pauses=(0.05,), tries=10_000)) as env:
        issue, number = await env.bring_to_review()
        await env.bob.submit_review(number, "APPROVE")
        await env.wait_until_settled()
        [status] = await env.alice.list_comments(issue)
        refusal = refuse_writes(
            env, f"/comments/{status['id']}", JSONResponse({"message": "down"}, 502)
        )
        await env.bob.merge_pull(number)
        await wait_until_state("done", env)
        advance_one_month(env)
        assert (await create_retention(env).prune()).tasks == 0
        refusal.clear()
        await env.wait_until_settled()
        assert "merged" in (await env.list_bot_comments(issue))[0].lower()


async def block_run_deletion(env: FlowEnvironment) -> None:
    """Prevent the database from deleting runs."""
    async with env.osiris.engine.begin() as connection:
        await connection.execute(
            text("create table notes (run varchar(255) references runs (name))")
        )
        await connection.execute(text("insert into notes select name from runs"))


async def allow_run_deletion(env: FlowEnvironment) -> None:
    async with env.osiris.engine.begin() as connection:
        await connection.execute(text("delete from notes"))


@pytest.mark.long
async def test_an_export_whose_removal_failed_is_not_written_twice(
    start: Start, advance_one_month: Callable[[FlowEnvironment], None]
):
    async with start() as env:
        issue = await run_task_to_end(env)
        advance_one_month(env)
        entries_before = await env.osiris.read_models.read_audit_log(1)
        exports = env.playground.settings.osiris_data_dir / "exports"
        await block_run_deletion(env)
        with pytest.raises(IntegrityError):
            await create_retention(env).prune()
        assert await env.osiris.read_models.read_audit_log(1) == entries_before
        [export] = exports.iterdir()
        # as if the process died while it was writing
        export.write_bytes(export.read_bytes()[:-20])
        await allow_run_deletion(env)
        assert (await create_retention(env).prune()).lines == len(entries_before) - 1
        assert export.name == f"acme.shop-{issue}.jsonl"
        assert_export_contains(export, entries_before[:-1])


@pytest.mark.long
async def test_a_removal_that_the_database_refuses_keeps_nothing_else_from_being_done(
    start: Start,
    advance_one_month: Callable[[FlowEnvironment], None],
    monkeypatch: pytest.MonkeyPatch,
):
    async with start() as env:
        await run_task_to_end(env)
        advance_one_month(env)
        mirrors = env.playground.settings.osiris_data_dir / "git/mirrors"
        monkeypatch.setattr(maintenance, "_EVERY", 0.01)
        monkeypatch.setattr(maintenance, "_PRUNE", 0.0)
        env.osiris.maintenance._most = 0
        await block_run_deletion(env)

        async def has_freed_space() -> bool:
            return not list(mirrors.glob("*/*.git"))

        async def is_pruned() -> bool:
            return not await env.osiris.read_models.list_steps(1)

        async with run_in_background(env.osiris.maintenance.run()):
            await wait_until(has_freed_space)
            assert not await is_pruned()
            await allow_run_deletion(env)
            await wait_until(is_pruned)


@pytest.mark.long
async def test_repositories_that_were_used_longest_ago_make_room_but_none_that_is_needed(
    start: Start,
):
    async with start() as env:
        _, number = await env.bring_to_review()
        maintenance_job = env.osiris.maintenance
        git_folder = env.playground.settings.osiris_data_dir / "git"
        maintenance_job._most = 0
        # in review, no local data is needed
        assert await maintenance_job.trim_cache() == ["acme/shop"]
        assert not list(git_folder.glob("mirrors/*/*.git"))
        await env.bob.submit_review(number, "REQUEST_CHANGES", "More.")
        await env.wait_until_settled()
        assert len(await env.alice.send_request("GET", f"/pulls/{number}/commits")) == 2


@pytest.mark.long
async def test_a_repository_with_a_run_under_way_stays(start: Start):
    async with start({"runs": [build_run(BLOCKING_STEP, build_submit_step())]}) as env:
        await env.file_labelled_issue()
        await env.wait_until_running()
        env.osiris.maintenance._most = 0
        assert await env.osiris.maintenance.trim_cache() == []
        env.release_step()
        await env.wait_until_settled()


@pytest.mark.long
async def test_what_was_put_away_is_removed_once_nobody_needs_it(start: Start):
    async with start() as env:
        await env.bring_to_review()
        checkpoint_refs = env.run_git("for-each-ref", "refs/osiris").splitlines()
        assert len(checkpoint_refs) == (0 if env.playground.settings.is_embedded else 1)
        await env.osiris.maintenance.delete_obsolete()
        assert env.run_git("for-each-ref", "refs/osiris") == ""


@pytest.mark.parametrize("pair", ["servers"], indirect=True)  # on SQLite, no checkpoints are pushed
async def test_a_repository_that_the_app_was_taken_off_keeps_no_other_from_being_tidied_up(
    start: Start,
):
    async with start() as env:
        hub, app = env.playground.hub, env.playground.app
        hub.add_repo(OTHER_REPO, files=FILES, collaborators={"alice": "maintain"})
        hub.install_app(app, OTHER_REPO)
        await env.bring_to_review()
        async with Person(
            hub.api_url, "alice", hub.world.get_user("alice").token, OTHER_REPO
        ) as alice:
            await alice.add_label(await alice.file_issue("add subtracts"))
            await env.wait_until_settled()
        hub.remove_repos(app, REPO)
        await wait_until(lambda: is_in_state(env, REPO, "paused"))
        requests = record_requests(env, REPO)
        env.osiris.maintenance._postponed.clear()  # the worker may just have deferred it
        await env.osiris.maintenance.delete_obsolete()
        assert requests
        assert list_checkpoint_refs(env, REPO) != ""
        assert list_checkpoint_refs(env, OTHER_REPO) == ""
        requests.clear()
        await env.osiris.maintenance.delete_obsolete()
        assert requests == []
        hub.install_app(app, REPO)
        await wait_until(lambda: is_in_state(env, REPO, "review"))
        env.osiris.maintenance._postponed.clear()  # as an hour later
        await env.osiris.maintenance.delete_obsolete()
        assert list_checkpoint_refs(env, REPO) == ""


async def is_in_state(env: FlowEnvironment, repo: str, state: str) -> bool:
    """Return whether the tasks of `repo` are in `state` and no row is waiting."""
    states = {
        line.task.state.value
        for line in await env.osiris.read_models.list_tasks()
        if line.task.issue.repo == repo
    }
    return states == {state} and await env.osiris.store.next_due() is None


def list_checkpoint_refs(env: FlowEnvironment, repo: str) -> str:
    path = env.playground.settings.osiris_data_dir.parent / f"hub/repos/{repo}.git"
    return run_plain_git("--git-dir", str(path), "for-each-ref", "refs/osiris")


def record_requests(env: FlowEnvironment, repo: str) -> list[str]:
    """Record all requests about a repository from now on, through git and through the API."""
    requests: list[str] = []

    async def record_request(request: Request, forward) -> Response:
        if f"/{repo}" in request.url.path:
            requests.append(f"{request.method} {request.url.path}")
        return await forward()

    env.playground.hub.interceptors.append(record_request)
    return requests


@pytest.mark.parametrize("pair", ["servers"], indirect=True)
@pytest.mark.parametrize("obstacle", ["archived", "taken off"])
async def test_a_repository_that_cannot_be_written_stops_neither_pruning_nor_making_room(
    start: Start,
    advance_one_month: Callable[[FlowEnvironment], None],
    monkeypatch: pytest.MonkeyPatch,
    obstacle: str,
):
    async with start() as env:
        await run_task_to_end(env)
        hub = env.playground.hub
        hub.world.set_role(hub.world.get_repo(REPO), "alice", "admin")
        if obstacle == "archived":
            await env.alice.send_request("PATCH", "", archived=True)
        else:
            hub.remove_repos(env.playground.app, REPO)
        await env.wait_until_settled()
        advance_one_month(env)
        monkeypatch.setattr(maintenance, "_EVERY", 0.01)
        env.osiris.maintenance._most = 0

        async def is_tidy() -> bool:
            return (
                not await env.osiris.read_models.list_steps(1)
                and not env.osiris.maintenance._repositories.list_cached()
            )

        async with run_in_background(env.osiris.maintenance.run()):
            await wait_until(is_tidy)


@pytest.mark.long
async def test_workspaces_that_nobody_comes_back_to_are_removed(start: Start):
    async with start() as env:
        await env.bring_to_review()
        workspace = env.sessions_folder / "acme.shop-9-9"
        workspace.mkdir()
        await env.osiris.maintenance.remove_workspaces()
        assert not os.path.lexists(workspace)


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's workspaces are images")
async def test_a_workspace_that_cannot_be_removed_keeps_no_other_there(start: Start):
    async with start() as env:
        await env.bring_to_review()
        sessions_folder = env.sessions_folder
        stuck_workspace = sessions_folder / "acme.shop-9-8"
        other_workspace = sessions_folder / "acme.shop-9-9"
        for folder in (stuck_workspace, other_workspace):
            folder.mkdir(parents=True)
        odd_image = sessions_folder / "@disks" / f"{stuck_workspace.name}.img"
        odd_image.mkdir()  # a folder, which cannot be unlinked
        await env.osiris.maintenance.remove_workspaces()
        odd_image.rmdir()
        assert (stuck_workspace.exists(), other_workspace.exists()) == (True, False)
        await env.osiris.maintenance.remove_workspaces()
        assert not stuck_workspace.exists()


@pytest.mark.long
async def test_no_lock_of_a_repository_outlives_its_use(start: Start):
    async with start() as env:
        await env.bring_to_review()
        assert env.osiris.maintenance is not None
        owners = [
            env.osiris.maintenance._remotes,
            env.osiris.sandbox._checkouts,
            env.osiris.sandbox._setups,
        ]
        assert [len(owner._locks) for owner in owners] == [0, 0, 0]
