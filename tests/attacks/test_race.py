"""Races: while the host exports or writes files, a process of the agent swaps them for something
else."""

from pathlib import Path

import pytest

from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import run_git
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Export
from tests.attacks.attack import quote_python
from tests.attacks.conftest import WorkerUnderAttack
from tests.attacks.git_hosts import REPO, HardenedHost

FILE_COUNT, EXPORT_COUNT = 100, 4
SWAP_FILES = """
import ctypes, os, sys, time
there, secret, number, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
exchange, aside = ctypes.CDLL(None).renameat2, there + "/.git/swapped"
os.makedirs(aside, exist_ok=True)
pairs = [(f"{there}/f{n}".encode(), f"{aside}/{n}".encode()) for n in range(number)]
for file, link in pairs:
    open(file, "w").write("an innocent file of the same length"[:20] + "\\n")
    os.path.lexists(link) or os.symlink(secret, link)
until, swaps = time.monotonic() + seconds, 0
while time.monotonic() < until:
    for file, link in pairs:
        exchange(-100, file, -100, link, 2)
    swaps += number
print("swaps", swaps)
"""
CHECK_THEN_READ = """
import os, sys, time
there, number, seconds = os.path.realpath(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
until, secrets = time.monotonic() + seconds, 0
while time.monotonic() < until and not secrets:
    for n in range(number):
        path = f"{there}/f{n}"
        try:
            if os.path.realpath(path).startswith(there + "/"):
                secrets += "canary" in open(path).read()
        except OSError:
            pass
print("secrets", secrets)
"""


@pytest.fixture
async def hardened_host(folder: Path, worker: WorkerUnderAttack) -> HardenedHost:
    return await HardenedHost.create(folder, worker.repo)


def build_swap_command(folder: str, worker: WorkerUnderAttack, seconds: float) -> str:
    """Return a shell command that swaps files in a folder with links to the worker's key."""
    key = str(worker.folder / "own/private.pem")
    return quote_python(SWAP_FILES, folder, key, str(FILE_COUNT), str(seconds))


async def import_pack(repositories: HostRepositories, base: str, tree: str, pack: Path) -> str:
    """Import a pack, and return why it was refused; "" if it was not."""
    try:
        with pack.open("rb") as file:
            await repositories.import_pack(REPO, base, Export(tree=tree, pack=file), ())
    except Refused as error:
        return str(error)
    return ""


async def test_files_that_become_links_while_the_work_is_taken(
    worker, fresh_session, hardened_host, record_verdict
):
    own = worker.folder / "own"
    packs = [own / f"pack-{number}" for number in range(EXPORT_COUNT)]
    *export_calls, last_call = [
        ("run_together", ([("export_work", ("s", worker.base, str(pack)), {})],), {})
        for pack in packs
    ]
    swap_command = build_swap_command("/workspace", worker, 1.0)
    swap_call = ("run_command", ("s", ["bash", "-c", swap_command]), {})
    swap_result, exports = worker.call("run_beside", swap_call, *export_calls)
    # the last export runs when the swapping has ended, so it cannot fail
    exports.append(worker.call("run_together", *last_call[1]))
    assert int(swap_result.output.decode().rpartition("swaps ")[2]) > FILE_COUNT
    errors = [str(export) for [export] in exports if isinstance(export, Exception)]
    assert all("could not be taken out of the sandbox" in error for error in errors), errors
    trees = [
        (export, pack)
        for [export], pack in zip(exports[-EXPORT_COUNT:], packs, strict=True)
        if isinstance(export, str)
    ]
    assert trees
    refusals = [
        await import_pack(hardened_host.repositories, worker.base, tree, pack)
        for tree, pack in trees
    ]
    objects = await run_git(
        hardened_host.repositories.repository_path(REPO),
        "cat-file",
        "--batch-all-objects",
        "--batch",
    )
    assert worker.canary.encode() not in objects
    assert all(refusal == "" or "leaves the repository" in refusal for refusal in refusals)
    record_verdict(f"{len(exports)} takes, no secret", run_control(worker))


def run_control(worker: WorkerUnderAttack) -> str:
    """Assert that a host that checks a path and then reads it reads the secret during the same
    swapping, and return that as the control's outcome."""
    folder = f"{worker.folder}/own/plain/raced"
    swap = build_swap_command(folder, worker, 5.0)
    read = quote_python(CHECK_THEN_READ, folder, str(FILE_COUNT), "5")
    output = worker.run_unprotected(f"mkdir -p {folder}; {swap} & {read}; kill %1")
    assert int(output.rpartition("secrets ")[2]) > 0
    return "realpath() and open() read the secret"


# ── files that the host writes ────────────────────────────────────────────────────────────────────

SWAP_FOLDER = """
import ctypes, os, sys, time
folder, target, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
exchange = ctypes.CDLL(None).renameat2
os.makedirs(folder, exist_ok=True)
os.path.lexists(folder + "-link") or os.symlink(target, folder + "-link")
until, swaps = time.monotonic() + seconds, 0
while time.monotonic() < until:
    exchange(-100, folder.encode(), -100, (folder + "-link").encode(), 2)
    swaps += 1
print("swaps", swaps)
"""
CHECK_THEN_WRITE = """
import os, sys, time
folder, until = sys.argv[1], time.monotonic() + 5
while time.monotonic() < until and not os.listdir(sys.argv[2]):
    try:
        if os.path.realpath(folder) == folder:
            open(folder + "/kept", "w").write("x")
    except OSError:
        pass
"""


def test_a_folder_that_becomes_a_link_while_the_host_writes_into_it(
    worker, fresh_session, record_verdict
):
    """The host writes long outputs to a folder that the agent can read."""
    target = worker.folder / "own/target"
    folder = f"{worker.folder}/own/plain/folder"
    worker.run_unprotected(f"rm -rf {target} {folder}*; mkdir -m 777 {target}")
    swap = quote_python(SWAP_FOLDER, "/tmp/outputs", str(target), "1.0")
    swap_call = ("run_command", ("s", ["bash", "-c", swap]), {})
    write_call = ("run_command", ("s", ["echo", "kept"]), {"keep_as": "kept"})
    swap_result, write_results = worker.call("run_beside", swap_call, write_call)
    assert int(swap_result.output.decode().rpartition("swaps ")[2]) > 1000
    assert len(write_results) > 3
    assert list(target.iterdir()) == []
    control_swap = quote_python(SWAP_FOLDER, folder, str(target), "5.0")
    control_write = quote_python(CHECK_THEN_WRITE, folder, str(target))
    worker.run_unprotected(f"mkdir {folder}; {control_swap} & {control_write}; kill %1")
    assert [path.name for path in target.iterdir()] == ["kept"]
    record_verdict(
        f"{len(write_results)} writes, none outside", "realpath() and open() wrote outside"
    )
