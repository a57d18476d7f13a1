"""Reconciliation: events that happen while Osiris is down, or that are never delivered, are found;
events that are received twice count once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris.bootstrap import Osiris
from osiris.config.settings import Settings
from osiris.core.errors import Unavailable
from osiris.core.ports.sandbox import Sandbox
from osiris.core.task import Task
from osiris.devhub.auth import Caller, TokenGrant
from osiris.devhub.models import Delivery
from osiris.devhub.webhook_sender import PendingDelivery
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from tests.flow.conftest import (
    FILES,
    FIX,
    HELD,
    PEOPLE,
    QUICK,
    REPO,
    STORY,
    keys,
    lay_database,
    plain_git,
    run,
    step,
    submit,
)
from tests.flow.test_outages import from_osiris, is_write

SLOW = {"runs": [run(step("run_command", command="sleep 60"), submit())]}
Ready = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ReconcileEnvironment:
    """An environment in which Osiris is started and stopped repeatedly, and people."""

    stage: Environment
    alice: Person
    bob: Person
    tina: Person
    warm: Callable[[Settings], Sandbox]

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[Osiris]:
        """Run Osiris until the block ends and everything that it received is decided; an agent may
        still be working."""
        async with self.stage.run_osiris(
            timeouts=QUICK, sandbox=self.warm(self.stage.settings)
        ) as osiris:
            yield osiris
            await self.decided(osiris)

    async def decided(self, osiris: Osiris) -> None:
        """Wait until everything that was sent or recorded is decided; an agent may still be
        working."""
        async with asyncio.timeout(20):
            await self.stage.hub.wait_until_sent()
            while await osiris.store.list_due(1):
                await asyncio.sleep(0.05)

    async def in_review(self, osiris: Osiris) -> Ready:
        """Have an issue worked on. Return its number and that of its pull request."""
        issue = await self.alice.file_issue("add subtracts", "add(1, 2) is -1")
        await self.alice.add_label(issue)
        await until(osiris, "review")
        await self.stage.wait_until_settled(osiris.store)
        [pull] = await self.alice.list_pulls()
        return issue, int(pull["number"])

    async def approved(self, osiris: Osiris) -> Ready:
        issue, number = await self.in_review(osiris)
        await self.bob.submit_review(number, "APPROVE")
        await until(osiris, "approved")
        await self.stage.wait_until_settled(osiris.store)
        return issue, number

    @contextlib.asynccontextmanager
    async def unheard(self) -> AsyncIterator[None]:
        """Drop the events of this block: they are neither delivered nor on record at GitHub."""

        async def lose(_delivery: Delivery, send: PendingDelivery) -> None:
            send.drop()

        await self.stage.hub.wait_until_sent()
        self.stage.hub.hooks.interceptors.append(lose)
        yield
        await self.stage.hub.wait_until_sent()
        self.stage.hub.hooks.interceptors.remove(lose)

    async def push(self, branch: str, files: dict[str, str], folder: Path) -> None:
        await asyncio.to_thread(self._push, branch, files, folder)

    def _push(self, branch: str, files: dict[str, str], folder: Path) -> None:
        """Push changed files to a branch as Bob, with plain git."""
        token = self.stage.hub.world.get_user("bob").token
        who = ["-c", "user.name=bob", "-c", "user.email=bob@example.org"]
        address = self.stage.hub.url.replace("://", f"://bob:{token}@")
        plain_git("clone", "-q", "--branch", branch, f"{address}/{REPO}.git", str(folder))
        for path, text in files.items():
            (folder / path).write_text(text)
        plain_git("-C", str(folder), "add", "-A")
        plain_git("-C", str(folder), *who, "commit", "-qm", "By hand")
        plain_git("-C", str(folder), "push", "-q", "origin", branch)


@pytest.fixture
def ground(
    place: Path, pair: dict[str, str], warm: Callable[[Settings], Sandbox], migrated_file: Path
) -> Callable[..., contextlib.AbstractAsyncContextManager[ReconcileEnvironment]]:
    lay_database(migrated_file, place)

    @contextlib.asynccontextmanager
    async def laid(story: dict[str, object] = STORY) -> AsyncIterator[ReconcileEnvironment]:
        script = place / "script.yml"
        script.write_text(yaml.safe_dump(story))
        model = f"scripted:{script}"
        async with (
            start_environment(
                place, repo=REPO, files=FILES, people=PEOPLE, keys=keys(), model=model, more=pair
            ) as stage,
            stage.get_person("alice") as alice,
            stage.get_person("bob") as bob,
            stage.get_person("tina") as tina,
        ):
            yield ReconcileEnvironment(stage=stage, alice=alice, bob=bob, tina=tina, warm=warm)

    return laid


async def until(osiris: Osiris, state: str, *, run: int = 1) -> Task:
    """Wait until the one task is in this state, in this run or a later one."""
    async with asyncio.timeout(20):
        while True:
            for line in await osiris.read_models.list_tasks():
                if line.task.state == state and line.task.run >= run:
                    return line.task
            await asyncio.sleep(0.05)


Laid = Callable[..., contextlib.AbstractAsyncContextManager[ReconcileEnvironment]]


# ── changes of the pull request ───────────────────────────────────────────────────────────────────


async def test_a_merge_that_nobody_told_of_ends_the_task(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.approved(first)
        async with it.unheard():
            await it.bob.merge_pull(number)
        async with it.life() as second:
            await until(second, "done")
            await it.stage.wait_until_settled(second.store)
            assert await second.read_models.list_failures() == []


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
            await it.bob.send_request("DELETE", f"/git/refs/heads/{branch}")
        async with it.life() as second:
            task = await until(second, "rejected")
            assert task.reason == "bob closed the pull request without merging it"


async def test_commits_of_a_person_void_the_approval_of_what_was_there_before(
    ground: Laid, place: Path
):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.approved(first)
            branch = (await until(first, "approved")).branch
        async with it.unheard():
            await it.push(branch, {"NOTES.md": "By hand.\n"}, place / "clone")
        async with it.life() as second:
            task = await until(second, "review")
            assert task.head == (await it.bob.get_pull(number))["head"]["sha"]
            assert task.approved is None


async def test_a_review_that_was_never_delivered_is_answered(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        async with it.unheard():
            line = {"path": "shop.py", "line": 2, "body": "Say why."}
            await it.bob.submit_review(number, "COMMENT", threads=[line])
            await it.tina.submit_review(number, "REQUEST_CHANGES", "I may not ask this.")
        async with it.life() as second:
            await until(second, "review", run=2)
            await it.stage.wait_until_settled(second.store)
            assert len(await it.alice.send_request("GET", f"/pulls/{number}/commits")) == 2
            assert (await until(second, "review")).run == 2


async def test_a_review_that_is_seen_and_then_delivered_as_well_is_one_run(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        await it.bob.submit_review(number, "REQUEST_CHANGES", "Nearly.")
        await it.stage.hub.wait_until_sent()  # no process is running: it is on record as failed
        async with it.life() as second:
            assert second.reconciler is not None
            await second.reconciler.compare_with_github()
            await until(second, "review", run=2)
            await was_delivered(it, "pull_request_review")
            await second.reconciler.compare_with_github()
            await it.stage.wait_until_settled(second.store)
            task = await until(second, "review")
            assert (task.run, len(task.seen_reviews)) == (2, 1)
            assert len(await it.alice.send_request("GET", f"/pulls/{number}/commits")) == 2


async def was_delivered(it: ReconcileEnvironment, event: str) -> None:
    """Wait until the last delivery of this kind was accepted."""
    async with asyncio.timeout(20):
        while [one for one in it.stage.app.deliveries if one.event == event][-1].status_code != 202:
            await asyncio.sleep(0.05)


async def test_an_approval_and_then_its_dismissal_are_seen(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        async with it.unheard():
            review = await it.bob.submit_review(number, "APPROVE")
        async with it.life() as second:
            assert (await until(second, "approved")).approved_by == "bob"
            await it.stage.wait_until_settled(second.store)
            assert not (await it.bob.get_pull(number))["draft"]
        async with it.unheard():
            await it.alice.send_request(
                "PUT", f"/pulls/{number}/reviews/{review['id']}/dismissals", message="Not yet."
            )
        async with it.life() as third:
            assert (await until(third, "review")).approved is None


# ── changes of the issue ──────────────────────────────────────────────────────────────────────────


async def test_an_issue_that_was_dropped_ends_the_task(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            issue, _ = await it.in_review(first)
        async with it.unheard():
            await it.alice.close_issue(issue, "not_planned")
        async with it.life() as second:
            assert (
                await until(second, "rejected")
            ).reason == "alice closed the issue as not planned"


async def running(it: ReconcileEnvironment, osiris: Osiris) -> int:
    """Start an agent on an issue and wait until it is inside its first tool call. Return the number
    of the issue."""
    issue = await it.alice.file_issue("add subtracts")
    await it.alice.add_label(issue)
    await until(osiris, "running")
    async with asyncio.timeout(20):
        while (
            not (steps := await osiris.read_models.list_steps(1))
            or steps[-1].message.role != "assistant"
        ):
            await asyncio.sleep(0.05)
    return issue


async def test_a_label_that_was_taken_off_stops_the_work(ground: Laid):
    async with ground(SLOW) as it:
        async with it.life() as first:
            issue = await running(it, first)
        async with it.unheard():
            await it.alice.remove_label(issue)
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
            await it.tina.remove_label(issue)
        await osiris.reconciler.compare_with_github()
        await it.decided(osiris)
        assert [line.task.state for line in await osiris.read_models.list_tasks()] == ["running"]


@pytest.mark.parametrize("told", ["unlabelled", "closed"])
async def test_what_was_told_and_taken_up_again_is_not_told_anew(ground: Laid, told: str):
    """The label stays off and the issue stays closed: a later comparison must not stop the work a
    second time."""
    async with ground(SLOW) as it:
        async with it.life() as first:
            issue = await running(it, first)
            await (
                it.alice.remove_label(issue)
                if told == "unlabelled"
                else it.alice.close_issue(issue)
            )
            await until(first, "cancelled")
            await it.alice.add_comment(issue, "/osiris retry")
            await until(first, "running", run=2)
        async with it.life() as second:
            assert second.reconciler is not None
            await second.reconciler.compare_with_github()
            await it.decided(second)
            [line] = await second.read_models.list_tasks()
            assert (line.task.state in ("queued", "running"), line.task.run) == (True, 2)


async def test_what_was_withdrawn_and_taken_up_again_while_osiris_was_away_goes_on(ground: Laid):
    async with ground(SLOW) as it:
        async with it.life() as first:
            issue = await running(it, first)
        await it.alice.remove_label(issue)
        await it.alice.add_comment(issue, "/osiris retry")
        await it.stage.hub.wait_until_sent()  # no process is running: both are on record as failed
        async with it.life() as second:
            assert second.reconciler is not None
            await until(second, "running", run=2)
            await second.reconciler.compare_with_github()
            await was_delivered(it, "issue_comment")
            await it.decided(second)
            [line] = await second.read_models.list_tasks()
            assert (line.task.state in ("queued", "running"), line.task.run) == (True, 2)


# ── names and access of repositories ──────────────────────────────────────────────────────────────


async def writes_of(it: ReconcileEnvironment) -> list[str]:
    """Record Osiris's writes to the repository from now on."""
    seen: list[str] = []

    async def note(request: Request, forward) -> Response:
        if is_write(request) and from_osiris(request):
            seen.append(f"{request.method} {request.url.path}")
        return await forward()

    it.stage.hub.interceptors.append(note)
    return seen


@pytest.mark.parametrize("told", [True, False], ids=["told", "unheard"])
async def test_an_archived_repository_is_left_alone_until_it_can_be_written_again(
    ground: Laid, told: bool
):
    async with ground() as it:
        it.stage.hub.world.set_role(it.stage.hub.world.get_repo(REPO), "alice", "admin")
        async with it.life() as first:
            issue, number = await it.in_review(first)
            if told:
                await it.alice.send_request("PATCH", "", archived=True)
                await until(first, "paused")
        if not told:
            async with it.unheard():
                await it.alice.send_request("PATCH", "", archived=True)
        wrote = await writes_of(it)
        async with it.life() as second:
            task = await until(second, "paused")
            assert (task.read_only, task.reason) == (True, "the repository acme/shop is archived")
            assert wrote == []
            await it.alice.send_request("PATCH", "", archived=False)
            assert not (await until(second, "review")).read_only
            await it.bob.submit_review(number, "REQUEST_CHANGES", "Nearly.")
            await until(second, "review", run=2)
            await it.stage.wait_until_settled(second.store)
            assert await second.read_models.list_failures() == []
            assert len(await said_by_osiris(it, issue)) == 1


async def said_by_osiris(it: ReconcileEnvironment, number: int) -> list[str]:
    return [
        c["body"]
        for c in await it.alice.list_comments(number)
        if c["user"]["login"] == "osiris[bot]"
    ]


async def test_a_run_goes_on_when_the_suspension_of_the_app_has_ended(ground: Laid):
    story = {"runs": [run(HELD, *FIX)]}
    async with ground(story) as it, it.life() as osiris:
        await running(it, osiris)
        installation = it.stage.hub.get_installation(it.stage.app, REPO)
        it.stage.hub.suspend_installation(installation, it.stage.hub.world.get_user("alice"))
        task = await until(osiris, "paused")
        assert (task.read_only, task.run) == (True, 1)
        assert "suspended" in task.reason
        it.stage.hub.unsuspend_installation(installation)
        assert (await until(osiris, "running")).run == 1


async def test_a_suspension_while_osiris_was_away_is_seen_and_so_is_its_end(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            await it.in_review(first)
        installation = it.stage.hub.get_installation(it.stage.app, REPO)
        async with it.unheard():
            it.stage.hub.suspend_installation(installation)
        async with it.life() as second:
            assert (await until(second, "paused")).read_only
        async with it.unheard():
            it.stage.hub.unsuspend_installation(installation)
        async with it.life() as third:
            assert not (await until(third, "review")).read_only


async def test_an_app_that_was_taken_off_and_installed_anew_goes_on(ground: Laid):
    async with ground() as it, it.life() as osiris:
        await it.in_review(osiris)
        it.stage.hub.remove_installation(it.stage.hub.get_installation(it.stage.app, REPO))
        assert (await until(osiris, "paused")).reason == f"the App is not installed on {REPO}"
        it.stage.hub.install_app(it.stage.app, REPO)
        await until(osiris, "review")


async def test_a_repository_that_is_gone_is_not_asked_for_over_and_over(ground: Laid):
    async with ground() as it:
        it.stage.hub.world.set_role(it.stage.hub.world.get_repo(REPO), "alice", "admin")
        async with it.life() as first:
            await it.in_review(first)
        async with it.unheard():
            await it.alice.send_request("DELETE", "")
        async with it.life() as second:
            assert (await until(second, "paused")).reason == f"the App is not installed on {REPO}"
            asked = count_reads(it)
            assert second.reconciler is not None
            await second.reconciler.compare_with_github()
            assert asked == ["/api/v3/repos/acme/shop/installation"]


@pytest.mark.parametrize("told", [True, False], ids=["told", "unheard"])
async def test_a_renamed_repository_keeps_its_task_its_comment_and_its_pull_request(
    ground: Laid, told: bool
):
    async with ground() as it:
        it.stage.hub.world.set_role(it.stage.hub.world.get_repo(REPO), "alice", "admin")
        async with it.life() as first:
            issue, number = await it.in_review(first)
            if told:
                await it.alice.send_request("PATCH", "", name="store")
                await until_called(first, "acme/store")
        if not told:
            async with it.unheard():
                await it.alice.send_request("PATCH", "", name="store")
        async with it.life() as second, there(it, "bob", "acme/store") as bob:
            await until_called(second, "acme/store")
            await bob.submit_review(number, "REQUEST_CHANGES", "Nearly.")
            await until(second, "review", run=2)
            await it.stage.wait_until_settled(second.store)
            assert len(await bob.send_request("GET", f"/pulls/{number}/commits")) == 2
            for one in (issue, number):
                assert (
                    len(
                        [
                            c
                            for c in await bob.list_comments(one)
                            if c["user"]["login"] == "osiris[bot]"
                        ]
                    )
                    == 1
                )
            assert len(await bob.list_pulls()) == 1
            assert await second.read_models.list_failures() == []


def there(it: ReconcileEnvironment, login: str, repo: str) -> Person:
    """Return a person who uses a repository under its new name."""
    return Person(it.stage.hub.api_url, login, it.stage.hub.world.get_user(login).token, repo)


async def until_called(osiris: Osiris, repo: str) -> None:
    async with asyncio.timeout(20):
        while [line.task.issue.repo for line in await osiris.read_models.list_tasks()] != [repo]:
            await asyncio.sleep(0.05)


async def test_a_repository_that_was_given_away_waits_until_the_app_is_installed_there(
    ground: Laid,
):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        async with it.unheard():
            it.stage.hub.transfer_repo(REPO, "globex")
        async with it.life() as second, there(it, "bob", "globex/shop") as bob:
            assert (await until(second, "paused")).read_only
            it.stage.hub.install_app(it.stage.app, "globex/shop")
            await until(second, "review")
            await until_called(second, "globex/shop")
            await bob.submit_review(number, "APPROVE")
            await until(second, "approved")
            await it.stage.wait_until_settled(second.store)
            assert not (await bob.get_pull(number))["draft"]


# ── deliveries ────────────────────────────────────────────────────────────────────────────────────


async def test_what_could_not_be_delivered_is_asked_for_in_its_order(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            _, number = await it.in_review(first)
        for n in range(3):
            await it.alice.add_label(await it.alice.file_issue(f"Another {n}"))
        await it.bob.submit_review(number, "APPROVE")
        await it.stage.hub.wait_until_sent()
        async with it.life() as second:
            async with asyncio.timeout(30):
                while [line.task.state for line in await second.read_models.list_tasks()].count(
                    "review"
                ) < 3:
                    await asyncio.sleep(0.05)
            await it.stage.wait_until_settled(second.store)
            assert (await second.read_models.find_task(1)).task.state == "approved"
            assert all(len(of) <= 2 for of in sendings(it).values())
            sent = [delivery.guid for delivery in it.stage.app.deliveries]
            twice = [guid for guid, of in sendings(it).items() if len(of) == 2]
            assert len(twice) >= 4
            assert sorted(twice, key=sent.index) == sorted(
                twice, key=sent[::-1].index, reverse=True
            )


def sendings(it: ReconcileEnvironment) -> dict[str, list[int]]:
    """Return the answers to each delivery by its guid."""
    of: dict[str, list[int]] = {}
    for delivery in it.stage.app.deliveries:
        of.setdefault(delivery.guid, []).append(delivery.status_code)
    return of


async def test_a_delivery_behind_a_hundred_others_is_found(ground: Laid):
    async with ground() as it:
        async with it.life() as first:
            await it.stage.wait_until_settled(first.store)
        issue = await it.alice.file_issue("add subtracts")
        await it.alice.add_label(issue)
        for n in range(130):
            await it.alice.add_comment(issue, f"Me too, {n}.")
        await it.stage.hub.wait_until_sent()
        async with it.life() as second:
            await until(second, "review")


async def test_what_somebody_else_took_is_asked_for(ground: Laid):
    """GitHub has an answer of 202 on record, but this database never received the delivery: it is
    an older copy, for example."""
    async with ground() as it:
        async with it.life() as first:
            await it.in_review(first)

        async def take(delivery: Delivery, send: PendingDelivery) -> None:
            delivery.delivered = it.stage.hub.world.now()
            delivery.status_code = 202
            delivery.status = "OK"

        it.stage.hub.hooks.interceptors.append(take)
        await it.alice.add_label(await it.alice.file_issue("Another"))
        await it.stage.hub.wait_until_sent()
        it.stage.hub.hooks.interceptors.remove(take)
        async with it.life() as second:
            async with asyncio.timeout(20):
                while len(await second.read_models.list_tasks()) < 2:
                    await asyncio.sleep(0.05)


async def test_a_delivery_that_is_never_taken_is_not_asked_for_for_ever(ground: Laid):
    async with ground() as it, it.life() as osiris:
        assert osiris.reconciler is not None
        await it.in_review(osiris)

        async def fail(_delivery: Delivery, _send: PendingDelivery) -> None: ...

        it.stage.hub.hooks.interceptors.append(fail)
        await it.alice.file_issue("Another")
        for _ in range(7):
            await it.stage.hub.wait_until_sent()
            await osiris.reconciler.missed_deliveries.request_again()
        await it.stage.hub.wait_until_sent()
        sent = Counter(delivery.guid for delivery in it.stage.app.deliveries)
        # once by GitHub itself, four times at Osiris's request
        assert max(sent.values()) == 5


# ── cost and obstacles ────────────────────────────────────────────────────────────────────────────


def count_reads(it: ReconcileEnvironment) -> list[str]:
    """Record Osiris's reads from now on."""
    asked: list[str] = []

    async def note(request: Request, forward) -> Response:
        if from_osiris(request) and request.method == "GET":
            asked.append(request.url.path)
        return await forward()

    it.stage.hub.interceptors.append(note)
    return asked


async def test_a_quiet_look_costs_one_conditional_request_a_repository_and_one_for_deliveries(
    ground: Laid,
):
    async with ground() as it, it.life() as osiris:
        assert osiris.reconciler is not None
        await it.in_review(osiris)
        answers: list[tuple[str, int]] = []

        async def note(request: Request, forward) -> Response:
            answer = await forward()
            if from_osiris(request):
                answers.append((request.url.path.removeprefix("/api/v3"), answer.status_code))
            return answer

        it.stage.hub.interceptors.append(note)
        quiet = [("/app/hook/deliveries", 200), (f"/repos/{REPO}/issues", 304)]
        async with asyncio.timeout(30):  # items touched in the last seconds are read again
            while answers != quiet:
                answers.clear()
                await osiris.reconciler.run_once()
                await asyncio.sleep(0.1)
        used = it.stage.hub.rates.describe_limit(installed(it), "core")["used"]
        await osiris.reconciler.compare_with_github()
        # a 304 costs nothing
        assert it.stage.hub.rates.describe_limit(installed(it), "core")["used"] == used
        answers.clear()
        [issue] = [
            number
            for number, one in it.stage.hub.world.get_repo(REPO).issues.items()
            if one.pull is None
        ]
        await it.alice.add_comment(issue, "By the way …")
        await it.stage.wait_until_settled(osiris.store)
        await osiris.reconciler.compare_with_github()
        assert (f"/repos/{REPO}/issues", 200) in answers
        assert (f"/repos/{REPO}/issues/{issue}", 200) in answers


def installed(it: ReconcileEnvironment) -> Caller:
    """Return Osiris as the caller under which the hub counts its requests."""
    installation = it.stage.hub.get_installation(it.stage.app, REPO)
    grant = TokenGrant(
        token="", installation=installation, permissions={}, repos=(), narrowed=False, expires=0.0
    )
    return Caller(user=it.stage.app.bot, app=it.stage.app, grant=grant)


@pytest.mark.parametrize("answer", [502, 404, 200], ids=["an outage", "gone", "a page of a proxy"])
async def test_a_task_that_cannot_be_looked_at_keeps_nobody_from_the_others(
    ground: Laid, answer: int
):
    async with ground() as it:
        async with it.life() as first:
            await it.in_review(first)
            await it.alice.add_label(await it.alice.file_issue("Another"))
            async with asyncio.timeout(20):
                while [line.task.state for line in await first.read_models.list_tasks()] != [
                    "review",
                    "review",
                ]:
                    await asyncio.sleep(0.05)
            await it.stage.wait_until_settled(first.store)
            pulls = sorted(line.task.pull or 0 for line in await first.read_models.list_tasks())
        async with it.unheard():
            for pull in pulls:
                await it.bob.close_pull(pull)
        healed = False
        asked = list[tuple[str, int]]()

        async def disturb(request: Request, forward) -> Response:
            bad = (
                from_osiris(request)
                and not healed
                and request.url.path.endswith(f"/pulls/{pulls[0]}")
            )
            said = JSONResponse({"message": "no"}, answer) if bad else await forward()
            asked.append((request.url.path.rpartition("/")[2], said.status_code))
            return said

        it.stage.hub.interceptors.append(disturb)
        async with it.life() as second:
            assert second.reconciler is not None
            async with asyncio.timeout(20):
                while sorted(line.task.state for line in await second.read_models.list_tasks()) != [
                    "rejected",
                    "review",
                ]:
                    await asyncio.sleep(0.05)
            # nothing is touched any more: only pending issues are read
            async with asyncio.timeout(20):
                while not {("issues", 304), (str(pulls[0]), answer)} <= set(asked):
                    asked.clear()
                    await second.reconciler.compare_with_github()
                    await asyncio.sleep(0.1)
            healed = True
            await second.reconciler.compare_with_github()
            async with asyncio.timeout(20):
                while [line.task.state for line in await second.read_models.list_tasks()] != [
                    "rejected",
                    "rejected",
                ]:
                    await asyncio.sleep(0.05)


async def test_a_long_pause_that_github_asks_for_ends_the_look(ground: Laid):
    async with ground() as it, it.life() as osiris:
        assert osiris.reconciler is not None
        await it.in_review(osiris)
        osiris.reconciler.request()
        asked: list[str] = []

        async def limit(request: Request, forward) -> Response:
            if from_osiris(request) and request.url.path.startswith("/api/v3/repos/"):
                asked.append(request.url.path)
                return JSONResponse(
                    {"message": "secondary rate limit"}, 429, headers={"retry-after": "600"}
                )
            return await forward()

        it.stage.hub.interceptors.append(limit)
        with pytest.raises(Unavailable, match="asks for a pause") as refused:
            await osiris.reconciler.compare_with_github()
        assert refused.value.retry_in == 600
        assert len(set(asked)) == 1
