"""The story: a maintainer files tenacity's bug, Osiris fixes it, a colleague reviews the fix twice
and merges it."""

import asyncio
import base64
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fake_vendors.server import Vendors, serve_vendors
from osiris.bootstrap import Osiris
from osiris.devhub.server import Hub
from osiris.playground.demo import Demo
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from realbug import source
from realbug.clone import Clone, require

SCRIPTED = "scripted"
MIN_REPEATED_SHARE = 0.9  # of the input tokens from the second step on, at least
REPO = "jd/tenacity"
TEST = "tests/test_utils.py"
_TITLE = "The 111th attempt is logged as 111st"
_BODY = """\
With a retry that takes long enough, `before_log` writes

    Starting call to 'fetch', this is the 111st time calling it.

```python
>>> from tenacity._utils import to_ordinal
>>> to_ordinal(11), to_ordinal(111)
('11th', '111st')
```
"""
_REVIEW_TEXT = "112 and 113 go the same way. Please have both in this test."
_SUITE_COMMAND = "python -m pytest -q"


async def play_story(vendor: str) -> None:
    """Play the whole story, and check each result. Raise Refused if a result is not as expected.

    The script is played by Osiris' own scripted model, or, with a `vendor`, by a server on this
    machine that imitates that vendor's API. Then Osiris uses the vendor's own library, as in
    production.
    """
    began = time.monotonic()
    out = Console(soft_wrap=True, highlight=False)
    logging.disable(logging.WARNING)  # a refusal is printed once, at the end
    folder = Path(tempfile.mkdtemp(prefix="osiris-real-"))
    folder.chmod(0o711)  # the sandbox's user must be able to pass through
    try:
        files = await asyncio.to_thread(source.load_release)
        tools = await asyncio.to_thread(source.create_toolchain, folder / "toolchain")
        if vendor == SCRIPTED:
            await _play_in_environment(folder, files, tools, out, began, None, vendor)
        else:
            async with serve_vendors(source.REALBUG_FOLDER / "script.yml") as vendors:
                await _play_in_environment(folder, files, tools, out, began, vendors, vendor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _play_in_environment(
    folder: Path,
    files: Mapping[str, bytes],
    tools: Path,
    out: Console,
    began: float,
    vendors: Vendors | None,
    vendor: str,
) -> None:
    people = {"alice": "maintain", "bob": "write"}
    model = {"osiris_model": f"scripted:{source.REALBUG_FOLDER / 'script.yml'}"}
    if vendors:
        model = {name.lower(): value for name, value in vendors.build_environ(vendor).items()}
    async with (
        start_environment(
            folder, repo=REPO, files=files, people=people, toolchains=(tools,), more=model
        ) as playground,
        playground.run_osiris() as osiris,
    ):
        demo = RealBugDemo(playground, osiris, out)
        before = await demo.create_clone(folder / "before", tools)
        require(
            before.call_to_ordinal(111) == "111st", "this release of tenacity does not have the bug"
        )
        suite_before = before.run_suite()
        demo.announce(
            "0",
            "tenacity 9.1.2 as published: to_ordinal(111) is 111st, and its own suite says:"
            f" {suite_before}",
        )
        pull = await demo.play_acts()
        after = await demo.create_clone(folder / "after", tools)
        suite_after = after.check_fix(TEST)
        demo.announce(
            "7",
            "a plain git clone elsewhere, outside the sandbox: to_ordinal(111) is 111th,"
            f" {suite_after}",
        )
    facts = {
        "suite before": suite_before,
        "suite after": suite_after,
        "pull request": f"#{pull}, 2 commits, merged; its issue is closed",
        "model": model["osiris_model"],
        **(_describe_requests(vendors, vendor) if vendors else {}),
        "elapsed": f"{time.monotonic() - began:.1f} s",
    }
    _print_summary(out, facts)


def _describe_requests(vendors: Vendors, vendor: str) -> dict[str, str]:
    share = vendors.get_repeated_share(vendor)
    require(
        share >= MIN_REPEATED_SHARE, f"only {share:.1%} of the input tokens were a repeated prefix"
    )
    return {
        "requests": str(len(vendors.requests)),
        "repeated": f"{share:.1%} of the input tokens from step 2 on",
    }


def _print_summary(out: Console, facts: Mapping[str, str]) -> None:
    out.print()
    for name, value in facts.items():
        out.print(Text.assemble((f"   {name:<14}", "dim"), value))


class RealBugDemo(Demo):
    """The acts of the story. Their output, and the display of the agent's work, are those of the
    demo."""

    def __init__(self, playground: Environment, osiris: Osiris, out: Console) -> None:
        super().__init__(playground, osiris, out)
        self.announce = self._print_act

    async def create_clone(self, folder: Path, tools: Path) -> Clone:
        hub: Hub = self._environment.hub
        return await asyncio.to_thread(Clone.create, f"{hub.url}/{REPO}.git", folder, tools)

    async def play_acts(self) -> int:
        """Play the acts from the issue to the merge. Return the number of the pull request."""
        async with (
            self._environment.get_person("alice") as alice,
            self._environment.get_person("bob") as bob,
        ):
            issue = await alice.file_issue(_TITLE, _BODY)
            await alice.add_label(issue)
            self.announce(
                "1",
                f"alice filed issue #{issue} in {REPO} and gave it the label osiris: “{_TITLE}”",
            )
            await self._wait_for_run()
            pull = int((await self._list_pulls(alice))[0]["number"])
            await self._check_pull(alice, pull, issue)
            await self._submit_review(bob, pull)
            await self._wait_for_run()
            await self._check_second_commit(bob, pull)
            await self._approve_and_merge(bob, pull)
            await self._check_issue_is_closed(alice, issue)
            return pull

    async def _wait_for_run(self) -> None:
        async with self._show_progress():
            await self._environment.wait_until_settled(self._osiris.store)
        [line] = await self._osiris.read_models.list_tasks()
        require(
            line.task.state == "review",
            f"the task is {line.task.state} after the run: {line.task.reason}",
        )

    async def _check_pull(self, alice: Person, pull: int, issue: int) -> None:
        body = (await alice.get_pull(pull))["body"]
        expected_rows = [
            f"| `{_SUITE_COMMAND} {TEST}` | 1 |",
            f"| `{_SUITE_COMMAND} {TEST}` | 0 |",
            f"| `{_SUITE_COMMAND}` | 0 |",
            f"| `{TEST}` | modified |",
            "| `tenacity/_utils.py` | modified |",
            f"Closes #{issue}",
        ]
        missing_rows = [row for row in expected_rows if row not in body]
        require(not missing_rows, f"the pull request's body lacks {missing_rows}")
        self.announce(
            "2", f"Osiris opened draft pull request #{pull}. Its evidence, by the harness:"
        )
        for line in body.splitlines():
            if line.startswith(f"| `{_SUITE_COMMAND}"):
                self._out.print(Text(f"   {line}", style="green"))

    async def _submit_review(self, bob: Person, pull: int) -> None:
        line = await self._find_line(bob, pull, "to_ordinal(111)")
        await bob.submit_review(
            pull, "REQUEST_CHANGES", "Nearly.", [{"path": TEST, "line": line, "body": _REVIEW_TEXT}]
        )
        self.announce("3", f"bob asked for changes, at line {line} of {TEST}: “{_REVIEW_TEXT}”")

    async def _find_line(self, person: Person, pull: int, fragment: str) -> int:
        """Return the number of the line in the test that contains `fragment`, in the newest commit
        of the pull request."""
        head = (await person.get_pull(pull))["head"]["sha"]
        file = await person.send_request("GET", f"/contents/{TEST}?ref={head}")
        lines = base64.b64decode(file["content"]).decode().splitlines()
        numbers = [number for number, line in enumerate(lines, 1) if fragment in line]
        require(len(numbers) == 1, f"{fragment} is on {len(numbers)} lines of {TEST}")
        return numbers[0]

    async def _check_second_commit(self, bob: Person, pull: int) -> None:
        pulls = await bob.list_pulls()
        commits = await bob.send_request("GET", f"/pulls/{pull}/commits")
        require(len(pulls) == 1, f"there are {len(pulls)} pull requests, not 1")
        require(len(commits) == 2, f"the pull request has {len(commits)} commits, not 2")
        files = await bob.send_request("GET", f"/commits/{commits[1]['sha']}")
        changed_paths = [file["filename"] for file in files["files"]]
        require(changed_paths == [TEST], f"the second commit changed {changed_paths}")
        self.announce("4", f"Osiris answered on the same pull request: {len(commits)} commits now")
        for commit in commits:
            self._out.print(
                Text(
                    f"   {commit['sha'][:9]} {commit['commit']['message'].splitlines()[0]}",
                    style="green",
                )
            )

    async def _approve_and_merge(self, bob: Person, pull: int) -> None:
        await bob.submit_review(pull, "APPROVE", "Thank you.")
        await self._environment.wait_until_settled(self._osiris.store)
        require(
            not (await bob.get_pull(pull))["draft"], "the approved pull request is still a draft"
        )
        self.announce("5", f"bob approved: pull request #{pull} is no draft any more")
        await bob.merge_pull(pull)
        await self._environment.wait_until_settled(self._osiris.store)
        require((await bob.get_pull(pull))["merged"], "the pull request is not merged")

    async def _check_issue_is_closed(self, alice: Person, issue: int) -> None:
        await super()._check_end(alice, issue)
        state = (await alice.send_request("GET", f"/issues/{issue}"))["state"]
        require(state == "closed", f"the issue is {state}")
