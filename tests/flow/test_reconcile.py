"""Reconciliation: Osiris finds events that happened while it was down or that were never delivered.
An event that it receives twice counts once."""

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
    BLOCKING_STEP,
    FAST_RETRIES,
    FILES,
    FIX_STEPS,
    PEOPLE,
    REPO,
    SCRIPT,
    build_run,
    build_step,
    build_submit_step,
    copy_database,
    get_app_keys,
    run_plain_git,
)
from tests.flow.test_outages import from_osiris, is_write

SLOW_SCRIPT = {
    "runs": [build_run(build_step("run_command", command="sleep 60"), build_submit_step())]
}
IssueAndPull = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ReconcileEnvironment:
    """An environment in which a test starts and stops Osiris repeatedly, and people."""

    playground: Environment
    alice: Person
    bob: Person
    tina: Person
    sandbox_factory: Callable[[Settings], Sandbox]

    @contextlib.asynccontextmanager
    async def run_osiris(self) -> AsyncIterator[Osiris]:
        """Run Osiris until the block ends and all that it received is decided. An agent may still
        be working."""
        async with self.playground.run_osiris(
            timeouts=FAST_RETRIES, sandbox=self.sandbox_factory(self.playground.settings)
        ) as osiris:
            yield osiris
            await self.wait_until_decided(osiris)

    async def wait_until_decided(self, osiris: Osiris) -> None:
        """Wait until all that was sent or recorded is decided. An agent may still be working."""
        async with asyncio.timeout(20):
            await self.playground.hub.wait_until_sent()
            while await osiris.store.list_due(1):
                await asyncio.sleep(0.05)

    async def bring_to_review(self, osiris: Osiris) -> IssueAndPull:
        """File an issue and wait for its pull request. Return the numbers of both."""
        issue = await self.alice.file_issue("add subtracts", "add(1, 2) is -1")
        await self.alice.add_label(issue)
        await wait_until_state(osiris, "review")
        await self.playground.wait_until_settled(osiris.store)
        [pull] = await self.alice.list_pulls()
        return issue, int(pull["number"])

    async def bring_to_approval(self, osiris: Osiris) -> IssueAndPull:
        issue, number = await self.bring_to_review(osiris)
        await self.bob.submit_review(number, "APPROVE")
        await wait_until_state(osiris, "approved")
        await self.playground.wait_until_settled(osiris.store)
        return issue, number

    @contextlib.asynccontextmanager
    async def drop_deliveries(self) -> AsyncIterator[None]:
        """Drop the events of this block: GitHub neither delivers nor records them."""

        async def drop_delivery(_delivery: Delivery, send: PendingDelivery) -> None:
            send.drop()

        await self.playground.hub.wait_until_sent()
        self.playground.hub.hooks.interceptors.append(drop_delivery)
        yield
        await self.playground.hub.wait_until_sent()
        self.playground.hub.hooks.interceptors.remove(drop_delivery)

    async def push_files(self, branch: str, files: dict[str, str], folder: Path) -> None:
        await asyncio.to_thread(self._push_files, branch, files, folder)

    def _push_files(self, branch: str, files: dict[str, str], folder: Path) -> None:
        """Push changed files to a branch with git, as Bob."""
        token = self.playground.hub.world.get_user("bob").token
        identity = ["-c", "user.name=bob", "-c", "user.email=bob@example.org"]
        address = self.playground.hub.url.replace("://", f"://bob:{token}@")
        run_plain_git("clone", "-q", "--branch", branch, f"{address}/{REPO}.git", str(folder))
        for path, text in files.items():
            (folder / path).write_text(text)
        run_plain_git("-C", str(folder), "add", "-A")
        run_plain_git("-C", str(folder), *identity, "commit", "-qm", "By hand")
        run_plain_git("-C", str(folder), "push", "-q", "origin", branch)


@pytest.fixture
def start_scenario(
    folder: Path,
    pair: dict[str, str],
    sandbox_factory: Callable[[Settings], Sandbox],
    migrated_file: Path,
) -> Callable[..., contextlib.AbstractAsyncContextManager[ReconcileEnvironment]]:
    """Provide a function that starts an environment without Osiris."""
    copy_database(migrated_file, folder)

    @contextlib.asynccontextmanager
    async def start_reconcile_environment(
        script: dict[str, object] = SCRIPT,
    ) -> AsyncIterator[ReconcileEnvironment]:
        script_file = folder / "script.yml"
        script_file.write_text(yaml.safe_dump(script))
        model = f"scripted:{script_file}"
        async with (
            start_environment(
                folder,
                repo=REPO,
                files=FILES,
                people=PEOPLE,
                keys=get_app_keys(),
                model=model,
                more=pair,
            ) as playground,
            playground.get_person("alice") as alice,
            playground.get_person("bob") as bob,
            playground.get_person("tina") as tina,
        ):
            yield ReconcileEnvironment(
                playground=playground,
                alice=alice,
                bob=bob,
                tina=tina,
                sandbox_factory=sandbox_factory,
            )

    return start_reconcile_environment


async def wait_until_state(osiris: Osiris, state: str, *, run: int = 1) -> Task:
    """Wait until the only task is in this state, in this run or a later one."""
    async with asyncio.timeout(20):
        while True:
            for line in await osiris.read_models.list_tasks():
                if line.task.state == state and line.task.run >= run:
                    return line.task
            await asyncio.sleep(0.05)


StartScenario = Callable[..., contextlib.AbstractAsyncContextManager[ReconcileEnvironment]]


# ── changes of the pull request ───────────────────────────────────────────────────────────────────


async def test_a_merge_that_nobody_told_of_ends_the_task(start_scenario: StartScenario):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            _, number = await env.bring_to_approval(first)
        async with env.drop_deliveries():
            await env.bob.merge_pull(number)
        async with env.run_osiris() as second:
            await wait_until_state(second, "done")
            await env.playground.wait_until_settled(second.store)
            assert await second.read_models.list_failures() == []


@pytest.mark.long
async def test_a_pull_request_that_was_closed_while_osiris_was_away_is_a_no(
    start_scenario: StartScenario,
):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            _, number = await env.bring_to_review(first)
        async with env.drop_deliveries():
            await env.bob.close_pull(number)
        async with env.run_osiris() as second:
            task = await wait_until_state(second, "rejected")
            assert task.reason == "bob closed the pull request without merging it"


@pytest.mark.long
async def test_a_branch_that_was_deleted_closes_its_pull_request_and_so_the_task(
    start_scenario: StartScenario,
):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            await env.bring_to_review(first)
            branch = (await wait_until_state(first, "review")).branch
        async with env.drop_deliveries():
            await env.bob.send_request("DELETE", f"/git/refs/heads/{branch}")
        async with env.run_osiris() as second:
            task = await wait_until_state(second, "rejected")
            assert task.reason == "bob closed the pull request without merging it"


@pytest.mark.long
async def test_commits_of_a_person_void_the_approval_of_what_was_there_before(
    start_scenario: StartScenario, folder: Path
):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            _, number = await env.bring_to_approval(first)
            branch = (await wait_until_state(first, "approved")).branch
        async with env.drop_deliveries():
            await env.push_files(branch, {"NOTES.md": "By hand.\n"}, folder / "clone")
        async with env.run_osiris() as second:
            task = await wait_until_state(second, "review")
            assert task.head == (await env.bob.get_pull(number))["head"]["sha"]
            assert task.approved is None


async def test_a_review_that_was_never_delivered_is_answered(start_scenario: StartScenario):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            _, number = await env.bring_to_review(first)
        async with env.drop_deliveries():
            line = {"path": "shop.py", "line": 2, "body": "Say why."}
            await env.bob.submit_review(number, "COMMENT", threads=[line])
            await env.tina.submit_review(number, "REQUEST_CHANGES", "I may not ask this.")
        async with env.run_osiris() as second:
            await wait_until_state(second, "review", run=2)
            await env.playground.wait_until_settled(second.store)
            assert len(await env.alice.send_request("GET", f"/pulls/{number}/commits")) == 2
            assert (await wait_until_state(second, "review")).run == 2


@pytest.mark.long
async def test_a_review_that_is_seen_and_then_delivered_as_well_is_one_run(
    start_scenario: StartScenario,
):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            _, number = await env.bring_to_review(first)
        await env.bob.submit_review(number, "REQUEST_CHANGES", "Nearly.")
        # no process is running: GitHub records the delivery as failed
        await env.playground.hub.wait_until_sent()
        async with env.run_osiris() as second:
            assert second.reconciler is not None
            await second.reconciler.compare_with_github()
            await wait_until_state(second, "review", run=2)
            await wait_until_delivered(env, "pull_request_review")
            await second.reconciler.compare_with_github()
            await env.playground.wait_until_settled(second.store)
            task = await wait_until_state(second, "review")
            assert (task.run, len(task.seen_reviews)) == (2, 1)
            assert len(await env.alice.send_request("GET", f"/pulls/{number}/commits")) == 2


async def wait_until_delivered(env: ReconcileEnvironment, event: str) -> None:
    """Wait until the last delivery of this kind was accepted."""
    async with asyncio.timeout(20):
        while [delivery for delivery in env.playground.app.deliveries if delivery.event == event][
            -1
        ].status_code != 202:
            await asyncio.sleep(0.05)


@pytest.mark.long
async def test_an_approval_and_then_its_dismissal_are_seen(start_scenario: StartScenario):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            _, number = await env.bring_to_review(first)
        async with env.drop_deliveries():
            review = await env.bob.submit_review(number, "APPROVE")
        async with env.run_osiris() as second:
            assert (await wait_until_state(second, "approved")).approved_by == "bob"
            await env.playground.wait_until_settled(second.store)
            assert not (await env.bob.get_pull(number))["draft"]
        async with env.drop_deliveries():
            await env.alice.send_request(
                "PUT", f"/pulls/{number}/reviews/{review['id']}/dismissals", message="Not yet."
            )
        async with env.run_osiris() as third:
            assert (await wait_until_state(third, "review")).approved is None


# ── changes of the issue ──────────────────────────────────────────────────────────────────────────


@pytest.mark.long
async def test_an_issue_that_was_dropped_ends_the_task(start_scenario: StartScenario):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            issue, _ = await env.bring_to_review(first)
        async with env.drop_deliveries():
            await env.alice.close_issue(issue, "not_planned")
        async with env.run_osiris() as second:
            assert (
                await wait_until_state(second, "rejected")
            ).reason == "alice closed the issue as not planned"


async def start_agent(env: ReconcileEnvironment, osiris: Osiris) -> int:
    """Start a run, and wait until it is in its first tool call. Return the number of the issue."""
    issue = await env.alice.file_issue("add subtracts")
    await env.alice.add_label(issue)
    await wait_until_state(osiris, "running")
    async with asyncio.timeout(20):
        while (
            not (steps := await osiris.read_models.list_steps(1))
            or steps[-1].message.role != "assistant"
        ):
            await asyncio.sleep(0.05)
    return issue


async def test_a_label_that_was_taken_off_stops_the_work(start_scenario: StartScenario):
    async with start_scenario(SLOW_SCRIPT) as env:
        async with env.run_osiris() as first:
            issue = await start_agent(env, first)
        async with env.drop_deliveries():
            await env.alice.remove_label(issue)
        async with env.run_osiris() as second:
            assert (
                await wait_until_state(second, "cancelled")
            ).reason == "alice withdrew the request"


@pytest.mark.long
async def test_an_issue_that_was_closed_stops_the_work(start_scenario: StartScenario):
    async with start_scenario(SLOW_SCRIPT) as env:
        async with env.run_osiris() as first:
            issue = await start_agent(env, first)
        async with env.drop_deliveries():
            await env.alice.close_issue(issue)
        async with env.run_osiris() as second:
            assert (
                await wait_until_state(second, "cancelled")
            ).reason == "alice withdrew the request"


async def test_a_label_that_was_taken_off_by_who_may_not_steer_stops_nothing(
    start_scenario: StartScenario,
):
    async with start_scenario(SLOW_SCRIPT) as env, env.run_osiris() as osiris:
        assert osiris.reconciler is not None
        issue = await start_agent(env, osiris)
        async with env.drop_deliveries():
            await env.tina.remove_label(issue)
        await osiris.reconciler.compare_with_github()
        await env.wait_until_decided(osiris)
        assert [line.task.state for line in await osiris.read_models.list_tasks()] == ["running"]


@pytest.mark.long
@pytest.mark.parametrize("withdrawal", ["unlabelled", "closed"])
async def test_what_was_told_and_taken_up_again_is_not_told_anew(
    start_scenario: StartScenario, withdrawal: str
):
    """The issue stays unlabelled or closed: a later comparison must not stop the work a second
    time."""
    async with start_scenario(SLOW_SCRIPT) as env:
        async with env.run_osiris() as first:
            issue = await start_agent(env, first)
            await (
                env.alice.remove_label(issue)
                if withdrawal == "unlabelled"
                else env.alice.close_issue(issue)
            )
            await wait_until_state(first, "cancelled")
            await env.alice.add_comment(issue, "/osiris retry")
            await wait_until_state(first, "running", run=2)
        async with env.run_osiris() as second:
            assert second.reconciler is not None
            await second.reconciler.compare_with_github()
            await env.wait_until_decided(second)
            [line] = await second.read_models.list_tasks()
            assert (line.task.state in ("queued", "running"), line.task.run) == (True, 2)


@pytest.mark.long
async def test_what_was_withdrawn_and_taken_up_again_while_osiris_was_away_goes_on(
    start_scenario: StartScenario,
):
    async with start_scenario(SLOW_SCRIPT) as env:
        async with env.run_osiris() as first:
            issue = await start_agent(env, first)
        await env.alice.remove_label(issue)
        await env.alice.add_comment(issue, "/osiris retry")
        # no process is running: GitHub records both deliveries as failed
        await env.playground.hub.wait_until_sent()
        async with env.run_osiris() as second:
            assert second.reconciler is not None
            await wait_until_state(second, "running", run=2)
            await second.reconciler.compare_with_github()
            await wait_until_delivered(env, "issue_comment")
            await env.wait_until_decided(second)
            [line] = await second.read_models.list_tasks()
            assert (line.task.state in ("queued", "running"), line.task.run) == (True, 2)


# ── names and access of repositories ──────────────────────────────────────────────────────────────


async def record_writes(env: ReconcileEnvironment) -> list[str]:
    """Record Osiris's writes to the repository from now on."""
    writes: list[str] = []

    async def record_write(request: Request, forward) -> Response:
        if is_write(request) and from_osiris(request):
            writes.append(f"{request.method} {request.url.path}")
        return await forward()

    env.playground.hub.interceptors.append(record_write)
    return writes


@pytest.mark.long
@pytest.mark.parametrize("is_delivered", [True, False], ids=["told", "unheard"])
async def test_an_archived_repository_is_left_alone_until_it_can_be_written_again(
    start_scenario: StartScenario, is_delivered: bool
):
    async with start_scenario() as env:
        env.playground.hub.world.set_role(env.playground.hub.world.get_repo(REPO), "alice", "admin")
        async with env.run_osiris() as first:
            issue, number = await env.bring_to_review(first)
            if is_delivered:
                await env.alice.send_request("PATCH", "", archived=True)
                await wait_until_state(first, "paused")
        if not is_delivered:
            async with env.drop_deliveries():
                await env.alice.send_request("PATCH", "", archived=True)
        writes = await record_writes(env)
        async with env.run_osiris() as second:
            task = await wait_until_state(second, "paused")
            assert (task.read_only, task.reason) == (True, "the repository acme/shop is archived")
            assert writes == []
            await env.alice.send_request("PATCH", "", archived=False)
            assert not (await wait_until_state(second, "review")).read_only
            await env.bob.submit_review(number, "REQUEST_CHANGES", "Nearly.")
            await wait_until_state(second, "review", run=2)
            await env.playground.wait_until_settled(second.store)
            assert await second.read_models.list_failures() == []
            assert len(await list_bot_comments(env, issue)) == 1


async def list_bot_comments(env: ReconcileEnvironment, number: int) -> list[str]:
    return [
        c["body"]
        for c in await env.alice.list_comments(number)
        if c["user"]["login"] == "osiris[bot]"
    ]


async def test_a_run_goes_on_when_the_suspension_of_the_app_has_ended(
    start_scenario: StartScenario,
):
    script = {"runs": [build_run(BLOCKING_STEP, *FIX_STEPS)]}
    async with start_scenario(script) as env, env.run_osiris() as osiris:
        await start_agent(env, osiris)
        installation = env.playground.hub.get_installation(env.playground.app, REPO)
        env.playground.hub.suspend_installation(
            installation, env.playground.hub.world.get_user("alice")
        )
        task = await wait_until_state(osiris, "paused")
        assert (task.read_only, task.run) == (True, 1)
        assert "suspended" in task.reason
        env.playground.hub.unsuspend_installation(installation)
        assert (await wait_until_state(osiris, "running")).run == 1


@pytest.mark.long
async def test_a_suspension_while_osiris_was_away_is_seen_and_so_is_its_end(
    start_scenario: StartScenario,
):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            await env.bring_to_review(first)
        installation = env.playground.hub.get_installation(env.playground.app, REPO)
        async with env.drop_deliveries():
            env.playground.hub.suspend_installation(installation)
        async with env.run_osiris() as second:
            assert (await wait_until_state(second, "paused")).read_only
        async with env.drop_deliveries():
            env.playground.hub.unsuspend_installation(installation)
        async with env.run_osiris() as third:
            assert not (await wait_until_state(third, "review")).read_only


@pytest.mark.long
async def test_an_app_that_was_taken_off_and_installed_anew_goes_on(start_scenario: StartScenario):
    async with start_scenario() as env, env.run_osiris() as osiris:
        await env.bring_to_review(osiris)
        env.playground.hub.remove_installation(
            env.playground.hub.get_installation(env.playground.app, REPO)
        )
        assert (
            await wait_until_state(osiris, "paused")
        ).reason == f"the App is not installed on {REPO}"
        env.playground.hub.install_app(env.playground.app, REPO)
        await wait_until_state(osiris, "review")


@pytest.mark.long
async def test_a_repository_that_is_gone_is_not_asked_for_over_and_over(
    start_scenario: StartScenario,
):
    async with start_scenario() as env:
        env.playground.hub.world.set_role(env.playground.hub.world.get_repo(REPO), "alice", "admin")
        async with env.run_osiris() as first:
            await env.bring_to_review(first)
        async with env.drop_deliveries():
            await env.alice.send_request("DELETE", "")
        async with env.run_osiris() as second:
            assert (
                await wait_until_state(second, "paused")
            ).reason == f"the App is not installed on {REPO}"
            reads = record_reads(env)
            assert second.reconciler is not None
            await second.reconciler.compare_with_github()
            assert reads == ["/api/v3/repos/acme/shop/installation"]


@pytest.mark.long
@pytest.mark.parametrize("is_delivered", [True, False], ids=["told", "unheard"])
async def test_a_renamed_repository_keeps_its_task_its_comment_and_its_pull_request(
    start_scenario: StartScenario, is_delivered: bool
):
    async with start_scenario() as env:
        env.playground.hub.world.set_role(env.playground.hub.world.get_repo(REPO), "alice", "admin")
        async with env.run_osiris() as first:
            issue, number = await env.bring_to_review(first)
            if is_delivered:
                await env.alice.send_request("PATCH", "", name="store")
                await wait_until_in_repo(first, "acme/store")
        if not is_delivered:
            async with env.drop_deliveries():
                await env.alice.send_request("PATCH", "", name="store")
        async with env.run_osiris() as second, get_person_in(env, "bob", "acme/store") as bob:
            await wait_until_in_repo(second, "acme/store")
            await bob.submit_review(number, "REQUEST_CHANGES", "Nearly.")
            await wait_until_state(second, "review", run=2)
            await env.playground.wait_until_settled(second.store)
            assert len(await bob.send_request("GET", f"/pulls/{number}/commits")) == 2
            for conversation in (issue, number):
                comments = await bob.list_comments(conversation)
                assert [c["user"]["login"] for c in comments].count("osiris[bot]") == 1
            assert len(await bob.list_pulls()) == 1
            assert await second.read_models.list_failures() == []


def get_person_in(env: ReconcileEnvironment, login: str, repo: str) -> Person:
    """Return a person who uses a repository under its new name."""
    return Person(
        env.playground.hub.api_url, login, env.playground.hub.world.get_user(login).token, repo
    )


async def wait_until_in_repo(osiris: Osiris, repo: str) -> None:
    async with asyncio.timeout(20):
        while [line.task.issue.repo for line in await osiris.read_models.list_tasks()] != [repo]:
            await asyncio.sleep(0.05)


@pytest.mark.long
async def test_a_repository_that_was_given_away_waits_until_the_app_is_installed_there(
    start_scenario: StartScenario,
):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            _, number = await env.bring_to_review(first)
        async with env.drop_deliveries():
            env.playground.hub.transfer_repo(REPO, "globex")
        async with env.run_osiris() as second, get_person_in(env, "bob", "globex/shop") as bob:
            assert (await wait_until_state(second, "paused")).read_only
            env.playground.hub.install_app(env.playground.app, "globex/shop")
            await wait_until_state(second, "review")
            await wait_until_in_repo(second, "globex/shop")
            await bob.submit_review(number, "APPROVE")
            await wait_until_state(second, "approved")
            await env.playground.wait_until_settled(second.store)
            assert not (await bob.get_pull(number))["draft"]


# ── deliveries ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
async def test_what_could_not_be_delivered_is_asked_for_in_its_order(start_scenario: StartScenario):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            _, number = await env.bring_to_review(first)
        for n in range(3):
            await env.alice.add_label(await env.alice.file_issue(f"Another {n}"))
        await env.bob.submit_review(number, "APPROVE")
        await env.playground.hub.wait_until_sent()
        async with env.run_osiris() as second:
            async with asyncio.timeout(30):
                while [line.task.state for line in await second.read_models.list_tasks()].count(
                    "review"
                ) < 3:
                    await asyncio.sleep(0.05)
            await env.playground.wait_until_settled(second.store)
            assert (await second.read_models.find_task(1)).task.state == "approved"
            assert all(len(statuses) <= 2 for statuses in list_delivery_statuses(env).values())
            sent_guids = [delivery.guid for delivery in env.playground.app.deliveries]
            redelivered_guids = [
                guid for guid, statuses in list_delivery_statuses(env).items() if len(statuses) == 2
            ]
            assert len(redelivered_guids) >= 4
            assert sorted(redelivered_guids, key=sent_guids.index) == sorted(
                redelivered_guids, key=sent_guids[::-1].index, reverse=True
            )


def list_delivery_statuses(env: ReconcileEnvironment) -> dict[str, list[int]]:
    """Return the status codes of each delivery by its guid."""
    statuses: dict[str, list[int]] = {}
    for delivery in env.playground.app.deliveries:
        statuses.setdefault(delivery.guid, []).append(delivery.status_code)
    return statuses


@pytest.mark.long
async def test_a_delivery_behind_a_hundred_others_is_found(start_scenario: StartScenario):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            await env.playground.wait_until_settled(first.store)
        issue = await env.alice.file_issue("add subtracts")
        await env.alice.add_label(issue)
        for n in range(130):
            await env.alice.add_comment(issue, f"Me too, {n}.")
        await env.playground.hub.wait_until_sent()
        async with env.run_osiris() as second:
            await wait_until_state(second, "review")


async def test_what_somebody_else_took_is_asked_for(start_scenario: StartScenario):
    """GitHub has recorded a 202, but this database never received the delivery: for example, it is
    an older copy."""
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            await env.bring_to_review(first)

        async def accept_elsewhere(delivery: Delivery, send: PendingDelivery) -> None:
            delivery.delivered = env.playground.hub.world.now()
            delivery.status_code = 202
            delivery.status = "OK"

        env.playground.hub.hooks.interceptors.append(accept_elsewhere)
        await env.alice.add_label(await env.alice.file_issue("Another"))
        await env.playground.hub.wait_until_sent()
        env.playground.hub.hooks.interceptors.remove(accept_elsewhere)
        async with env.run_osiris() as second:
            async with asyncio.timeout(20):
                while len(await second.read_models.list_tasks()) < 2:
                    await asyncio.sleep(0.05)


@pytest.mark.long
async def test_a_delivery_that_is_never_taken_is_not_asked_for_for_ever(
    start_scenario: StartScenario,
):
    async with start_scenario() as env, env.run_osiris() as osiris:
        assert osiris.reconciler is not None
        await env.bring_to_review(osiris)

        async def refuse_delivery(_delivery: Delivery, _send: PendingDelivery) -> None: ...

        env.playground.hub.hooks.interceptors.append(refuse_delivery)
        await env.alice.file_issue("Another")
        for _ in range(7):
            await env.playground.hub.wait_until_sent()
            await osiris.reconciler.missed_deliveries.request_again()
        await env.playground.hub.wait_until_sent()
        delivery_counts = Counter(delivery.guid for delivery in env.playground.app.deliveries)
        # GitHub sends it once, and four times at Osiris's request
        assert max(delivery_counts.values()) == 5


# ── cost and obstacles ────────────────────────────────────────────────────────────────────────────


def record_reads(env: ReconcileEnvironment) -> list[str]:
    """Record Osiris's reads from now on."""
    reads: list[str] = []

    async def record_read(request: Request, forward) -> Response:
        if from_osiris(request) and request.method == "GET":
            reads.append(request.url.path)
        return await forward()

    env.playground.hub.interceptors.append(record_read)
    return reads


async def test_a_quiet_look_costs_one_conditional_request_a_repository_and_one_for_deliveries(
    start_scenario: StartScenario,
):
    async with start_scenario() as env, env.run_osiris() as osiris:
        assert osiris.reconciler is not None
        await env.bring_to_review(osiris)
        responses: list[tuple[str, int]] = []

        async def record_response(request: Request, forward) -> Response:
            response = await forward()
            if from_osiris(request):
                responses.append((request.url.path.removeprefix("/api/v3"), response.status_code))
            return response

        env.playground.hub.interceptors.append(record_response)
        expected_responses = [("/app/hook/deliveries", 200), (f"/repos/{REPO}/issues", 304)]
        async with asyncio.timeout(30):  # Osiris reads again what changed in the last seconds
            while responses != expected_responses:
                responses.clear()
                await osiris.reconciler.run_once()
                await asyncio.sleep(0.1)
        used_before = env.playground.hub.rates.describe_limit(get_installation_caller(env), "core")[
            "used"
        ]
        await osiris.reconciler.compare_with_github()
        # a 304 does not count
        assert (
            env.playground.hub.rates.describe_limit(get_installation_caller(env), "core")["used"]
            == used_before
        )
        responses.clear()
        [issue] = [
            number
            for number, issue_or_pull in env.playground.hub.world.get_repo(REPO).issues.items()
            if issue_or_pull.pull is None
        ]
        await env.alice.add_comment(issue, "By the way …")
        await env.playground.wait_until_settled(osiris.store)
        await osiris.reconciler.compare_with_github()
        assert (f"/repos/{REPO}/issues", 200) in responses
        assert (f"/repos/{REPO}/issues/{issue}", 200) in responses


def get_installation_caller(env: ReconcileEnvironment) -> Caller:
    """Return the caller for which devhub counts the requests of Osiris."""
    installation = env.playground.hub.get_installation(env.playground.app, REPO)
    grant = TokenGrant(
        token="", installation=installation, permissions={}, repos=(), narrowed=False, expires=0.0
    )
    return Caller(user=env.playground.app.bot, app=env.playground.app, grant=grant)


@pytest.mark.long
@pytest.mark.parametrize(
    "status_code", [502, 404, 200], ids=["an outage", "gone", "a page of a proxy"]
)
async def test_a_task_that_cannot_be_looked_at_keeps_nobody_from_the_others(
    start_scenario: StartScenario, status_code: int
):
    async with start_scenario() as env:
        async with env.run_osiris() as first:
            await env.bring_to_review(first)
            await env.alice.add_label(await env.alice.file_issue("Another"))
            async with asyncio.timeout(20):
                while [line.task.state for line in await first.read_models.list_tasks()] != [
                    "review",
                    "review",
                ]:
                    await asyncio.sleep(0.05)
            await env.playground.wait_until_settled(first.store)
            pulls = sorted(line.task.pull or 0 for line in await first.read_models.list_tasks())
        async with env.drop_deliveries():
            for pull in pulls:
                await env.bob.close_pull(pull)
        is_repaired = False
        responses = list[tuple[str, int]]()

        async def disturb_read(request: Request, forward) -> Response:
            is_disturbed = (
                from_osiris(request)
                and not is_repaired
                and request.url.path.endswith(f"/pulls/{pulls[0]}")
            )
            response = (
                JSONResponse({"message": "no"}, status_code) if is_disturbed else await forward()
            )
            responses.append((request.url.path.rpartition("/")[2], response.status_code))
            return response

        env.playground.hub.interceptors.append(disturb_read)
        async with env.run_osiris() as second:
            assert second.reconciler is not None
            async with asyncio.timeout(20):
                while sorted(line.task.state for line in await second.read_models.list_tasks()) != [
                    "rejected",
                    "review",
                ]:
                    await asyncio.sleep(0.05)
            # nothing changes any more: Osiris reads only pending issues
            async with asyncio.timeout(20):
                while not {("issues", 304), (str(pulls[0]), status_code)} <= set(responses):
                    responses.clear()
                    await second.reconciler.compare_with_github()
                    await asyncio.sleep(0.1)
            is_repaired = True
            await second.reconciler.compare_with_github()
            async with asyncio.timeout(20):
                while [line.task.state for line in await second.read_models.list_tasks()] != [
                    "rejected",
                    "rejected",
                ]:
                    await asyncio.sleep(0.05)


@pytest.mark.long
async def test_a_long_pause_that_github_asks_for_ends_the_look(start_scenario: StartScenario):
    async with start_scenario() as env, env.run_osiris() as osiris:
        assert osiris.reconciler is not None
        await env.bring_to_review(osiris)
        osiris.reconciler.request()
        refused_paths: list[str] = []

        async def refuse_reads(request: Request, forward) -> Response:
            if from_osiris(request) and request.url.path.startswith("/api/v3/repos/"):
                refused_paths.append(request.url.path)
                return JSONResponse(
                    {"message": "secondary rate limit"}, 429, headers={"retry-after": "600"}
                )
            return await forward()

        env.playground.hub.interceptors.append(refuse_reads)
        with pytest.raises(Unavailable, match="asks for a pause") as error:
            await osiris.reconciler.compare_with_github()
        assert error.value.retry_in == 600
        assert len(set(refused_paths)) == 1
