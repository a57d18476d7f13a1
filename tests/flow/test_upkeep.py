"""What is over goes, and what somebody still needs stays."""

import json
import os
import time

import pytest

from osiris.queue import journal, tables
from osiris.queue.prune import Pruning
from tests.flow.conftest import HELD, Start, World, run, submit

DAY = 86400


async def finished(world: World) -> int:
    issue, number = await world.in_review()
    await world.bob.review(number, "APPROVE")
    await world.settled()
    await world.bob.merge(number)
    await world.settled()
    assert (await world.task()).state == "done"
    return issue


async def test_a_finished_task_is_pruned_and_its_journal_is_in_a_file_whose_chain_holds(
    start: Start, command, monkeypatch: pytest.MonkeyPatch
):
    async with start() as world:
        issue = await finished(world)
        before = await world.osiris.views.story(1)
        monkeypatch.setattr(tables, "clock", lambda: time.time() + 31 * DAY)
        data = world.stage.settings.osiris_data_dir
        pruned = await Pruning(world.osiris.engine, data / "exports", days=30).prune()
        assert (pruned.tasks, pruned.lines) == (1, len(before) - 1)
        assert pruned.steps > 0
        assert pruned.deliveries > 0
        [left] = await world.osiris.views.story(1)
        assert (left.seq, await world.osiris.views.steps(1)) == (before[-1].seq, [])
        lines = [json.loads(line) for line in (data / f"exports/acme.shop-{issue}.jsonl").read_text().splitlines()]
        link = ""
        for line in lines:
            told = (line["seq"], line["at"], line["kind"], line["what"], line["detail"])
            link = journal.digest(link, *told)
            assert link == line["hash"]
        await world.alice.unlabel(issue)
        await world.alice.label(issue)
        await world.settled()
        assert (await world.task()).state == "done"  # it is known: nothing is done twice
        assert len(await world.alice.pulls()) == 1


async def test_what_is_not_over_or_not_old_is_left_alone(start: Start, command, monkeypatch: pytest.MonkeyPatch):
    async with start() as world:
        await world.in_review()
        settings = world.stage.settings
        environ = {"OSIRIS_DATA_DIR": str(settings.osiris_data_dir)}
        code, said, _ = await command("prune", "--json", **environ)
        assert (code, json.loads(said)) == (0, {"tasks": 0, "steps": 0, "lines": 0, "deliveries": 0})
        monkeypatch.setattr(tables, "clock", lambda: time.time() + 31 * DAY)
        pruned = await Pruning(world.osiris.engine, settings.osiris_data_dir / "exports", days=30).prune()
        assert (pruned.tasks, pruned.steps) == (0, 0)
        assert await world.osiris.views.steps(1)


async def test_repositories_that_were_used_longest_ago_make_room_but_none_that_is_needed(start: Start):
    async with start() as world:
        _, number = await world.in_review()
        upkeep, desk = world.osiris.upkeep, world.stage.settings.osiris_data_dir / "git"
        upkeep._most = 0
        assert await upkeep.trim() == ["acme/shop"]  # in review nothing on this machine is needed
        assert not list(desk.glob("mirrors/*/*.git"))
        await world.bob.review(number, "REQUEST_CHANGES", "More.")
        await world.settled()
        assert len(await world.alice.ask("GET", f"/pulls/{number}/commits")) == 2


async def test_a_repository_with_a_run_under_way_stays(start: Start):
    async with start({"runs": [run(HELD, submit())]}) as world:
        await world.labelled()
        await world.until_running()
        world.osiris.upkeep._most = 0
        assert await world.osiris.upkeep.trim() == []
        world.let_go()
        await world.settled()


async def test_what_was_put_away_is_removed_once_nobody_needs_it(start: Start):
    async with start() as world:
        await world.in_review()
        hidden = world.git("for-each-ref", "refs/osiris").splitlines()
        assert len(hidden) == (0 if world.stage.settings.is_embedded else 1)
        await world.osiris.upkeep.drop_needless()
        assert world.git("for-each-ref", "refs/osiris") == ""


async def test_workspaces_that_nobody_comes_back_to_are_removed(start: Start):
    async with start() as world:
        await world.in_review()
        left = world.stage.settings.osiris_data_dir / "sessions/acme.shop-9-9"
        left.mkdir()
        await world.osiris.upkeep.tidy()
        assert not os.path.lexists(left)
