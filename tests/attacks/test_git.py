"""Hostile repositories: the agent prepares its workspace for the host's git, and then its work is
taken."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from osiris.core.errors import LocalTimeout, OsirisError
from tests.attacks.conftest import SMALL, USERS, Attacked
from tests.attacks.git_hosts import (
    PRIVATE,
    Careful,
    Thief,
    Tree,
    Trusting,
    contents,
    leaks,
    planting,
    tree_of,
)
from tests.attacks.hostile_repositories import (
    BROKEN,
    COMMANDS,
    ENTRIES,
    HIDDEN,
    OTHERS,
    PLANTS,
    WORK,
    Plant,
)

DONE = {"README.md": ("100644", "hello\nchange\n"), "src/new.txt": ("100644", "new\n")}


@pytest.fixture(scope="session")
def thief() -> Thief:
    return Thief()


@pytest.fixture(scope="session")
def trusting(worker: Attacked, thief: Thief) -> Trusting:
    return Trusting(worker, thief)


@pytest.fixture(scope="session")
def careful(worker: Attacked) -> Careful:
    return asyncio.run(Careful.at(worker.place / "careful", worker.repo))


@dataclass(frozen=True)
class Hosts:
    """Who takes the work; and where the attackers listen."""

    trusting: Trusting
    careful: Careful
    thief: Thief


@pytest.fixture
def hosts(trusting: Trusting, careful: Careful, thief: Thief) -> Hosts:
    return Hosts(trusting, careful, thief)


@pytest.mark.parametrize("name", [*HIDDEN, *BROKEN])
async def test_a_repository_that_hides_work_or_loses_it(name, attacked, hosts, verdict):
    await plant_and_take(name, attacked, hosts)
    verdict("refused in a sentence" if PLANTS[name].refused else "taken whole", PLANTS[name].harm)


@pytest.mark.parametrize("worker", USERS[:1], indirect=True)
@pytest.mark.parametrize("name", [*COMMANDS, *OTHERS, *ENTRIES])
async def test_a_repository_that_is_after_the_host(name, attacked, hosts, verdict):
    """With one worker: it is the same host for all of them."""
    await plant_and_take(name, attacked, hosts)
    verdict("refused in a sentence" if PLANTS[name].refused else "taken whole", PLANTS[name].harm)


async def plant_and_take(name: str, attacked: Attacked, hosts: Hosts) -> None:
    """Osiris' host takes what it should, and no harm is done; the other one is harmed."""
    trusting = hosts.trusting
    careful = hosts.careful
    thief = hosts.thief
    plant = PLANTS[name]
    ground = trusting.ground
    told = {"THIEF": str(thief.port), "STOLEN": stolen()}
    here = {
        "M": f"{ground}/marker",
        "OUT": f"{ground}/outside",
        "OTHER": f"{ground}/other",
        "ORIGIN": careful.address,
    }
    before = contents(ground)
    heard = thief.heard
    branch = f"bot-{name.encode().hex()}"
    attacked.bash(planting(plant, {**told, **here}))
    taken = await careful.publish(attacked, branch)
    pushed = await tree_of(careful.origin, f"refs/heads/{branch}")
    assert (contents(ground), thief.heard) == (before, heard)
    check(plant, taken, pushed, attacked.canary)
    assert plant.harm in await trusting.harms(branch, plant, told)


def check(plant: Plant, taken: Any, pushed: Tree | None, canary: str) -> None:
    """It was refused in the words of the plant, or everything that the agent did was pushed and
    nothing else."""
    if plant.refused:
        assert isinstance(taken, OsirisError), "it was taken"
        assert plant.refused in str(taken)
        assert pushed is None
        return
    assert not isinstance(taken, OsirisError), taken
    assert {**pushed, **DONE, **plant.work} == pushed
    assert not leaks(pushed, canary)
    told = {file.path: (file.status, file.additions) for file in taken.files}
    assert told["src/new.txt"] == ("added", 1)
    assert told["README.md"][0] == "modified"


def stolen() -> str:
    """git's name for a file of another repository, which the agent may know."""
    content = PRIVATE.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.mark.parametrize("name", WORK)
async def test_work_that_looks_odd_still_comes_out(name, attacked, careful):
    script, work = WORK[name]
    attacked.bash(f"echo change >>README.md; mkdir -p src; echo new >src/new.txt; {script}")
    taken = await careful.publish(attacked, f"work-{name.encode().hex()}")
    assert not isinstance(taken, OsirisError), taken
    pushed = await tree_of(careful.origin, f"refs/heads/work-{name.encode().hex()}")
    assert {"README.md": DONE["README.md"], **work}.items() <= pushed.items()


NESTED_PIPE = "mkdir -p sub/.git/objects sub/.git/refs; mkfifo sub/.git/HEAD"


def test_a_nested_repository_whose_head_is_a_pipe(attacked, verdict):
    """git waits for somebody to write into it: where it may only take its time, that is the end of
    it."""
    attacked.create("hung", replace(SMALL, export_seconds=1.0))
    attacked.bash(NESTED_PIPE, name="hung")
    began = time.monotonic()
    with pytest.raises(LocalTimeout, match="took too long"):
        attacked.ask("export", "hung", attacked.base, str(attacked.place / "own/pack"))
    assert time.monotonic() - began < 10
    assert attacked.bash("rm -r sub; echo well", name="hung").output == b"well\n"
    attacked.ask("destroy", "hung")
    free = attacked.unprotected(
        f"git init -q hung; cd hung; {NESTED_PIPE}; timeout 0.5 git add -A; echo $?"
    )
    assert free == "124\n"
    verdict("ended after its time", "the host's git hung")
