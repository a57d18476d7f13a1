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

from bench.process import build_environ
from osiris.config.settings import Settings
from osiris.playground.environment import Environment, start_environment
from osiris.queue.database import connect
from osiris.queue.task_store import Store
from tests.conftest import create_test_database
from tests.flow.conftest import FILES, FIX_STEPS, PEOPLE, REPO, build_run
from tests.servers import Postgres, Redis

TIMEOUT = 20.0  # seconds


async def start_process(settings: Settings, command: str) -> Process:
    """Start `osiris COMMAND`, with a pipe for its stderr."""
    argv = (sys.executable, "-m", "osiris", command)
    return await asyncio.create_subprocess_exec(
        *argv, env=build_environ(settings), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    )


async def run_refused_command(settings: Settings, command: str) -> tuple[int | None, str]:
    """Run a command that refuses to start. Return its exit code and its stderr."""
    process = await start_process(settings, command)
    async with asyncio.timeout(TIMEOUT):
        _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


@contextlib.asynccontextmanager
async def run_until_stopped(
    settings: Settings, command: str, ready_message: str
) -> AsyncIterator[None]:
    """Run a command until the block ends. The block starts when the command has printed
    `ready_message`. At its end the command receives SIGTERM, and must exit without an error.

    The web server receives the signal a second time after it has closed everything; that must not
    be an error either.
    """
    process = await start_process(settings, command)
    assert process.stderr is not None
    try:
        async with asyncio.timeout(TIMEOUT):
            while ready_message not in (line := (await process.stderr.readline()).decode()):
                assert line, f"osiris {command} ended"
        reading_stderr = asyncio.create_task(process.stderr.read())
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    assert "Traceback" not in (await reading_stderr).decode()


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    redis_server.flush()
    return redis_server.url


@contextlib.asynccontextmanager
async def start_playground(
    folder: Path, database: str, redis_url: str
) -> AsyncIterator[Environment]:
    """Start an environment for commands that use a PostgreSQL and a Redis."""
    script_file = folder / "script.yml"
    script_file.write_text(yaml.safe_dump({"runs": [build_run(*FIX_STEPS)]}))
    more = {
        "database_url": database,
        "redis_url": redis_url,
        "osiris_model": f"scripted:{script_file}",
    }
    async with start_environment(
        folder, repo=REPO, files=FILES, people=PEOPLE, more=more
    ) as playground:
        yield playground


@pytest.mark.first_case
@pytest.mark.parametrize("command", ["web", "worker"])
async def test_on_a_database_of_no_version_the_commands_say_what_to_run(
    folder: Path, database: str, redis_url: str, command: str
):
    async with start_playground(folder, database, redis_url) as playground:
        code, stderr = await run_refused_command(playground.settings, command)
        assert code == 1
        assert stderr.strip().splitlines()[-1].startswith("osiris: the database ")
        assert "run `osiris migrate` first" in stderr
        assert "Traceback" not in stderr


@pytest.mark.long
async def test_web_and_worker_do_the_work_and_end_when_they_are_told_to(
    folder: Path, postgres: Postgres, migrated_database: str, redis_url: str
):
    with create_test_database(postgres, migrated_database) as database:
        async with (
            start_playground(folder, database, redis_url) as playground,
            playground.get_person("alice") as alice,
        ):
            worker_settings = playground.settings.model_copy(
                update={"osiris_data_dir": folder / "worker"}
            )
            async with (
                run_until_stopped(
                    playground.settings, "web", "osiris listens on http://127.0.0.1:"
                ),
                run_until_stopped(worker_settings, "worker", "osiris works on "),
            ):
                code, stderr = await run_refused_command(worker_settings, "worker")
                assert (code, "another `osiris serve` or `osiris worker` works in" in stderr) == (
                    1,
                    True,
                )
                await alice.add_label(await alice.file_issue("add subtracts", "add(1, 2) is -1"))
                await playground.wait_until_settled(store := Store(connect(database)))
                await store.close()
                assert [pull["draft"] for pull in await alice.list_pulls()] == [True]
