"""The setup of workspaces, its network access, and the reports about both."""

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from osiris.config.settings import Settings
from osiris.core.ports.sandbox import Sandbox
from osiris.factories import create_sandbox
from osiris.tools.sandbox.jail import cgroup
from tests.flow.conftest import (
    ANSWER_STEPS,
    FILES,
    FIX_STEPS,
    FlowEnvironment,
    Start,
    build_run,
    build_step,
    build_submit_step,
)

FETCH_PAGE_CODE = (
    'import os; from urllib.request import *; print(urlopen(os.environ["PIP_INDEX_URL"] +'
    ' "/page").read().decode())'
)
REGISTRY_HOST = "127.0.0.2"  # inside a jail, 127.0.0.1 is the jail itself
PAGE = "a page of the registry"


def build_files(**config: object) -> dict[str, str]:
    """Return the files of a repository with this policy."""
    return {**FILES, ".github/osiris.yml": yaml.safe_dump(config)}


def build_script(*commands: str) -> dict[str, list[Any]]:
    """Return a script whose run executes commands, which must succeed, and then fixes the bug."""
    return {
        "runs": [
            build_run(
                *(
                    build_step("run_command", {"exit_code": 0}, command=command)
                    for command in commands
                ),
                *FIX_STEPS,
            )
        ]
    }


async def read_pull_body(env: FlowEnvironment, number: int) -> str:
    return str((await env.alice.get_pull(number))["body"])


@pytest.fixture
def sandbox_factory() -> Callable[[Settings], Sandbox]:
    """Create a new sandbox for each test: a reused one would keep its setup cache."""
    return create_sandbox


@pytest.fixture
def registry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a package registry, and configure pip on this machine for it."""
    (folder / "registry").mkdir()
    (folder / "registry/page").write_text(PAGE)

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(
        (REGISTRY_HOST, 0), functools.partial(QuietHandler, directory=str(folder / "registry"))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{REGISTRY_HOST}:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.long
async def test_the_set_up_reaches_the_registry_and_what_it_leaves_serves_the_agent(
    start: Start, registry: None
):
    files = build_files(
        commands={"setup": ["mkdir -p vendor", f"python3 -c '{FETCH_PAGE_CODE}' >vendor/page"]}
    )
    script = build_script(
        f"grep '{PAGE}' vendor/page",
        'test -z "$(git status --short)"',
        f"! python3 -c '{FETCH_PAGE_CODE}'",
    )
    script["runs"].insert(0, build_run(*ANSWER_STEPS, when="<review"))
    async with start(script, files=files) as env:
        _, number = await env.bring_to_review()
        body = await read_pull_body(env, number)
        assert "Set-up of the base branch (run before the agent began):" in body
        assert "| `mkdir -p vendor` | 0 |" in body
        assert "vendor/page" not in env.run_git("show", "--stat", "osiris/1-add-subtracts")
        await env.bob.submit_review(number, "REQUEST_CHANGES", "Again.")
        await env.wait_until_settled()
        [status] = await env.list_bot_comments(number)
        assert "Set-up of the base branch (the result of an earlier run was used):" in status


async def test_the_set_up_of_githubs_own_agent_serves_as_well(start: Start):
    steps = [
        {"uses": "actions/checkout@v4"},
        {"run": "echo ready >.made"},
        {"run": "exit ${{ github.run_id }}"},
    ]
    workflow = yaml.safe_dump({"jobs": {"copilot-setup-steps": {"steps": steps}}})
    files = {**FILES, ".github/workflows/copilot-setup-steps.yml": workflow}
    async with start(build_script("grep ready .made"), files=files) as env:
        _, number = await env.bring_to_review()
        assert "| `echo ready >.made` | 0 |" in await read_pull_body(env, number)


ALIAS_WORKFLOW = (
    "a: &a {run: exit 1}\njobs: {copilot-setup-steps: {steps: [" + "*a, " * 4000 + "*a]}}\n"
)
LONG_COMMAND_WORKFLOW = yaml.safe_dump(
    {"jobs": {"copilot-setup-steps": {"steps": [{"run": "echo " + "x" * 20_000}]}}}
)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("workflow", "sentence"),
    [
        (ALIAS_WORKFLOW, "has 4001 commands, more than 50"),
        (LONG_COMMAND_WORKFLOW, "has a command of more than 20,000 characters"),
        ("jobs: [" * 60, "nests deeper than 50 levels in line 1"),
        ("#" * 70_000, "is larger than 64 KiB"),
    ],
    ids=["aliases", "a long command", "nesting", "size"],
)
async def test_a_set_up_of_githubs_own_agent_without_bounds_is_a_sentence(
    start: Start, workflow: str, sentence: str
):
    files = {**FILES, ".github/workflows/copilot-setup-steps.yml": workflow}
    async with start(files=files) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        comments = "\n".join(await env.list_bot_comments(issue))
        assert f"`.github/workflows/copilot-setup-steps.yml` {sentence}" in comments
        assert "list the setup commands in `.github/osiris.yml`" in comments


async def test_a_set_up_that_fails_starts_no_run_and_says_which_command_it_was(start: Start):
    files = build_files(commands={"setup": ["true", "echo the disk is on fire; exit 7"]})
    async with start(files=files) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        comments = "\n".join(await env.list_bot_comments(issue))
        assert "echo the disk is on fire; exit 7" in comments
        assert "ended with exit code 7: the disk is on fire" in comments
        assert "`/osiris retry`" in comments
        assert await env.alice.list_pulls() == []


@pytest.mark.long
async def test_what_a_set_up_may_not_reach_is_named_on_the_issue(start: Start):
    files = build_files(commands={"setup": "curl -sSf https://evil.example/"})
    async with start(files=files) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        comments = "\n".join(await env.list_bot_comments(issue))
        assert "blocked: evil.example:443" in comments
        assert "network.setup" in comments


async def test_what_an_agent_may_not_reach_is_counted_in_the_pull_request(start: Start):
    files = build_files(network={"agent": ["api.example.com"]})
    command = "for n in 1 2 3; do curl -sS https://evil.example/; done; true"
    async with start(build_script(command), files=files, more={"osiris_network": "agent"}) as env:
        _, number = await env.bring_to_review()
        body = await read_pull_body(env, number)
        assert (
            "blocked: `evil.example:443`, 3 times: it is not on the list of allowed hosts" in body
        )
        assert "`network.agent` in `.github/osiris.yml`" in body
        answers = [
            message.text for message in await env.read_transcript() if message.role == "tool"
        ]
        assert "blocked: evil.example:443, times: 3" in answers[0]


@pytest.mark.long
async def test_a_repository_opens_nothing_that_the_operator_keeps_closed(start: Start):
    files = build_files(network={"agent": ["api.example.com"]})
    command = "test ! -e /run/egress && ! curl -sS https://api.example.com/"
    async with start(build_script(command), files=files) as env:
        await env.bring_to_review()


async def test_a_branch_cannot_change_its_own_set_up(start: Start):
    """The first run writes another setup into the branch, and the second run begins with that
    branch."""
    hostile_policy = yaml.safe_dump({"commands": {"setup": "touch /workspace/evil"}})
    script = {
        "runs": [
            build_run(
                build_step("run_command", {"exit_code": 0}, command="test ! -e evil"),
                build_submit_step("Fine."),
                when="<review",
            ),
            build_run(
                build_step("write_file", path=".github/osiris.yml", content=hostile_policy),
                *FIX_STEPS,
            ),
        ]
    }
    async with start(script) as env:
        _, number = await env.bring_to_review()
        await env.bob.submit_review(number, "REQUEST_CHANGES", "Again.")
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"


@pytest.fixture
def disable_cgroups(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Simulate a machine on which the worker cannot create cgroups."""
    monkeypatch.setattr(cgroup, "CGROUPS", folder / "none")


@pytest.mark.long
async def test_a_weak_sandbox_is_named_in_every_pull_request(start: Start, disable_cgroups: None):
    async with start() as env:
        _, number = await env.bring_to_review()
        assert "The sandbox of this run was a weak one" in await read_pull_body(env, number)
        assert "It lacks: memory and process limits." in await read_pull_body(env, number)


async def test_without_its_limits_no_run_starts_unless_the_operator_says_so(
    start: Start, disable_cgroups: None
):
    async with start(more={"osiris_sandbox": "strong"}) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        [comment] = await env.list_bot_comments(issue)
        assert "There is no safe sandbox on this machine: memory and process limits" in comment
        assert "OSIRIS_SANDBOX=weak" in comment
        assert any("no safe sandbox" in line for line in env.log_lines)


async def test_a_secret_in_a_file_reaches_neither_the_model_nor_the_pull_request(start: Start):
    secret = "glpat-" + "Ab1" * 7
    script = {
        "runs": [
            build_run(
                build_step("run_command", {"exit_code": 0}, command="cat settings.ini"),
                build_step("read_file", path="settings.ini"),
                build_step("write_file", path="a", content="a"),
                build_submit_step(f"I found {secret}."),
            )
        ]
    }
    async with start(script, files={**FILES, "settings.ini": f"token = {secret}\n"}) as env:
        _, number = await env.bring_to_review()
        answers = [
            message.text for message in await env.read_transcript() if message.role == "tool"
        ]
        assert sum("token = ***" in answer for answer in answers) == 2
        assert not any(secret in answer for answer in answers)
        assert "I found ***" in await read_pull_body(env, number)
        assert secret not in env.run_git("log", "--format=%B", "osiris/1-add-subtracts")
