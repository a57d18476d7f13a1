"""The story: a maintainer files tenacity's bug, Osiris mends it, a colleague reviews twice, and
merges."""

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

from fake_vendors.server import Vendors, serving
from osiris.bootstrap import Osiris
from osiris.devhub.server import Hub
from osiris.playground.demo import Demo
from osiris.playground.environment import Environment, start_environment
from osiris.playground.users import Person
from realbug import source
from realbug.clone import Clone, insist

SCRIPTED = "scripted"
REPEATED = 0.9  # of the input tokens from the second step on, at least
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
_WISH = "112 and 113 go the same way. Please have both in this test."
_SUITE = "python -m pytest -q"


async def play(vendor: str) -> None:
    """Play it for real, and check every claim. Raises Refused when anything is not as it should be.

    The script is followed by Osiris' own scripted brain, or, with a `vendor`, by a server on this
    machine that speaks that vendor's wire: then the vendor's own library is in between, as it is in
    use.
    """
    began = time.monotonic()
    out = Console(soft_wrap=True, highlight=False)
    logging.disable(logging.WARNING)  # what was refused is told once, at the end
    place = Path(tempfile.mkdtemp(prefix="osiris-real-"))
    place.chmod(0o711)  # the sandbox's own user passes through
    try:
        files = await asyncio.to_thread(source.release)
        tools = await asyncio.to_thread(source.toolchain, place / "toolchain")
        if vendor == SCRIPTED:
            await _on_stage(place, files, tools, out, began, None, vendor)
        else:
            async with serving(source.HERE / "script.yml") as vendors:
                await _on_stage(place, files, tools, out, began, vendors, vendor)
    finally:
        shutil.rmtree(place, ignore_errors=True)


async def _on_stage(
    place: Path,
    files: Mapping[str, bytes],
    tools: Path,
    out: Console,
    began: float,
    vendors: Vendors | None,
    vendor: str,
) -> None:
    people = {"alice": "maintain", "bob": "write"}
    model = {"osiris_model": f"scripted:{source.HERE / 'script.yml'}"}
    if vendors:
        model = {name.lower(): value for name, value in vendors.environ(vendor).items()}
    async with (
        start_environment(
            place, repo=REPO, files=files, people=people, toolchains=(tools,), more=model
        ) as playground,
        playground.run_osiris() as osiris,
    ):
        story = Real(playground, osiris, out)
        before = await story.clone(place / "before", tools)
        insist(before.ordinal(111) == "111st", "this release of tenacity does not have the bug")
        was = before.suite()
        story.tell(
            "0",
            f"tenacity 9.1.2 as published: to_ordinal(111) is 111st, and its own suite says: {was}",
        )
        pull = await story.play()
        after = await story.clone(place / "after", tools)
        now = after.check(TEST)
        story.tell(
            "7",
            f"a plain git clone elsewhere, outside the sandbox: to_ordinal(111) is 111th, {now}",
        )
    told = {
        "suite before": was,
        "suite after": now,
        "pull request": f"#{pull}, 2 commits, merged; its issue is closed",
        "model": model["osiris_model"],
        **(_wire(vendors, vendor) if vendors else {}),
        "elapsed": f"{time.monotonic() - began:.1f} s",
    }
    _summary(out, told)


def _wire(vendors: Vendors, vendor: str) -> dict[str, str]:
    share = vendors.repeated(vendor)
    insist(share >= REPEATED, f"only {share:.1%} of the input tokens were a repeated prefix")
    return {
        "requests": str(len(vendors.requests)),
        "repeated": f"{share:.1%} of the input tokens from step 2 on",
    }


def _summary(out: Console, told: Mapping[str, str]) -> None:
    out.print()
    for name, value in told.items():
        out.print(Text.assemble((f"   {name:<14}", "dim"), value))


class Real(Demo):
    """The acts. How they are told, and what the agent does meanwhile, is the demo's."""

    def __init__(self, playground: Environment, osiris: Osiris, out: Console) -> None:
        super().__init__(playground, osiris, out)
        self.tell = self._print_act

    async def clone(self, place: Path, tools: Path) -> Clone:
        hub: Hub = self._environment.hub
        return await asyncio.to_thread(Clone.of, f"{hub.url}/{REPO}.git", place, tools)

    async def play(self) -> int:
        """From the issue to the merge; gives the pull request's number."""
        async with (
            self._environment.get_person("alice") as alice,
            self._environment.get_person("bob") as bob,
        ):
            issue = await alice.file_issue(_TITLE, _BODY)
            await alice.add_label(issue)
            self.tell(
                "1",
                f"alice filed issue #{issue} in {REPO} and gave it the label osiris: “{_TITLE}”",
            )
            await self._work()
            pull = int((await self._list_pulls(alice))[0]["number"])
            await self._opened(alice, pull, issue)
            await self._reviewed(bob, pull)
            await self._work()
            await self._answered(bob, pull)
            await self._merged(bob, pull)
            await self._end(alice, issue)
            return pull

    async def _work(self) -> None:
        async with self._show_progress():
            await self._environment.wait_until_settled(self._osiris.store)
        [line] = await self._osiris.read_models.list_tasks()
        insist(
            line.task.state == "review",
            f"the task is {line.task.state} after the run: {line.task.reason}",
        )

    async def _opened(self, alice: Person, pull: int, issue: int) -> None:
        body = (await alice.get_pull(pull))["body"]
        rows = [
            f"| `{_SUITE} {TEST}` | 1 |",
            f"| `{_SUITE} {TEST}` | 0 |",
            f"| `{_SUITE}` | 0 |",
            f"| `{TEST}` | modified |",
            "| `tenacity/_utils.py` | modified |",
            f"Closes #{issue}",
        ]
        lost = [row for row in rows if row not in body]
        insist(not lost, f"the pull request's body lacks {lost}")
        self.tell("2", f"Osiris opened draft pull request #{pull}. Its evidence, by the harness:")
        for line in body.splitlines():
            if line.startswith(f"| `{_SUITE}"):
                self._out.print(Text(f"   {line}", style="green"))

    async def _reviewed(self, bob: Person, pull: int) -> None:
        line = await self._line(bob, pull, "to_ordinal(111)")
        await bob.submit_review(
            pull, "REQUEST_CHANGES", "Nearly.", [{"path": TEST, "line": line, "body": _WISH}]
        )
        self.tell("3", f"bob asked for changes, at line {line} of {TEST}: “{_WISH}”")

    async def _line(self, person: Person, pull: int, piece: str) -> int:
        """The number of the line in the test that holds `piece`, in the pull request's newest
        commit."""
        head = (await person.get_pull(pull))["head"]["sha"]
        found = await person.send_request("GET", f"/contents/{TEST}?ref={head}")
        lines = base64.b64decode(found["content"]).decode().splitlines()
        numbers = [number for number, line in enumerate(lines, 1) if piece in line]
        insist(len(numbers) == 1, f"{piece} is on {len(numbers)} lines of {TEST}")
        return numbers[0]

    async def _answered(self, bob: Person, pull: int) -> None:
        pulls = await bob.list_pulls()
        commits = await bob.send_request("GET", f"/pulls/{pull}/commits")
        insist(len(pulls) == 1, f"there are {len(pulls)} pull requests, not 1")
        insist(len(commits) == 2, f"the pull request has {len(commits)} commits, not 2")
        files = await bob.send_request("GET", f"/commits/{commits[1]['sha']}")
        changed = [file["filename"] for file in files["files"]]
        insist(changed == [TEST], f"the second commit changed {changed}")
        self.tell("4", f"Osiris answered on the same pull request: {len(commits)} commits now")
        for commit in commits:
            self._out.print(
                Text(
                    f"   {commit['sha'][:9]} {commit['commit']['message'].splitlines()[0]}",
                    style="green",
                )
            )

    async def _merged(self, bob: Person, pull: int) -> None:
        await bob.submit_review(pull, "APPROVE", "Thank you.")
        await self._environment.wait_until_settled(self._osiris.store)
        insist(
            not (await bob.get_pull(pull))["draft"], "the approved pull request is still a draft"
        )
        self.tell("5", f"bob approved: pull request #{pull} is no draft any more")
        await bob.merge_pull(pull)
        await self._environment.wait_until_settled(self._osiris.store)
        insist((await bob.get_pull(pull))["merged"], "the pull request is not merged")

    async def _end(self, alice: Person, issue: int) -> None:
        await super()._check_end(alice, issue)
        state = (await alice.send_request("GET", f"/issues/{issue}"))["state"]
        insist(state == "closed", f"the issue is {state}")
