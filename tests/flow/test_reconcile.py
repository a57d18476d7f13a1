"""What happens while Osiris is away, or is never told, is found out by itself; what it hears twice counts once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from osiris.bootstrap import Osiris, Patience
from osiris.demo.people import Person
from osiris.demo.stage import Stage, staged
from osiris.devhub.hooks import Sending
from osiris.devhub.things import Delivery
from osiris.task import Task
from tests.flow.conftest import FILES, PEOPLE, REPO, STORY, plain_git, run, step, submit

SLOW = {"runs": [run(step("run_command", command="sleep 60"), submit())]}
Ready = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Ground:
    """A stage on which Osiris lives, is away, and lives again; and people."""

    stage: Stage
    alice: Person
    bob: Person
    tina: Person

    def life(self) -> contextlib.AbstractAsyncContextManager[Osiris]:
        return self.stage.osiris(patience=Patience(pauses=(0.05,)))

    async def in_review(self, osiris: Osiris) -> Ready:
        """An issue that was worked on, and its pull request."""
        issue = await self.alice.file_issue("add subtracts", "add(1, 2) is -1")
        await self.alice.label(issue)
        await until(osiris, "review")
        await self.stage.settled(osiris.store)
        [pull] = await self.alice.pulls()
        return issue, int(pull["number"])

    async def approved(self, osiris: Osiris) -> Ready:
        issue, number = await self.in_review(osiris)
        await self.bob.review(number, "APPROVE")
        await until(osiris, "approved")
        await self.stage.settled(osiris.store)
        return issue, number

    @contextlib.asynccontextmanager
    async def unheard(self) -> AsyncIterator[None]:
        """What happens in this block is never delivered, and GitHub has it not on record."""

        async def lose(_delivery: Delivery, send: Sending) -> None:
            send.lost()

        await self.stage.hub.drained()
        self.stage.hub.hooks.interceptors.append(lose)
        yield
        await self.stage.hub.drained()
        self.stage.hub.hooks.interceptors.remove(lose)

    async def push(self, branch: str, files: dict[str, str], folder: Path) -> None:
        await asyncio.to_thread(self._push, branch, files, folder)

    def _push(self, branch: str, files: dict[str, str], folder: Path) -> None:
        """Bob clones, changes files on a branch, and pushes, with plain git."""
        token = self.stage.hub.world.user("bob").token
        who = ["-c", "user.name=bob", "-c", "user.email=bob@example.org"]
        address = self.stage.hub.url.replace("://", f"://bob:{token}@")
        plain_git("clone", "-q", "--branch", branch, f"{address}/{REPO}.git", str(folder))
        for path, text in files.items():
            (folder / path).write_text(text)
        plain_git("-C", str(folder), "add", "-A")
        plain_git("-C", str(folder), *who, "commit", "-qm", "By hand")
        plain_git("-C", str(folder), "push", "-q", "origin", branch)


@pytest.fixture
def pair() -> dict[str, str]:
    """What Osiris stands on makes no difference here."""
    return {}


@pytest.fixture
def ground(place: Path) -> Callable[..., contextlib.AbstractAsyncContextManager[Ground]]:
    @contextlib.asynccontextmanager
    async def laid(story: dict[str, object] = STORY) -> AsyncIterator[Ground]:
        script = place / "script.yml"
        script.write_text(yaml.safe_dump(story))
        async with (
            staged(place, repo=REPO, files=FILES, people=PEOPLE, model=f"scripted:{script}") as stage,
            stage.person("alice") as alice,
            stage.person("bob") as bob,
            stage.person("tina") as tina,
        ):
            yield Ground(stage=stage, alice=alice, bob=bob, tina=tina)

    return laid


async def until(osiris: Osiris, state: str, *, run: int = 1) -> Task:
    """Wait until the one task is in this state, in this run or a later one."""
    async with asyncio.timeout(20):
        while True:
            for line in await osiris.views.tasks():
                if line.task.state == state and line.task.run >= run:
                    return line.task
            await asyncio.sleep(0.02)


Laid = Callable[..., contextlib.AbstractAsyncContextManager[Ground]]


# ── what became of the pull request ───────────────────────────────────────────────────────────────────────────────


async def test_a_merge_that_nobody_told_of_ends_the_task(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.approved(first)
        async with it.unheard():
            await it.bob.merge(number)
        async with it.life() as second:
            await until(second, "done")
            await it.stage.settled(second.store)
            assert await second.views.failures() == []


async def test_a_pull_request_that_was_closed_while_osiris_was_away_is_a_no(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        async with it.unheard():
            await it.bob.close_pull(number)
        async with it.life() as second:
            task = await until(second, "rejected")
            assert task.reason == "bob closed the pull request without merging it"


async def test_a_branch_that_was_deleted_closes_its_pull_request_and_so_the_task(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            await it.in_review(first)
            branch = (await until(first, "review")).branch
        async with it.unheard():
            await it.bob.ask("DELETE", f"/git/refs/heads/{branch}")
        async with it.life() as second:
            task = await until(second, "rejected")
            assert task.reason == "bob closed the pull request without merging it"


async def test_commits_of_a_person_void_the_approval_of_what_was_there_before(ground: Laid, place: Path):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.approved(first)
            branch = (await until(first, "approved")).branch
        async with it.unheard():
            await it.push(branch, {"NOTES.md": "By hand.\n"}, place / "clone")
        async with it.life() as second:
            task = await until(second, "review")
            assert task.head == (await it.bob.pull(number))["head"]["sha"]
            assert task.approved is None


async def test_a_review_that_was_never_delivered_is_answered(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        async with it.unheard():
            line = {"path": "shop.py", "line": 2, "body": "Say why."}
            await it.bob.review(number, "COMMENT", threads=[line])
            await it.tina.review(number, "REQUEST_CHANGES", "I may not ask this.")
        async with it.life() as second:
            await until(second, "review", run=2)
            await it.stage.settled(second.store)
            assert len(await it.alice.ask("GET", f"/pulls/{number}/commits")) == 2
            assert (await until(second, "review")).run == 2


async def test_a_review_that_is_seen_and_then_delivered_as_well_is_one_run(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        await it.bob.review(number, "REQUEST_CHANGES", "Nearly.")
        await it.stage.hub.drained()  # nobody listens: it is on record as failed
        async with it.life() as second:
            assert second.reconciler is not None
            await second.reconciler.compare()
            await until(second, "review", run=2)
            await was_delivered(it, "pull_request_review")
            await second.reconciler.compare()
            await it.stage.settled(second.store)
            task = await until(second, "review")
            assert (task.run, len(task.heard)) == (2, 1)
            assert len(await it.alice.ask("GET", f"/pulls/{number}/commits")) == 2


async def was_delivered(it: Ground, event: str) -> None:
    """Wait until the last delivery of this kind was taken."""
    async with asyncio.timeout(20):
        while not [one for one in it.stage.app.deliveries if one.event == event][-1].status_code == 202:
            await asyncio.sleep(0.02)


async def test_an_approval_and_then_its_dismissal_are_seen(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        async with it.unheard():
            review = await it.bob.review(number, "APPROVE")
        async with it.life() as second:
            assert (await until(second, "approved")).approved_by == "bob"
            await it.stage.settled(second.store)
            assert not (await it.bob.pull(number))["draft"]
        async with it.unheard():
            await it.alice.ask("PUT", f"/pulls/{number}/reviews/{review['id']}/dismissals", message="Not yet.")
        async with it.life() as third:
            assert (await until(third, "review")).approved is None


# ── what became of the issue ──────────────────────────────────────────────────────────────────────────────────────


async def test_an_issue_that_was_dropped_ends_the_task(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            issue, _ = await it.in_review(first)
        async with it.unheard():
            await it.alice.close_issue(issue, "not_planned")
        async with it.life() as second:
            assert (await until(second, "rejected")).reason == "alice closed the issue as not planned"


async def running(it: Ground, osiris: Osiris) -> int:
    """An issue that an agent is at work on."""
    issue = await it.alice.file_issue("add subtracts")
    await it.alice.label(issue)
    await until(osiris, "running")
    return issue


async def test_a_label_that_was_taken_off_stops_the_work(ground: Laid):
    async with ground(SLOW) as it:
        async with it.life() as first:
            issue = await running(it, first)
        async with it.unheard():
            await it.alice.unlabel(issue)
        async with it.life() as second:
            assert (await until(second, "cancelled")).reason == "alice withdrew the request"


async def test_an_issue_that_was_closed_stops_the_work(ground: Laid):
    async with ground(SLOW) as it:
        async with it.life() as first:
            issue = await running(it, first)
        async with it.unheard():
            await it.alice.close_issue(issue)
        async with it.life() as second:
            assert (await until(second, "cancelled")).reason == "alice withdrew the request"


async def test_a_label_that_was_taken_off_by_who_may_not_steer_stops_nothing(ground: Laid):
    async with ground(SLOW) as it, it.life() as osiris:
        assert osiris.reconciler is not None
        issue = await running(it, osiris)
        async with it.unheard():
            await it.tina.unlabel(issue)
        await osiris.reconciler.compare()
        await it.stage.hub.drained()
        assert (await until(osiris, "running")).run == 1


@pytest.mark.parametrize("told", ["unlabelled", "closed"])
async def test_what_was_told_and_taken_up_again_is_not_told_anew(ground: Laid, told: str):
    """The label stays off and the issue stays closed: a look in a later life must not stop the work once more."""
    async with ground(SLOW) as it:
        async with it.life() as first:
            issue = await running(it, first)
            await (it.alice.unlabel(issue) if told == "unlabelled" else it.alice.close_issue(issue))
            await until(first, "cancelled")
            await it.alice.comment(issue, "/osiris retry")
            await until(first, "running", run=2)
        async with it.life() as second:
            assert second.reconciler is not None
            await second.reconciler.compare()
            assert (await until(second, "running")).run == 2
