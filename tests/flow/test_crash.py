"""SIGKILL at every external write and at random moments. The visible result is always the same."""

import asyncio
import contextlib
import hashlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import jwt
import pytest
import yaml
from starlette.requests import Request
from starlette.responses import Response

from fake_vendors import server as loopback
from osiris.bootstrap import Timeouts
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from osiris.queue.database import connect
from osiris.queue.read_models import ReadModels
from osiris.queue.task_store import Store
from tests.flow.conftest import FILES, PEOPLE, REPO, SCRIPT, get_app_keys, get_vendor_settings
from tests.flow.support.osiris_process import RestartableOsiris
from tests.flow.test_outages import from_osiris, is_write


@dataclass(kw_only=True)
class ProcessKiller:
    """Kills the process twice at each write: before devhub performs it, and, when it is sent again,
    after devhub has performed it and before the answer is sent."""

    process: RestartableOsiris
    write_counts: dict[str, int] = field(default_factory=dict)

    async def __call__(self, request: Request, forward) -> Response:
        if not is_write(request) or not from_osiris(request):
            return await forward()
        body = b"" if "receive-pack" in request.url.path else await request.body()
        write = f"{request.method} {request.url.path} {hashlib.sha256(body).hexdigest()[:8]}"
        self.write_counts[write] = self.write_counts.get(write, 0) + 1
        if self.write_counts[write] > 2:
            return await forward()
        if self.write_counts[write] == 2:
            await forward()
        await asyncio.to_thread(self.process.restart)
        return Response(status_code=502)


@dataclass(frozen=True, kw_only=True)
class CrashEnvironment:
    """The environment with Osiris as a separate process, which tests can kill."""

    playground: Environment
    process: RestartableOsiris
    store: Store
    read_models: ReadModels
    alice: Person
    bob: Person

    async def wait_until_settled(self) -> None:
        """Wait until no work is in progress. Redeliver what failed while no process was running,
        through the API."""
        while True:
            await self.playground.wait_until_settled(self.store)
            # Osiris requests redelivery itself as well
            if not await self._redeliver_lost() and await self.store.next_due() is None:
                return

    async def _redeliver_lost(self) -> bool:
        """Redeliver what was not delivered. Return whether there was anything."""
        now = int(time.time())
        claims = {"iat": now - 60, "exp": now + 300, "iss": str(self.playground.app.id)}
        token = jwt.encode(claims, self.playground.app.private_key, "RS256")
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(
            base_url=f"{self.playground.hub.api_url}/", headers=headers
        ) as http:
            deliveries = (await http.get("app/hook/deliveries", params={"per_page": 100})).json()
            delivered_guids = {d["guid"] for d in deliveries if d["status_code"] == 202}
            lost_ids = {d["guid"]: d["id"] for d in deliveries if d["guid"] not in delivered_guids}
            for id in lost_ids.values():
                (await http.post(f"app/hook/deliveries/{id}/attempts")).raise_for_status()
        return bool(lost_ids)

    async def run_task_to_merge(self) -> dict[str, object]:
        """Run a task from label to merge. Return the visible result."""
        issue = await self.alice.file_issue("add subtracts", "add(1, 2) is -1")
        await self.alice.add_label(issue)
        await self.wait_until_settled()
        [pull] = await self.alice.list_pulls()
        number = pull["number"]
        await self.bob.submit_review(number, "REQUEST_CHANGES", "Nearly.")
        await self.wait_until_settled()
        await self.bob.submit_review(number, "APPROVE")
        await self.wait_until_settled()
        await self.bob.merge_pull(number)
        await self.wait_until_settled()
        return await self.read_result(issue, number)

    async def read_result(self, issue: int, number: int) -> dict[str, object]:
        """Return what people see of a task that has ended, and its counts in the database."""
        commits = await self.alice.send_request("GET", f"/pulls/{number}/commits")
        heads = [commit["sha"] for commit in commits]
        checks = [
            await self.alice.send_request("GET", f"/commits/{head}/check-runs") for head in heads
        ]
        [line] = await self.read_models.list_tasks()
        replies = [
            step.message
            for step in await self.read_models.list_steps(line.id)
            if step.message.role == "assistant"
        ]
        interrupted_count = sum(
            "interrupted" in step.message.text
            for step in await self.read_models.list_steps(line.id)
        )
        return {
            "task": (line.task.state, line.task.run, line.waiting),
            "issue": (await self.alice.send_request("GET", f"/issues/{issue}"))["state"],
            "pulls": len(await self.alice.list_pulls()),
            "commits": [commit["commit"]["message"].partition("\n")[0] for commit in commits],
            "comments": [len(await self.alice.list_comments(n)) for n in (issue, number)],
            "check runs": [[run["conclusion"] for run in check["check_runs"]] for check in checks],
            "model calls": len(replies) - interrupted_count,
            "failures": [failure.error for failure in await self.read_models.list_failures()],
        }


EXPECTED = {
    "task": ("done", 2, 0),
    "issue": "closed",
    "pulls": 1,
    "commits": ["add subtracts", "Answer the review of bob"],
    "comments": [1, 1],
    "check runs": [["neutral"], ["success"]],
    "model calls": 5,
    "failures": [],
}


@contextlib.asynccontextmanager
async def start_crash_environment(
    folder: Path, pair: dict[str, str], model: dict[str, str] | None = None
) -> AsyncIterator[CrashEnvironment]:
    """Start an environment with Osiris as a separate process."""
    script_file = folder / "script.yml"
    script_file.write_text(yaml.safe_dump(SCRIPT))
    more = {**pair, **(model or {"osiris_model": f"scripted:{script_file}"})}
    async with start_environment(
        folder, repo=REPO, files=FILES, people=PEOPLE, keys=get_app_keys(), more=more
    ) as playground:
        process = RestartableOsiris(playground.settings)
        store = Store(engine := connect(playground.settings.database))
        process.start()
        try:
            while not await _is_up(playground):
                await asyncio.sleep(0.05)
            async with playground.get_person("alice") as alice, playground.get_person("bob") as bob:
                yield CrashEnvironment(
                    playground=playground,
                    process=process,
                    store=store,
                    read_models=ReadModels(engine),
                    alice=alice,
                    bob=bob,
                )
        finally:
            process.kill()
            await store.close()


async def _is_up(playground: Environment) -> bool:
    async with httpx.AsyncClient() as http:
        try:
            return (
                await http.get(f"http://127.0.0.1:{playground.settings.osiris_port}/healthz")
            ).is_success
        except httpx.TransportError:
            return False


ONLY_SQLITE = pytest.mark.parametrize("pair", ["embedded"], indirect=True)
"""`test_several_workers.py` kills workers on PostgreSQL and Redis. Here only one test does."""


@ONLY_SQLITE
@pytest.mark.long
async def test_killed_before_and_after_every_write_the_result_is_the_same(
    folder: Path, pair: dict[str, str]
):
    async with start_crash_environment(folder, pair) as env:
        killer = ProcessKiller(process=env.process)
        env.playground.hub.interceptors.append(killer)
        assert await env.run_task_to_merge() == EXPECTED
        writes_killed_twice = [write for write, times in killer.write_counts.items() if times >= 2]
        assert (
            len(writes_killed_twice) >= 8
        )  # a restart makes the second attempt of the others unnecessary
        assert env.process.count >= 2 * len(writes_killed_twice)


@pytest.mark.parametrize("pair", ["servers"], indirect=True)
@pytest.mark.long
async def test_killed_at_random_moments_the_result_is_the_same(folder: Path, pair: dict[str, str]):
    rng = random.Random(20)
    async with start_crash_environment(folder, pair) as env:

        async def kill_at_random_moments() -> None:
            for _ in range(15):
                await asyncio.sleep(rng.uniform(0.1, 0.7))
                await asyncio.to_thread(env.process.restart)

        killer_task = asyncio.create_task(kill_at_random_moments())
        assert await env.run_task_to_merge() == EXPECTED
        await killer_task
        assert (await env.read_models.list_tasks())[0].task.state == "done"


@ONLY_SQLITE
async def test_killed_while_a_model_thinks_the_next_life_sends_back_all_that_it_said(
    folder: Path, pair: dict[str, str]
):
    async with (
        loopback.serve_vendors(SCRIPT) as vendors,
        start_crash_environment(folder, pair, get_vendor_settings(vendors, "anthropic")) as env,
    ):

        async def kill_at_model_requests() -> None:
            for request_count in (3, 7):
                while len(vendors.requests) < request_count:
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(env.process.restart)

        killer_task = asyncio.create_task(kill_at_model_requests())
        # the server requires the signatures of all replies that it sent to earlier processes
        assert await env.run_task_to_merge() == EXPECTED
        await killer_task


@pytest.mark.long
async def test_a_run_whose_workspace_is_lost_does_its_steps_again_and_goes_on(folder: Path):
    steps = [
        {"call": {"write_file": {"path": "first.txt", "content": "1\n"}}},
        {
            "call": {"run_command": {"command": "echo 2 >> second.txt; grep -c . second.txt"}},
            "expect": {"exit_code": 0},
        },
        {
            "call": {"run_command": {"command": "sleep 2; cat first.txt second.txt"}},
            "expect": {"contains": "1\n2"},
        },
        {"call": {"submit": {"summary": "Done."}}},
    ]
    script_file = folder / "script.yml"
    script_file.write_text(yaml.safe_dump({"runs": [{"steps": steps}]}))
    async with start_environment(
        folder,
        repo=REPO,
        files=FILES,
        people=PEOPLE,
        keys=get_app_keys(),
        model=f"scripted:{script_file}",
    ) as playground:
        async with (
            playground.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as first,
            playground.get_person("alice") as alice,
        ):
            issue = await alice.file_issue("x")
            await alice.add_label(issue)
            while (
                sum(
                    step.message.role == "assistant"
                    for step in await first.read_models.list_steps(1)
                )
                < 3
            ):
                await asyncio.sleep(0.05)
        for name in first.sandbox.list_sessions():
            await first.sandbox.remove(name)
        async with (
            playground.run_osiris(timeouts=Timeouts(pauses=(0.05,))) as second,
            playground.get_person("alice") as alice,
        ):
            await playground.wait_until_settled(second.store)
            [pull] = await alice.list_pulls()
            files = await alice.send_request("GET", f"/pulls/{pull['number']}/files")
            assert {(f["filename"], f["additions"]) for f in files} == {
                ("first.txt", 1),
                ("second.txt", 1),
            }
            answers = [
                step.message.text
                for step in await second.read_models.list_steps(1)
                if step.message.role == "tool"
            ]
            assert sum("interrupted" in answer for answer in answers) == 1
