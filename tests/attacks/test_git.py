"""Hostile repositories: the agent prepares its workspace for the host's git, and then the host
imports its work."""

import asyncio
import hashlib
import time
from dataclasses import dataclass, replace
from typing import Any

import pytest

from osiris.core.errors import LocalTimeout, OsirisError
from tests.attacks.conftest import SMALL_LIMITS, USERS, WorkerUnderAttack
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
    BAD_ENTRIES,
    BROKEN_REPOSITORIES,
    COMMANDS,
    FOREIGN_TARGETS,
    HIDDEN_CHANGES,
    ODD_WORK,
    PLANTS,
    Plant,
)

EXPECTED_FILES = {"README.md": ("100644", "hello\nchange\n"), "src/new.txt": ("100644", "new\n")}


@pytest.fixture(scope="session")
def attacker() -> AttackerServer:
    return AttackerServer()


@pytest.fixture(scope="session")
def naive_host(worker: WorkerUnderAttack, attacker: AttackerServer) -> NaiveHost:
    return NaiveHost(worker, attacker)


@pytest.fixture(scope="session")
def hardened_host(worker: WorkerUnderAttack) -> HardenedHost:
    return asyncio.run(HardenedHost.create(worker.folder / "careful", worker.repo))


@dataclass(frozen=True)
class Hosts:
    """The hosts that import the work, and the server of the attackers."""

    naive_host: NaiveHost
    hardened_host: HardenedHost
    attacker: AttackerServer


@pytest.fixture
def hosts(naive_host: NaiveHost, hardened_host: HardenedHost, attacker: AttackerServer) -> Hosts:
    return Hosts(naive_host, hardened_host, attacker)


@pytest.mark.parametrize("name", [*HIDDEN_CHANGES, *BROKEN_REPOSITORIES])
async def test_a_repository_that_hides_work_or_loses_it(
    name, worker, fresh_session, hosts, record_verdict
):
    await plant_and_publish(name, worker, hosts)
    record_verdict(
        "refused in a sentence" if PLANTS[name].refusal else "taken whole", PLANTS[name].harm
    )


@pytest.mark.parametrize("worker", USERS[:1], indirect=True)
@pytest.mark.parametrize("name", [*COMMANDS, *FOREIGN_TARGETS, *BAD_ENTRIES])
async def test_a_repository_that_is_after_the_host(
    name, worker, fresh_session, hosts, record_verdict
):
    """One kind of worker is enough, because all have the same host."""
    await plant_and_publish(name, worker, hosts)
    record_verdict(
        "refused in a sentence" if PLANTS[name].refusal else "taken whole", PLANTS[name].harm
    )


async def plant_and_publish(name: str, worker: WorkerUnderAttack, hosts: Hosts) -> None:
    """Assert that Osiris' host imports what it should without harm, and that the naive host suffers
    the harm of the plant."""
    naive_host = hosts.naive_host
    hardened_host = hosts.hardened_host
    attacker = hosts.attacker
    plant = PLANTS[name]
    template = naive_host.template
    script_env = {"THIEF": str(attacker.port), "STOLEN": find_private_blob()}
    host_env = {
        "M": f"{template}/marker",
        "OUT": f"{template}/outside",
        "OTHER": f"{template}/other",
        "ORIGIN": hardened_host.address,
    }
    before = read_files(template)
    received = attacker.received
    branch = f"bot-{name.encode().hex()}"
    worker.run_script(build_plant_script(plant, {**script_env, **host_env}))
    result = await hardened_host.publish_work(worker, branch)
    pushed = await read_tree(hardened_host.origin, f"refs/heads/{branch}")
    assert (read_files(template), attacker.received) == (before, received)
    check_result(plant, result, pushed, worker.canary)
    assert plant.harm in await naive_host.find_harms(branch, plant, script_env)


def check_result(plant: Plant, result: Any, pushed: Tree | None, canary: str) -> None:
    """Assert that the work was refused as the plant expects, or that all of the agent's work was
    pushed, and nothing else."""
    if plant.refusal:
        assert isinstance(result, OsirisError), "it was taken"
        assert plant.refusal in str(result)
        assert pushed is None
        return
    assert not isinstance(result, OsirisError), result
    assert {**pushed, **EXPECTED_FILES, **plant.expected_files} == pushed
    assert not contains_secret(pushed, canary)
    changes = {file.path: (file.status, file.additions) for file in result.files}
    assert changes["src/new.txt"] == ("added", 1)
    assert changes["README.md"][0] == "modified"


def find_private_blob() -> str:
    """Return git's id of a file of another repository, which the agent may know."""
    content = PRIVATE.encode()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.mark.parametrize("name", ODD_WORK)
async def test_work_that_looks_odd_still_comes_out(name, worker, fresh_session, hardened_host):
    script, expected_files = ODD_WORK[name]
    worker.run_script(f"echo change >>README.md; mkdir -p src; echo new >src/new.txt; {script}")
    result = await hardened_host.publish_work(worker, f"work-{name.encode().hex()}")
    assert not isinstance(result, OsirisError), result
    pushed = await read_tree(hardened_host.origin, f"refs/heads/work-{name.encode().hex()}")
    assert {"README.md": EXPECTED_FILES["README.md"], **expected_files}.items() <= pushed.items()


NESTED_PIPE = "mkdir -p sub/.git/objects sub/.git/refs; mkfifo sub/.git/HEAD"


def test_a_nested_repository_whose_head_is_a_pipe(worker, fresh_session, record_verdict):
    """git waits for a process that writes into the pipe, so the export must end at its timeout."""
    worker.create_session("hung", replace(SMALL_LIMITS, export_seconds=1.0))
    worker.run_script(NESTED_PIPE, name="hung")
    began = time.monotonic()
    with pytest.raises(LocalTimeout, match="took too long"):
        worker.call("export_work", "hung", worker.base, str(worker.folder / "own/pack"))
    assert time.monotonic() - began < 30
    assert worker.run_script("rm -r sub; echo well", name="hung").output == b"well\n"
    worker.destroy_session("hung")
    control_output = worker.run_unprotected(
        f"git init -q hung; cd hung; {NESTED_PIPE}; timeout 0.5 git add -A; echo $?"
    )
    assert control_output == "124\n"
    record_verdict("ended after its time", "the host's git hung")
