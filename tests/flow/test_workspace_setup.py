"""Setup of workspaces, the network access that it may have, and the reports about both."""

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
from tests.flow.conftest import ANSWER, FILES, FIX, FlowEnvironment, Start, run, step, submit

FETCH = (
    'import os; from urllib.request import *; print(urlopen(os.environ["PIP_INDEX_URL"] +'
    ' "/page").read().decode())'
)
REGISTRY = "127.0.0.2"  # inside a jail, 127.0.0.1 is the jail itself
PAGE = "a page of the registry"


def build_repository(**config: object) -> dict[str, str]:
    return {**FILES, ".github/osiris.yml": yaml.safe_dump(config)}


def build_story(*commands: str) -> dict[str, list[Any]]:
    """Return a story whose run executes commands successfully, and then does its work."""
    return {
        "runs": [
            run(
                *(step("run_command", {"exit_code": 0}, command=command) for command in commands),
                *FIX,
            )
        ]
    }


async def read_pull_body(env: FlowEnvironment, number: int) -> str:
    return str((await env.alice.get_pull(number))["body"])


@pytest.fixture
def warm() -> Callable[[Settings], Sandbox]:
    """Use a new sandbox per test: a reused one would keep the setup cache for the next test."""
    return create_sandbox


@pytest.fixture
def registry(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start a package registry that this machine's pip is configured for."""
    (place / "registry").mkdir()
    (place / "registry/page").write_text(PAGE)

    class QuietHandler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(
        (REGISTRY, 0), functools.partial(QuietHandler, directory=str(place / "registry"))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{REGISTRY}:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.long
async def test_the_set_up_reaches_the_registry_and_what_it_leaves_serves_the_agent(
    start: Start, registry: None
):
    files = build_repository(
        commands={"setup": ["mkdir -p vendor", f"python3 -c '{FETCH}' >vendor/page"]}
    )
    story = build_story(
        f"grep '{PAGE}' vendor/page", 'test -z "$(git status --short)"', f"! python3 -c '{FETCH}'"
    )
    story["runs"].insert(0, run(*ANSWER, when="<review"))
    async with start(story, files=files) as env:
        _, number = await env.bring_to_review()
        said = await read_pull_body(env, number)
        assert "Set-up of the base branch (run before the agent began):" in said
        assert "| `mkdir -p vendor` | 0 |" in said
        assert "vendor/page" not in env.git("show", "--stat", "osiris/1-add-subtracts")
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
    async with start(build_story("grep ready .made"), files=files) as env:
        _, number = await env.bring_to_review()
        assert "| `echo ready >.made` | 0 |" in await read_pull_body(env, number)


ALIASES = "a: &a {run: exit 1}\njobs: {copilot-setup-steps: {steps: [" + "*a, " * 4000 + "*a]}}\n"
LONG = yaml.safe_dump(
    {"jobs": {"copilot-setup-steps": {"steps": [{"run": "echo " + "x" * 20_000}]}}}
)


@pytest.mark.first_case
@pytest.mark.parametrize(
    ("workflow", "output"),
    [
        (ALIASES, "has 4001 commands, more than 50"),
        (LONG, "has a command of more than 20,000 characters"),
        ("jobs: [" * 60, "nests deeper than 50 levels in line 1"),
        ("#" * 70_000, "is larger than 64 KiB"),
    ],
    ids=["aliases", "a long command", "nesting", "size"],
)
async def test_a_set_up_of_githubs_own_agent_without_bounds_is_a_sentence(
    start: Start, workflow: str, output: str
):
    files = {**FILES, ".github/workflows/copilot-setup-steps.yml": workflow}
    async with start(files=files) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        said = "\n".join(await env.list_bot_comments(issue))
        assert f"`.github/workflows/copilot-setup-steps.yml` {output}" in said
        assert "list the setup commands in `.github/osiris.yml`" in said


async def test_a_set_up_that_fails_starts_no_run_and_says_which_command_it_was(start: Start):
    files = build_repository(commands={"setup": ["true", "echo the disk is on fire; exit 7"]})
    async with start(files=files) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        said = "\n".join(await env.list_bot_comments(issue))
        assert "echo the disk is on fire; exit 7" in said
        assert "ended with exit code 7: the disk is on fire" in said
        assert "`/osiris retry`" in said
        assert await env.alice.list_pulls() == []


@pytest.mark.long
async def test_what_a_set_up_may_not_reach_is_named_on_the_issue(start: Start):
    files = build_repository(commands={"setup": "curl -sSf https://evil.example/"})
    async with start(files=files) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        said = "\n".join(await env.list_bot_comments(issue))
        assert "blocked: evil.example:443" in said
        assert "network.setup" in said


async def test_what_an_agent_may_not_reach_is_counted_in_the_pull_request(start: Start):
    files = build_repository(network={"agent": ["api.example.com"]})
    asks = "for n in 1 2 3; do curl -sS https://evil.example/; done; true"
    async with start(build_story(asks), files=files, more={"osiris_network": "agent"}) as env:
        _, number = await env.bring_to_review()
        said = await read_pull_body(env, number)
        assert (
            "blocked: `evil.example:443`, 3 times: it is not on the list of allowed hosts" in said
        )
        assert "`network.agent` in `.github/osiris.yml`" in said
        output = [message.text for message in await env.transcript() if message.role == "tool"]
        assert "blocked: evil.example:443, times: 3" in output[0]


@pytest.mark.long
async def test_a_repository_opens_nothing_that_the_operator_keeps_closed(start: Start):
    files = build_repository(network={"agent": ["api.example.com"]})
    closed = "test ! -e /run/egress && ! curl -sS https://api.example.com/"
    async with start(build_story(closed), files=files) as env:
        await env.bring_to_review()


async def test_a_branch_cannot_change_its_own_set_up(start: Start):
    """The second run begins with files of the first one, which wrote its own setup."""
    evil = yaml.safe_dump({"commands": {"setup": "touch /workspace/evil"}})
    story = {
        "runs": [
            run(
                step("run_command", {"exit_code": 0}, command="test ! -e evil"),
                submit("Fine."),
                when="<review",
            ),
            run(step("write_file", path=".github/osiris.yml", content=evil), *FIX),
        ]
    }
    async with start(story) as env:
        _, number = await env.bring_to_review()
        await env.bob.submit_review(number, "REQUEST_CHANGES", "Again.")
        await env.wait_until_settled()
        assert (await env.task()).state == "review"


@pytest.fixture
def no_cgroups(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Simulate a machine on which the worker cannot create cgroups."""
    monkeypatch.setattr(cgroup, "CGROUPS", place / "none")


@pytest.mark.long
async def test_a_weak_sandbox_is_named_in_every_pull_request(start: Start, no_cgroups: None):
    async with start() as env:
        _, number = await env.bring_to_review()
        assert "The sandbox of this run was a weak one" in await read_pull_body(env, number)
        assert "It lacks: memory and process limits." in await read_pull_body(env, number)


async def test_without_its_limits_no_run_starts_unless_the_operator_says_so(
    start: Start, no_cgroups: None
):
    async with start(more={"osiris_sandbox": "strong"}) as env:
        issue = await env.file_labelled_issue()
        await env.wait_until_settled()
        [said] = await env.list_bot_comments(issue)
        assert "There is no safe sandbox on this machine: memory and process limits" in said
        assert "OSIRIS_SANDBOX=weak" in said
        assert any("no safe sandbox" in line for line in env.log_lines)


async def test_a_secret_in_a_file_reaches_neither_the_model_nor_the_pull_request(start: Start):
    secret = "glpat-" + "Ab1" * 7
    story = {
        "runs": [
            run(
                step("run_command", {"exit_code": 0}, command="cat settings.ini"),
                step("read_file", path="settings.ini"),
                step("write_file", path="a", content="a"),
                submit(f"I found {secret}."),
            )
        ]
    }
    async with start(story, files={**FILES, "settings.ini": f"token = {secret}\n"}) as env:
        _, number = await env.bring_to_review()
        output = [message.text for message in await env.transcript() if message.role == "tool"]
        assert sum("token = ***" in text for text in output) == 2
        assert not any(secret in text for text in output)
        assert "I found ***" in await read_pull_body(env, number)
        assert secret not in env.git("log", "--format=%B", "osiris/1-add-subtracts")
