"""Fixtures for a complete Osiris against devhub: one process, real HTTP, a real sandbox, a real
database and real git."""

import asyncio
import contextlib
import functools
import logging
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import create_engine, text

from fake_vendors import server as loopback
from fake_vendors.server import Vendors
from osiris.bootstrap import Osiris, Timeouts
from osiris.config.settings import Settings
from osiris.core.ports.models import Message
from osiris.core.ports.sandbox import Sandbox
from osiris.core.ports.task_reader import Failure
from osiris.core.task import Task
from osiris.devhub.tokens import KeyPair, generate_key_pair
from osiris.factories import create_sandbox
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from osiris.queue.tables import Table
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.options import SandboxOptions
from tests.conftest import create_test_folder, list_disks
from tests.forkserver import run_osiris

REPO = "acme/shop"
FILES = {
    "README.md": "# shop\n",
    "AGENTS.md": "Use tabs.\n",
    "shop.py": "def add(a, b):\n    return a - b\n",
    "test_shop.py": "import unittest\nfrom shop import add\n\n\nclass T(unittest.TestCase):\n"
    "    def test_add(self):\n        self.assertEqual(add(1, 2), 3)\n",
}
PEOPLE = {"alice": "maintain", "bob": "write", "tina": "triage", "mallory": "none"}


@functools.cache
def get_app_keys() -> KeyPair:
    """Return the key pair of the App. All environments of this process share it, because generating
    one takes a tenth of a second."""
    return generate_key_pair()


def build_step(tool: str, /, expect: dict[str, Any] | None = None, **args: Any) -> dict[str, Any]:
    """Return a step of a script: a call of a tool, and what its answer must be."""
    return {"call": {tool: args}, "expect": expect or {}}


def build_submit_step(summary: str = "Fixed.") -> dict[str, Any]:
    return build_step("submit", summary=summary)


CHECK_COMMAND = "grep 'a + b' shop.py"
FIX_STEPS = [
    build_step("edit_file", path="shop.py", old="a - b", new="a + b"),
    build_step("run_command", {"exit_code": 0}, command=CHECK_COMMAND),
    build_submit_step("`add` subtracted. Now it adds."),
]
"""Steps that correct `shop.py` and check it with grep. Running the unit tests instead takes half a
second; `test_main_flow.py` does that."""
ANSWER_STEPS = [
    build_step("write_file", path="NOTES.md", content="Reviewed.\n"),
    build_submit_step("Added the notes that the review asks for."),
]
"""Steps that answer a review."""
BLOCKING_STEP = build_step(
    "run_command", {"exit_code": 0}, command="until test -e /tmp/go; do sleep 0.05; done"
)
"""A command that runs until the test calls `release_step`."""


def build_run(*steps: dict[str, Any], when: str = "") -> dict[str, Any]:
    """Return a run of a script. The model plays the first run whose `when` is in the briefing."""
    return {"when": when, "steps": list(steps)}


FAST_RETRIES = Timeouts(pauses=(0.05,), commit=60.0)
SCRIPT = {"runs": [build_run(*ANSWER_STEPS, when="<review"), build_run(*FIX_STEPS)]}


@dataclass(frozen=True, kw_only=True)
class FlowEnvironment:
    """The environment, one instance of Osiris in it, and the people who use it."""

    playground: Environment
    osiris: Osiris
    alice: Person
    bob: Person
    tina: Person
    mallory: Person
    vendors: Vendors | None
    log_lines: list[str]

    @property
    def sessions_folder(self) -> Path:
        """The folder of the sandbox's sessions."""
        return self.osiris.sandbox._root

    async def read_transcript(self) -> list[Message]:
        """Return all messages of the first task, in order."""
        return [step.message for step in await self.osiris.read_models.list_steps(1)]

    async def wait_until_settled(self) -> None:
        await self.playground.wait_until_settled(self.osiris.store)

    async def get_task(self) -> Task:
        [line] = await self.osiris.read_models.list_tasks()
        return line.task

    async def list_failures(self) -> list[Failure]:
        return await self.osiris.read_models.list_failures()

    async def file_labelled_issue(
        self, title: str = "add subtracts", body: str = "add(1, 2) is -1"
    ) -> int:
        issue = await self.alice.file_issue(title, body)
        await self.alice.add_label(issue)
        return issue

    async def bring_to_review(self) -> tuple[int, int]:
        """File an issue and wait for its pull request. Return the numbers of both."""
        issue = await self.file_labelled_issue()
        await self.wait_until_settled()
        [pull] = await self.alice.list_pulls()
        return issue, int(pull["number"])

    async def list_bot_comments(self, number: int) -> list[str]:
        return [
            c["body"]
            for c in await self.alice.list_comments(number)
            if c["user"]["login"] == "osiris[bot]"
        ]

    async def wait_until_running(self) -> None:
        """Wait until the agent is inside its first tool call."""
        async with asyncio.timeout(20):
            while True:
                for line in await self.osiris.read_models.list_tasks():
                    run_suffix = f"-{line.task.run}"
                    steps = [
                        s
                        for s in await self.osiris.read_models.list_steps(line.id)
                        if s.run.endswith(run_suffix)
                    ]
                    if (
                        line.task.state == "running"
                        and steps
                        and steps[-1].message.role == "assistant"
                    ):
                        return
                await asyncio.sleep(0.05)

    async def wait_until_answered(self) -> None:
        """Wait until all requests of people are decided and answered. A run may continue."""
        unfinished_rows = text(
            "select (select count(*) from inbox where not_before is not null)"
            " + (select count(*) from outbox where not_before is not null and kind <> 'StartRun')"
        )
        async with asyncio.timeout(20):
            while True:
                await self.playground.hub.wait_until_sent()
                async with self.osiris.engine.connect() as connection:
                    if not await connection.scalar(unfinished_rows):
                        return
                await asyncio.sleep(0.05)

    def release_step(self) -> None:
        """End the command of `BLOCKING_STEP`."""
        for disk in list_disks(self.sessions_folder):
            with contextlib.suppress(FileNotFoundError):  # the disk is being created or removed
                (disk.host_path / "tmp" / "go").touch()

    def push_files(self, login: str, branch: str, files: dict[str, str]) -> None:
        """Push changed files to a branch with git, as the user `login`."""
        address = self.playground.hub.url.replace(
            "://", f"://{login}:{self.playground.hub.world.get_user(login).token}@"
        )
        identity = ["-c", f"user.name={login}", "-c", f"user.email={login}@example.org"]
        with tempfile.TemporaryDirectory() as folder:
            run_plain_git("clone", "-q", "--branch", branch, f"{address}/{REPO}.git", folder)
            for path, text in files.items():
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).write_text(text)
            run_plain_git("-C", folder, "add", "-A")
            run_plain_git("-C", folder, *identity, "commit", "-qm", "By hand")
            run_plain_git("-C", folder, "push", "-q", "origin", branch)

    def run_git(self, *args: str) -> str:
        """Run git in devhub's own repository, and return its output."""
        path = self.playground.settings.osiris_data_dir.parent / "hub/repos" / f"{REPO}.git"
        return run_plain_git("--git-dir", str(path), *args)


def run_plain_git(*args: str) -> str:
    """Run git without the limits that Osiris sets, and return its output."""
    result = subprocess.run(["git", *args], capture_output=True, check=True)
    return result.stdout.decode("utf-8", "backslashreplace")


@pytest.fixture(scope="session")
def sandbox_factory() -> Iterator[Callable[[Settings], Sandbox]]:
    """Provide a function that creates sandboxes. They reuse the caches and the probe results of
    earlier ones in this process.

    A new sandbox without them needs up to a second before its first command. All tests that start
    Osiris as a separate process use such new ones. A strong sandbox probes the machine again.
    """
    with create_test_folder() as folder:
        root = folder / "sessions"
        probes = asyncio.run(BubblewrapSandbox(root, Path, SandboxOptions(weak=True)).probe())

        def create_with_caches(settings: Settings) -> Sandbox:
            # each checkout in the cache is one more mount in every jail
            settings = settings.model_copy(update={"osiris_cache_gib": 0.001})
            return create_sandbox(
                settings, root, probes if settings.osiris_sandbox == "weak" else ()
            )

        yield create_with_caches


def copy_database(migrated_file: Path, folder: Path) -> None:
    """Copy a database with the current schema into the data folder of an environment. Alembic needs
    up to 0.4 s to create one."""
    (folder / "osiris").mkdir(0o711)
    shutil.copy(migrated_file, folder / "osiris")


Start = Callable[..., contextlib.AbstractAsyncContextManager[FlowEnvironment]]


@pytest.fixture
def start(
    folder: Path,
    pair: dict[str, str],
    sandbox_factory: Callable[[Settings], Sandbox],
    migrated_file: Path,
) -> Start:
    """Provide the function `start(script, files=…)`, which starts an environment with a scripted
    model. At its end, the environment checks that it leaked no secret.

    With a `vendor`, the model is served over that vendor's wire protocol; `second_vendor` is
    configured as well. `more` are further settings. The sandbox comes from `sandbox_factory`,
    unless the test passes one (None: a new one). The database has a schema.
    """
    copy_database(migrated_file, folder)

    @contextlib.asynccontextmanager
    async def start_flow_environment(
        script: dict[str, Any] = SCRIPT,
        *,
        files: dict[str, Any] | None = None,
        vendor: str = "",
        second_vendor: str = "",
        more: dict[str, Any] | None = None,
        **replacements: Any,
    ) -> AsyncIterator[FlowEnvironment]:
        script_file = folder / "script.yml"
        script_file.write_text(yaml.safe_dump(script))
        async with (
            loopback.serve_vendors(script) if vendor else contextlib.nullcontext() as vendors,
            start_environment(
                folder,
                repo=REPO,
                files=files or FILES,
                people=PEOPLE,
                model=f"scripted:{script_file}",
                keys=get_app_keys(),
                more={
                    **pair,
                    **(_merge_vendor_settings(vendors, vendor, second_vendor) if vendors else {}),
                    **(more or {}),
                },
            ) as playground,
            _collect_logs() as log_lines,
            playground.run_osiris(
                **{
                    "timeouts": FAST_RETRIES,
                    "sandbox": sandbox_factory(playground.settings),
                    **replacements,
                }
            ) as osiris,
            playground.get_person("alice") as alice,
            playground.get_person("bob") as bob,
            playground.get_person("tina") as tina,
            playground.get_person("mallory") as mallory,
        ):
            yield FlowEnvironment(
                playground=playground,
                osiris=osiris,
                alice=alice,
                bob=bob,
                tina=tina,
                mallory=mallory,
                vendors=vendors,
                log_lines=log_lines,
            )
            await _assert_no_secret_leaked(playground, alice, log_lines)

    return start_flow_environment


def get_vendor_settings(vendors: Vendors, vendor: str) -> dict[str, str]:
    """Return the settings with which Osiris uses a vendor."""
    return {name.lower(): value for name, value in vendors.build_environ(vendor).items()}


def _merge_vendor_settings(vendors: Vendors, vendor: str, second_vendor: str) -> dict[str, str]:
    return {
        **(get_vendor_settings(vendors, second_vendor) if second_vendor else {}),
        **get_vendor_settings(vendors, vendor),
    }


@contextlib.asynccontextmanager
async def _collect_logs() -> AsyncIterator[list[str]]:
    """Collect every log line as it is before redaction."""
    lines: list[str] = []

    class LogCollector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    root = logging.getLogger()
    log_collector = LogCollector()
    level = root.level
    root.addHandler(log_collector)
    root.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        root.removeHandler(log_collector)
        root.setLevel(level)


async def _assert_no_secret_leaked(
    playground: Environment, alice: Person, log_lines: list[str]
) -> None:
    """Assert that no secret is in the database, in texts on GitHub or in the log. The secrets are
    the App key, the webhook secret, the model keys and all minted tokens."""
    secrets = [
        *playground.settings.list_secrets(),
        *playground.settings.private_key.splitlines()[1:3],
        "ghs_",
    ]
    data_folder = playground.settings.osiris_data_dir
    database_content = b"".join(path.read_bytes() for path in data_folder.glob("osiris.db*"))
    database_content += _dump_database(playground)
    texts = [c["body"] for n in range(1, 4) for c in await _list_comments(alice, n)]
    texts += [str(pull["body"]) for pull in await alice.list_pulls()]
    for secret in secrets:
        assert secret.encode() not in database_content, "a secret is in the database"
        assert not any(secret in text for text in texts), "a secret was published"
        assert not any(secret in line for line in log_lines), "a secret was logged"


def _dump_database(playground: Environment) -> bytes:
    """Return the content of a PostgreSQL database; nothing if the database is SQLite."""
    if playground.settings.is_embedded:
        return b""
    engine = create_engine(
        playground.settings.database.replace("postgresql:", "postgresql+psycopg:")
    )
    with engine.connect() as connection:
        rows = [
            str(connection.execute(table.select()).all()) for table in Table.metadata.sorted_tables
        ]
    engine.dispose()
    return "".join(rows).encode()


async def _list_comments(person: Person, number: int) -> list[dict[str, Any]]:
    import httpx

    try:
        return await person.list_comments(number)
    except httpx.HTTPStatusError:
        return []


@pytest.fixture
def run_cli(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Provide a function that runs `osiris …` as an operator does. It returns the exit code, stdout
    and stderr."""
    pair = request.getfixturevalue("pair") if "pair" in request.fixturenames else {}
    pair_environ = {name.upper(): value for name, value in pair.items()}

    async def run_command(*args: str, **environ: str) -> tuple[int, str, str]:
        result = await asyncio.to_thread(run_osiris, *args, **{**pair_environ, **environ})
        return result.returncode, result.stdout, result.stderr

    return run_command
