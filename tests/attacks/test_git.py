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
    AttackerServer,
    HardenedHost,
    NaiveHost,
    Tree,
    build_plant_script,
    contains_secret,
    read_files,
    read_tree,
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
def attacker() -> AttackerServer:
    return AttackerServer()


@pytest.fixture(scope="session")
def naive_host(worker: Attacked, attacker: AttackerServer) -> NaiveHost:
    return NaiveHost(worker, attacker)


@pytest.fixture(scope="session")
def hardened_host(worker: Attacked) -> HardenedHost:
    return asyncio.run(HardenedHost.at(worker.place / "careful", worker.repo))


@dataclass(frozen=True)
class Hosts:
    """Who takes the work; and where the attackers listen."""

    naive_host: NaiveHost
    hardened_host: HardenedHost
    attacker: AttackerServer


@pytest.fixture
def hosts(naive_host: NaiveHost, hardened_host: HardenedHost, attacker: AttackerServer) -> Hosts:
    return Hosts(naive_host, hardened_host, attacker)


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
    naive_host = hosts.naive_host
    hardened_host = hosts.hardened_host
    attacker = hosts.attacker
    plant = PLANTS[name]
    template = naive_host.template
    script_env = {"THIEF": str(attacker.port), "STOLEN": stolen()}
    here = {
        "M": f"{template}/marker",
        "OUT": f"{template}/outside",
        "OTHER": f"{template}/other",
        "ORIGIN": hardened_host.address,
    }
    before = read_files(template)
    received = attacker.received
    branch = f"bot-{name.encode().hex()}"
    attacked.bash(build_plant_script(plant, {**script_env, **here}))
    taken = await hardened_host.publish(attacked, branch)
    pushed = await read_tree(hardened_host.origin, f"refs/heads/{branch}")
    assert (read_files(template), attacker.received) == (before, received)
    check(plant, taken, pushed, attacked.canary)
    assert plant.harm in await naive_host.find_harms(branch, plant, script_env)


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
    assert not contains_secret(pushed, canary)
    changes = {file.path: (file.status, file.additions) for file in taken.files}
    assert changes["src/new.txt"] == ("added", 1)
    assert changes["README.md"][0] == "modified"


def stolen() -> str:
    """git's name for a file of another repository, which the agent may know."""
    content = PRIVATE.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.mark.parametrize("name", WORK)
async def test_work_that_looks_odd_still_comes_out(name, attacked, hardened_host):
    script, work = WORK[name]
    attacked.bash(f"echo change >>README.md; mkdir -p src; echo new >src/new.txt; {script}")
    taken = await hardened_host.publish(attacked, f"work-{name.encode().hex()}")
    assert not isinstance(taken, OsirisError), taken
    pushed = await read_tree(hardened_host.origin, f"refs/heads/work-{name.encode().hex()}")
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
