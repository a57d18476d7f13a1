"""`osiris web` and `osiris worker` as an operator starts them."""

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from bench.process import environment
from osiris.config.settings import Settings
from osiris.playground.environment import Environment, start_environment
from osiris.queue.database import connect
from osiris.queue.task_store import Store
from tests.conftest import a_database
from tests.flow.conftest import FILES, FIX, PEOPLE, REPO, run
from tests.servers import Postgres, Redis

PATIENCE = 20.0  # seconds


async def start_process(settings: Settings, what: str) -> Process:
    argv = (sys.executable, "-m", "osiris", what)
    return await asyncio.create_subprocess_exec(
        *argv, env=environment(settings), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    )


async def run_refused_command(settings: Settings, what: str) -> tuple[int | None, str]:
    """Run a command that does not start. Return its exit code and stderr."""
    process = await start_process(settings, what)
    async with asyncio.timeout(PATIENCE):
        _, said = await process.communicate()
    return process.returncode, said.decode()


@contextlib.asynccontextmanager
async def run_until_stopped(settings: Settings, what: str, sentence: str) -> AsyncIterator[None]:
    """Run a command until the block ends; the block starts when the command has printed `sentence`.
    At SIGTERM the command ends in an orderly way.

    The server of the web process receives the signal a second time when everything is closed; that
    is an orderly end as well.
    """
    process = await start_process(settings, what)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while sentence not in (line := (await process.stderr.readline()).decode()):
                assert line, f"osiris {what} ended"
        draining = asyncio.create_task(process.stderr.read())
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    assert "Traceback" not in (await draining).decode()


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    redis_server.flush()
    return redis_server.url


@contextlib.asynccontextmanager
async def start_playground(
    place: Path, database: str, redis_url: str
) -> AsyncIterator[Environment]:
    script = place / "script.yml"
    script.write_text(yaml.safe_dump({"runs": [run(*FIX)]}))
    more = {"database_url": database, "redis_url": redis_url, "osiris_model": f"scripted:{script}"}
    async with start_environment(
        place, repo=REPO, files=FILES, people=PEOPLE, more=more
    ) as playground:
        yield playground


@pytest.mark.first_case
@pytest.mark.parametrize("what", ["web", "worker"])
async def test_on_a_database_of_no_version_the_commands_say_what_to_run(
    place: Path, database: str, redis_url: str, what: str
):
    async with start_playground(place, database, redis_url) as playground:
        code, said = await run_refused_command(playground.settings, what)
        assert code == 1
        assert said.strip().splitlines()[-1].startswith("osiris: the database ")
        assert "run `osiris migrate` first" in said
        assert "Traceback" not in said


@pytest.mark.long
async def test_web_and_worker_do_the_work_and_end_when_they_are_told_to(
    place: Path, postgres: Postgres, migrated: str, redis_url: str
):
    with a_database(postgres, migrated) as database:
        async with (
            start_playground(place, database, redis_url) as playground,
            playground.get_person("alice") as alice,
        ):
            worker = playground.settings.model_copy(update={"osiris_data_dir": place / "worker"})
            async with (
                run_until_stopped(
                    playground.settings, "web", "osiris listens on http://127.0.0.1:"
                ),
                run_until_stopped(worker, "worker", "osiris works on "),
            ):
                code, said = await run_refused_command(worker, "worker")
                assert (code, "another `osiris serve` or `osiris worker` works in" in said) == (
                    1,
                    True,
                )
                await alice.add_label(await alice.file_issue("add subtracts", "add(1, 2) is -1"))
                await playground.wait_until_settled(store := Store(connect(database)))
                await store.close()
                assert [pull["draft"] for pull in await alice.list_pulls()] == [True]
