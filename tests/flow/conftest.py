"""Fixtures for a complete Osiris against devhub, in one process, over real HTTP, with a real
sandbox, database and git."""

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
from tests.conftest import a_place, disks_in
from tests.forkserver import osiris

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
def keys() -> KeyPair:
    """Return the key pair of the App for all environments of this process; generating one takes a
    tenth of a second."""
    return generate_key_pair()


def step(tool: str, /, expect: dict[str, Any] | None = None, **args: Any) -> dict[str, Any]:
    return {"call": {tool: args}, "expect": expect or {}}


def submit(summary: str = "Fixed.") -> dict[str, Any]:
    return step("submit", summary=summary)


CHECK_COMMAND = "grep 'a + b' shop.py"
FIX = [
    step("edit_file", path="shop.py", old="a - b", new="a + b"),
    step("run_command", {"exit_code": 0}, command=CHECK_COMMAND),
    submit("`add` subtracted. Now it adds."),
]
"""Running the unit tests instead would take half a second; `test_main_flow.py` does that."""
ANSWER = [
    step("write_file", path="NOTES.md", content="Reviewed.\n"),
    submit("Added the notes that the review asks for."),
]


BLOCKING_STEP = step(
    "run_command", {"exit_code": 0}, command="until test -e /tmp/go; do sleep 0.05; done"
)
"""A command that runs until the test calls `release_step`."""


def run(*steps: dict[str, Any], when: str = "") -> dict[str, Any]:
    return {"when": when, "steps": list(steps)}


QUICK = Timeouts(pauses=(0.05,))
STORY = {"runs": [run(*ANSWER, when="<review"), run(*FIX)]}


@dataclass(frozen=True, kw_only=True)
class FlowEnvironment:
    """The environment, one instance of Osiris in it, and the people."""

    playground: Environment
    osiris: Osiris
    alice: Person
    bob: Person
    tina: Person
    mallory: Person
    vendors: Vendors | None
    log_lines: list[str]

    @property
    def sessions(self) -> Path:
        """The folder of the sandbox's sessions."""
        return self.osiris.sandbox._root

    async def transcript(self) -> list[Message]:
        """Return every message of the first task in order."""
        return [step.message for step in await self.osiris.read_models.list_steps(1)]

    async def wait_until_settled(self) -> None:
        await self.playground.wait_until_settled(self.osiris.store)

    async def task(self) -> Task:
        [line] = await self.osiris.read_models.list_tasks()
        return line.task

    async def failures(self) -> list[Failure]:
        return await self.osiris.read_models.list_failures()

    async def file_labelled_issue(
        self, title: str = "add subtracts", body: str = "add(1, 2) is -1"
    ) -> int:
        issue = await self.alice.file_issue(title, body)
        await self.alice.add_label(issue)
        return issue

    async def bring_to_review(self) -> tuple[int, int]:
        """Have an issue worked on. Return its number and that of its pull request."""
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
                    of_this_run = f"-{line.task.run}"
                    steps = [
                        s
                        for s in await self.osiris.read_models.list_steps(line.id)
                        if s.run.endswith(of_this_run)
                    ]
                    if (
                        line.task.state == "running"
                        and steps
                        and steps[-1].message.role == "assistant"
                    ):
                        return
                await asyncio.sleep(0.05)

    async def wait_until_answered(self) -> None:
        """Wait until all requests of people are decided and answered, whatever a run is doing."""
        undone = text(
            "select (select count(*) from inbox where not_before is not null)"
            " + (select count(*) from outbox where not_before is not null and kind <> 'StartRun')"
        )
        async with asyncio.timeout(20):
            while True:
                await self.playground.hub.wait_until_sent()
                async with self.osiris.engine.connect() as connection:
                    if not await connection.scalar(undone):
                        return
                await asyncio.sleep(0.05)

    def release_step(self) -> None:
        """Let the command of `BLOCKING_STEP` end."""
        for disk in disks_in(self.sessions):
            with contextlib.suppress(FileNotFoundError):  # it is just being created or removed
                (disk.host_path / "tmp" / "go").touch()

    def push(self, login: str, branch: str, files: dict[str, str]) -> None:
        """Push changed files to a branch as a person does, with plain git."""
        address = self.playground.hub.url.replace(
            "://", f"://{login}:{self.playground.hub.world.get_user(login).token}@"
        )
        who = ["-c", f"user.name={login}", "-c", f"user.email={login}@example.org"]
        with tempfile.TemporaryDirectory() as folder:
            plain_git("clone", "-q", "--branch", branch, f"{address}/{REPO}.git", folder)
            for path, text in files.items():
                (Path(folder) / path).write_text(text)
            plain_git("-C", folder, "add", "-A")
            plain_git("-C", folder, *who, "commit", "-qm", "By hand")
            plain_git("-C", folder, "push", "-q", "origin", branch)

    def git(self, *args: str) -> str:
        """Run plain git in the hub's own repository."""
        path = self.playground.settings.osiris_data_dir.parent / "hub/repos" / f"{REPO}.git"
        return plain_git("--git-dir", str(path), *args)


def plain_git(*args: str) -> str:
    result = subprocess.run(["git", *args], capture_output=True, check=True)
    return result.stdout.decode("utf-8", "backslashreplace")


@pytest.fixture(scope="session")
def warm() -> Iterator[Callable[[Settings], Sandbox]]:
    """Provide a factory of sandboxes that reuse what earlier ones in this process prepared and
    found out about the machine.

    Otherwise each needs up to a second before its first command; `tests/flow/test_main_flow.py` and
    all tests that start Osiris as a separate process use such new ones. A strong sandbox probes the
    machine again.
    """
    with a_place() as place:
        root = place / "sessions"
        probes = asyncio.run(BubblewrapSandbox(root, Path, SandboxOptions(weak=True)).probe())

        def sandbox(settings: Settings) -> Sandbox:
            # each kept checkout is a mount for all jails
            few = settings.model_copy(update={"osiris_cache_gib": 0.001})
            return create_sandbox(few, root, probes if settings.osiris_sandbox == "weak" else ())

        yield sandbox


def copy_database(migrated_file: Path, place: Path) -> None:
    """Copy a database with the present schema into the data folder of an environment: Alembic needs
    up to 0.4 s to create one."""
    (place / "osiris").mkdir(0o711)
    shutil.copy(migrated_file, place / "osiris")


Start = Callable[..., contextlib.AbstractAsyncContextManager[FlowEnvironment]]


@pytest.fixture
def start(
    place: Path, pair: dict[str, str], warm: Callable[[Settings], Sandbox], migrated_file: Path
) -> Start:
    """Return the function `start(story, files=…)`, which starts an environment. When it ends, it
    checks that no secret of this run is found anywhere.

    With a `vendor`, the story is served over that vendor's wire protocol; the vendor `also` is
    configured as well; `more` are further settings. The sandbox is a `warm` one unless it is given
    (None: a new one), and the database has a schema.
    """
    copy_database(migrated_file, place)

    @contextlib.asynccontextmanager
    async def started(
        story: dict[str, Any] = STORY,
        *,
        files: dict[str, Any] | None = None,
        vendor: str = "",
        also: str = "",
        more: dict[str, Any] | None = None,
        **replacements: Any,
    ) -> AsyncIterator[FlowEnvironment]:
        script = place / "script.yml"
        script.write_text(yaml.safe_dump(story))
        async with (
            loopback.serving(story) if vendor else contextlib.nullcontext() as vendors,
            start_environment(
                place,
                repo=REPO,
                files=files or FILES,
                people=PEOPLE,
                model=f"scripted:{script}",
                keys=keys(),
                more={
                    **pair,
                    **(_merge_vendor_settings(vendors, vendor, also) if vendors else {}),
                    **(more or {}),
                },
            ) as playground,
            _collect_logs() as log_lines,
            playground.run_osiris(
                **{"timeouts": QUICK, "sandbox": warm(playground.settings), **replacements}
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

    return started


def settings_of(vendors: Vendors, vendor: str) -> dict[str, str]:
    return {name.lower(): value for name, value in vendors.environ(vendor).items()}


def _merge_vendor_settings(vendors: Vendors, vendor: str, also: str) -> dict[str, str]:
    return {**(settings_of(vendors, also) if also else {}), **settings_of(vendors, vendor)}


@contextlib.asynccontextmanager
async def _collect_logs() -> AsyncIterator[list[str]]:
    """Collect every logged line before redaction."""
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
    playground: Environment, alice: Person, logged: list[str]
) -> None:
    """Check for leaked secrets: App key, webhook secret, model keys and every minted token."""
    secrets = [
        *playground.settings.list_secrets(),
        *playground.settings.private_key.splitlines()[1:3],
        "ghs_",
    ]
    data = playground.settings.osiris_data_dir
    stored = b"".join(path.read_bytes() for path in data.glob("osiris.db*")) + _dump_database(
        playground
    )
    published = [c["body"] for n in range(1, 4) for c in await _comments(alice, n)]
    published += [str(pull["body"]) for pull in await alice.list_pulls()]
    for secret in secrets:
        assert secret.encode() not in stored, "a secret is in the database"
        assert not any(secret in words for words in published), "a secret was said"
        assert not any(secret in line for line in logged), "a secret was logged"


def _dump_database(playground: Environment) -> bytes:
    """Return the whole content of a PostgreSQL database."""
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


async def _comments(person: Person, number: int) -> list[dict[str, Any]]:
    import httpx

    try:
        return await person.list_comments(number)
    except httpx.HTTPStatusError:
        return []


@pytest.fixture
def command(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Provide a function that runs `osiris …` as an operator does and returns (exit code, stdout,
    stderr)."""
    pair = request.getfixturevalue("pair") if "pair" in request.fixturenames else {}
    stands_on = {name.upper(): value for name, value in pair.items()}

    async def run_command(*args: str, **environ: str) -> tuple[int, str, str]:
        result = await asyncio.to_thread(osiris, *args, **{**stands_on, **environ})
        return result.returncode, result.stdout, result.stderr

    return run_command
