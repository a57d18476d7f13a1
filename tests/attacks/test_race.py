"""Races: a process of the agent is still at work while the host takes something, and swaps it for
something else."""

from pathlib import Path

import pytest

from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import run_git
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Export
from tests.attacks.attack import python
from tests.attacks.conftest import Attacked
from tests.attacks.git_hosts import REPO, HardenedHost

FILES, TAKES = 100, 4
SWAP = """
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
async def hardened_host(place: Path, attacked: Attacked) -> HardenedHost:
    return await HardenedHost.at(place, attacked.repo)


def swapping(there: str, attacked: Attacked, seconds: float) -> str:
    return python(SWAP, there, str(attacked.place / "own/private.pem"), str(FILES), str(seconds))


async def take_over(repositories: HostRepositories, base: str, tree: str, pack: Path) -> str:
    """Why it was refused."""
    try:
        with pack.open("rb") as file:
            await repositories.import_pack(REPO, base, Export(tree=tree, pack=file), ())
    except Refused as error:
        return str(error)
    return ""


async def test_files_that_become_links_while_the_work_is_taken(attacked, hardened_host, verdict):
    own = attacked.place / "own"
    packs = [own / f"pack-{number}" for number in range(TAKES)]
    *takes, last = [
        ("together", ([("export", ("s", attacked.base, str(pack)), {})],), {}) for pack in packs
    ]
    swap = ("run", ("s", ["bash", "-c", swapping("/workspace", attacked, 1.0)]), {})
    result, given = attacked.ask("beside", swap, *takes)
    # when all is quiet again, for that cannot fail
    given.append(attacked.ask("together", *last[1]))
    assert int(result.output.decode().rpartition("swaps ")[2]) > FILES
    errors = [str(take) for [take] in given if isinstance(take, Exception)]
    assert all("could not be taken out of the sandbox" in words for words in errors), errors
    trees = [
        (take, pack)
        for [take], pack in zip(given[-TAKES:], packs, strict=True)
        if isinstance(take, str)
    ]
    assert trees
    errors = [
        await take_over(hardened_host.repositories, attacked.base, tree, pack)
        for tree, pack in trees
    ]
    everything = await run_git(
        hardened_host.repositories.repository_path(REPO),
        "cat-file",
        "--batch-all-objects",
        "--batch",
    )
    assert attacked.canary.encode() not in everything
    assert all(words == "" or "leaves the repository" in words for words in errors)
    verdict(f"{len(given)} takes, no secret", race(attacked))


def race(attacked: Attacked) -> str:
    """A host that looks first and reads then, in the same swapping; what happens to it."""
    there = f"{attacked.place}/own/plain/raced"
    read = python(CHECK_THEN_READ, there, str(FILES), "5")
    output = attacked.unprotected(
        f"mkdir -p {there}; {swapping(there, attacked, 5.0)} & {read}; kill %1"
    )
    assert int(output.rpartition("secrets ")[2]) > 0
    return "realpath() and open() read the secret"


# ── what the host writes ──────────────────────────────────────────────────────────────────────────

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
WRITE = """
import os, sys, time
folder, until = sys.argv[1], time.monotonic() + 5
while time.monotonic() < until and not os.listdir(sys.argv[2]):
    try:
        if os.path.realpath(folder) == folder:
            open(folder + "/kept", "w").write("x")
    except OSError:
        pass
"""


def test_a_folder_that_becomes_a_link_while_the_host_writes_into_it(attacked, verdict):
    """The host puts long outputs where the agent finds them."""
    target = attacked.place / "own/target"
    folder = f"{attacked.place}/own/plain/folder"
    attacked.unprotected(f"rm -rf {target} {folder}*; mkdir -m 777 {target}")
    swap = (
        "run",
        ("s", ["bash", "-c", python(SWAP_FOLDER, "/tmp/outputs", str(target), "1.0")]),
        {},
    )
    writes = ("run", ("s", ["echo", "kept"]), {"keep_as": "kept"})
    result, given = attacked.ask("beside", swap, writes)
    assert int(result.output.decode().rpartition("swaps ")[2]) > 1000
    assert len(given) > 3
    assert list(target.iterdir()) == []
    swap_here = python(SWAP_FOLDER, folder, str(target), "5.0")
    attacked.unprotected(
        f"mkdir {folder}; {swap_here} & {python(WRITE, folder, str(target))}; kill %1"
    )
    assert [path.name for path in target.iterdir()] == ["kept"]
    verdict(f"{len(given)} writes, none outside", "realpath() and open() wrote outside")
