"""Maintenance: finished data is removed, and data that is still needed stays."""

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
    FILES,
    FIX,
    HELD,
    REPO,
    FlowEnvironment,
    Start,
    plain_git,
    run,
    submit,
)
from tests.flow.test_races import until, until_it_is
from tests.flow.test_waiting import refusing

DAY = 86400
OTHER = "acme/other"


def pruning(world: FlowEnvironment) -> Retention:
    return Retention(world.osiris.engine, world.stage.settings.osiris_data_dir / "exports", days=30)


@pytest.fixture
def a_month_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[FlowEnvironment], None]:
    """Provide a function that advances the clock of Osiris by a month and clears the deliveries
    that GitHub has on record."""

    def later(world: FlowEnvironment) -> None:
        monkeypatch.setattr(tables, "clock", lambda: time.time() + 31 * DAY)
        world.stage.app.deliveries.clear()

    return later


async def finished(world: FlowEnvironment) -> int:
    issue, number = await world.in_review()
    await world.bob.submit_review(number, "APPROVE")
    await world.settled()
    await world.bob.merge_pull(number)
    await world.settled()
    assert (await world.task()).state == "done"
    return issue


def assert_holds(path: Path, story: Sequence[AuditEntry]) -> None:
    """Assert that an export contains exactly these lines in order and that its chain is intact."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    link = ""
    assert [line["seq"] for line in lines] == [line.seq for line in story]
    for line in lines:
        link = audit_log.hash_entry(
            link, line["seq"], line["at"], line["kind"], line["what"], line["detail"]
        )
        assert link == line["hash"]


async def test_a_finished_task_is_pruned_and_its_journal_is_in_a_file_whose_chain_holds(
    start: Start, a_month_later: Callable[[FlowEnvironment], None]
):
    async with start() as world:
        issue = await finished(world)
        before = await world.osiris.read_models.read_audit_log(1)
        a_month_later(world)
        data = world.stage.settings.osiris_data_dir
        pruned = await pruning(world).prune()
        assert (pruned.tasks, pruned.lines) == (1, len(before) - 1)
        assert pruned.steps > 0
        assert pruned.deliveries > 0
        [left] = await world.osiris.read_models.read_audit_log(1)
        assert (left.seq, await world.osiris.read_models.list_steps(1)) == (before[-1].seq, [])
        assert_holds(data / f"exports/acme.shop-{issue}.jsonl", before[:-1])
        await world.alice.remove_label(issue)
        await world.alice.add_label(issue)
        await world.settled()
        assert (await world.task()).state == "done"  # the task is known, so nothing is done twice
        assert len(await world.alice.list_pulls()) == 1


async def test_what_is_not_over_or_not_old_is_left_alone(
    start: Start, command, a_month_later: Callable[[FlowEnvironment], None]
):
    async with start() as world:
        await world.in_review()
        settings = world.stage.settings
        environ = {"OSIRIS_DATA_DIR": str(settings.osiris_data_dir)}
        code, said, _ = await command("prune", "--json", **environ)
        assert (code, json.loads(said)) == (
            0,
            {"tasks": 0, "steps": 0, "lines": 0, "deliveries": 0},
        )
        a_month_later(world)
        pruned = await pruning(world).prune()
        assert (pruned.tasks, pruned.steps) == (0, 0)
        assert await world.osiris.read_models.list_steps(1)


async def inbox_ids(world: FlowEnvironment) -> list[int]:
    async with world.osiris.engine.connect() as connection:
        return list(await connection.scalars(text("select id from inbox order by id")))


async def test_people_are_heard_after_a_quiet_month_in_which_every_delivery_was_pruned(
    start: Start, a_month_later: Callable[[FlowEnvironment], None]
):
    async with start() as world:
        _, number = await world.in_review()
        a_month_later(world)
        [*_, newest] = await inbox_ids(world)
        assert (await pruning(world).prune()).deliveries > 0
        await world.bob.add_comment(number, "/osiris status")
        await world.bob.submit_review(number, "APPROVE")
        await world.settled()
        assert (await world.task()).state == "approved"
        # the orders of the task are identified by the earlier ids
        assert min(await inbox_ids(world)) >= newest
        await world.bob.merge_pull(number)
        await world.settled()
        assert ((await world.task()).state, await world.failures()) == ("done", [])


async def test_a_task_that_is_taken_up_again_while_others_are_pruned_keeps_all_it_has(
    start: Start, a_month_later: Callable[[FlowEnvironment], None]
):
    async with start({"runs": [run(HELD, *FIX)]}) as world:
        issue = await world.labelled()
        await world.until_running()
        await world.alice.add_comment(issue, "/osiris stop")
        await world.settled()
        assert (await world.task()).state == "cancelled"
        a_month_later(world)
        story = await world.osiris.read_models.read_audit_log(1)
        taken_up: list[str] = []

        def in_between(connection: Connection) -> None:
            """Request a retry before the first transaction that may remove something, after the
            list of removable tasks was read."""
            options = connection.get_execution_options()
            if (
                not options.get("readonly")
                and options.get("isolation_level") != "AUTOCOMMIT"
                and not taken_up
            ):
                taken_up.append("once")
                await_only(world.alice.add_comment(issue, "/osiris retry"))
                await_only(world.until_running())

        exports = world.stage.settings.osiris_data_dir / "exports"
        engine = connect(world.stage.settings.database)
        event.listen(engine.sync_engine, "engine_connect", in_between)
        pruned = await Retention(engine, exports, days=30).prune()
        await engine.dispose()
        assert (taken_up, pruned.tasks, pruned.lines) == (["once"], 0, 0)
        assert not exports.exists()
        assert (await world.osiris.read_models.read_audit_log(1))[: len(story)] == story
        world.let_go()
        await world.settled()
        assert ((await world.task()).state, await world.failures()) == ("review", [])


async def test_what_is_still_to_be_said_of_an_ended_task_is_said_before_it_is_pruned(
    start: Start, a_month_later: Callable[[FlowEnvironment], None]
):
    async with start(timeouts=Timeouts(pauses=(0.05,), tries=10_000)) as world:
        issue, number = await world.in_review()
        await world.bob.submit_review(number, "APPROVE")
        await world.settled()
        [status] = await world.alice.list_comments(issue)
        down = refusing(world, f"/comments/{status['id']}", JSONResponse({"message": "down"}, 502))
        await world.bob.merge_pull(number)
        await until_it_is("done", world)
        a_month_later(world)
        assert (await pruning(world).prune()).tasks == 0
        down.clear()
        await world.settled()
        assert "merged" in (await world.said_by_osiris(issue))[0].lower()


async def hinder(world: FlowEnvironment) -> None:
    """Prevent the database from deleting runs."""
    async with world.osiris.engine.begin() as connection:
        await connection.execute(
            text("create table notes (run varchar(255) references runs (name))")
        )
        await connection.execute(text("insert into notes select name from runs"))


async def unhinder(world: FlowEnvironment) -> None:
    async with world.osiris.engine.begin() as connection:
        await connection.execute(text("delete from notes"))


async def test_an_export_whose_removal_failed_is_not_written_twice(
    start: Start, a_month_later: Callable[[FlowEnvironment], None]
):
    async with start() as world:
        issue = await finished(world)
        a_month_later(world)
        before = await world.osiris.read_models.read_audit_log(1)
        path = world.stage.settings.osiris_data_dir / "exports"
        await hinder(world)
        with pytest.raises(IntegrityError):
            await pruning(world).prune()
        assert await world.osiris.read_models.read_audit_log(1) == before
        [export] = path.iterdir()
        # as a process leaves it that dies while writing
        export.write_bytes(export.read_bytes()[:-20])
        await unhinder(world)
        assert (await pruning(world).prune()).lines == len(before) - 1
        assert export.name == f"acme.shop-{issue}.jsonl"
        assert_holds(export, before[:-1])


async def test_a_removal_that_the_database_refuses_keeps_nothing_else_from_being_done(
    start: Start, a_month_later: Callable[[FlowEnvironment], None], monkeypatch: pytest.MonkeyPatch
):
    async with start() as world:
        await finished(world)
        a_month_later(world)
        mirrors = world.stage.settings.osiris_data_dir / "git/mirrors"
        monkeypatch.setattr(maintenance, "_EVERY", 0.01)
        monkeypatch.setattr(maintenance, "_PRUNE", 0.0)
        world.osiris.maintenance._most = 0
        await hinder(world)

        async def has_made_room() -> bool:
            return not list(mirrors.glob("*/*.git"))

        async def is_pruned() -> bool:
            return not await world.osiris.read_models.list_steps(1)

        async with run_in_background(world.osiris.maintenance.run()):
            await until(has_made_room)
            assert not await is_pruned()
            await unhinder(world)
            await until(is_pruned)


async def test_repositories_that_were_used_longest_ago_make_room_but_none_that_is_needed(
    start: Start,
):
    async with start() as world:
        _, number = await world.in_review()
        keeper = world.osiris.maintenance
        desk = world.stage.settings.osiris_data_dir / "git"
        keeper._most = 0
        # in review, no local data is needed
        assert await keeper.trim_cache() == ["acme/shop"]
        assert not list(desk.glob("mirrors/*/*.git"))
        await world.bob.submit_review(number, "REQUEST_CHANGES", "More.")
        await world.settled()
        assert len(await world.alice.send_request("GET", f"/pulls/{number}/commits")) == 2


async def test_a_repository_with_a_run_under_way_stays(start: Start):
    async with start({"runs": [run(HELD, submit())]}) as world:
        await world.labelled()
        await world.until_running()
        world.osiris.maintenance._most = 0
        assert await world.osiris.maintenance.trim_cache() == []
        world.let_go()
        await world.settled()


async def test_what_was_put_away_is_removed_once_nobody_needs_it(start: Start):
    async with start() as world:
        await world.in_review()
        hidden = world.git("for-each-ref", "refs/osiris").splitlines()
        assert len(hidden) == (0 if world.stage.settings.is_embedded else 1)
        await world.osiris.maintenance.delete_obsolete()
        assert world.git("for-each-ref", "refs/osiris") == ""


@pytest.mark.parametrize("pair", ["servers"], indirect=True)  # on SQLite, no checkpoints are pushed
async def test_a_repository_that_the_app_was_taken_off_keeps_no_other_from_being_tidied_up(
    start: Start,
):
    async with start() as world:
        hub, app = world.stage.hub, world.stage.app
        hub.add_repo(OTHER, files=FILES, collaborators={"alice": "maintain"})
        hub.install_app(app, OTHER)
        await world.in_review()
        async with Person(hub.api_url, "alice", hub.world.get_user("alice").token, OTHER) as alice:
            await alice.add_label(await alice.file_issue("add subtracts"))
            await world.settled()
        hub.remove_repos(app, REPO)
        await until(lambda: is_in_state(world, REPO, "paused"))
        asked = requests_about(world, REPO)
        world.osiris.maintenance._postponed.clear()  # the worker itself may just have deferred it
        await world.osiris.maintenance.delete_obsolete()
        assert asked
        assert put_away(world, REPO) != ""
        assert put_away(world, OTHER) == ""
        asked.clear()
        await world.osiris.maintenance.delete_obsolete()
        assert asked == []
        hub.install_app(app, REPO)
        await until(lambda: is_in_state(world, REPO, "review"))
        world.osiris.maintenance._postponed.clear()  # as an hour later
        await world.osiris.maintenance.delete_obsolete()
        assert put_away(world, REPO) == ""


async def is_in_state(world: FlowEnvironment, repo: str, state: str) -> bool:
    """Return whether the tasks of `repo` are in `state` and no decision about them is pending."""
    states = {
        line.task.state.value
        for line in await world.osiris.read_models.list_tasks()
        if line.task.issue.repo == repo
    }
    return states == {state} and await world.osiris.store.next_due() is None


def put_away(world: FlowEnvironment, repo: str) -> str:
    path = world.stage.settings.osiris_data_dir.parent / f"hub/repos/{repo}.git"
    return plain_git("--git-dir", str(path), "for-each-ref", "refs/osiris")


def requests_about(world: FlowEnvironment, repo: str) -> list[str]:
    """Record the requests for a repository from now on, of git and of the API."""
    seen: list[str] = []

    async def note(request: Request, forward) -> Response:
        if f"/{repo}" in request.url.path:
            seen.append(f"{request.method} {request.url.path}")
        return await forward()

    world.stage.hub.interceptors.append(note)
    return seen


@pytest.mark.parametrize("pair", ["servers"], indirect=True)
@pytest.mark.parametrize("barred", ["archived", "taken off"])
async def test_a_repository_that_cannot_be_written_stops_neither_pruning_nor_making_room(
    start: Start,
    a_month_later: Callable[[FlowEnvironment], None],
    monkeypatch: pytest.MonkeyPatch,
    barred: str,
):
    async with start() as world:
        await finished(world)
        hub = world.stage.hub
        hub.world.set_role(hub.world.get_repo(REPO), "alice", "admin")
        if barred == "archived":
            await world.alice.send_request("PATCH", "", archived=True)
        else:
            hub.remove_repos(world.stage.app, REPO)
        await world.settled()
        a_month_later(world)
        monkeypatch.setattr(maintenance, "_EVERY", 0.01)
        world.osiris.maintenance._most = 0

        async def is_tidy() -> bool:
            return (
                not await world.osiris.read_models.list_steps(1)
                and not world.osiris.maintenance._repositories.list_cached()
            )

        async with run_in_background(world.osiris.maintenance.run()):
            await until(is_tidy)


async def test_workspaces_that_nobody_comes_back_to_are_removed(start: Start):
    async with start() as world:
        await world.in_review()
        left = world.sessions / "acme.shop-9-9"
        left.mkdir()
        await world.osiris.maintenance.remove_workspaces()
        assert not os.path.lexists(left)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's workspaces are images")
async def test_a_workspace_that_cannot_be_removed_keeps_no_other_there(start: Start):
    async with start() as world:
        await world.in_review()
        sessions = world.sessions
        stuck = sessions / "acme.shop-9-8"
        left = sessions / "acme.shop-9-9"
        for folder in (stuck, left):
            folder.mkdir(parents=True)
        odd = sessions / "@disks" / f"{stuck.name}.img"
        odd.mkdir()  # a folder, which cannot be unlinked
        await world.osiris.maintenance.remove_workspaces()
        odd.rmdir()
        assert (stuck.exists(), left.exists()) == (True, False)
        await world.osiris.maintenance.remove_workspaces()
        assert not stuck.exists()


async def test_no_lock_of_a_repository_outlives_its_use(start: Start):
    async with start() as world:
        await world.in_review()
        assert world.osiris.maintenance is not None
        owners = [
            world.osiris.maintenance._remotes,
            world.osiris.sandbox._checkouts,
            world.osiris.sandbox._setups,
        ]
        assert [len(owner._locks) for owner in owners] == [0, 0, 0]
