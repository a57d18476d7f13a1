"""The host's git on a stranger's objects: they take no memory, no time of the event loop and no
processor without end.

What a call costs is measured in a process of its own (`memory_bounds.py`); the control is the same
reading without bounds.
"""

import contextlib
import itertools
import random
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from osiris.agents.checkpoints import Checkpoints, RunLocation
from osiris.bot.git.remote import RemoteRepositories
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import run_git
from osiris.bot.github import comments
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Export
from osiris.core.ports.storage import Checkpoint, ResumedRun
from osiris.core.work import Work
from osiris.local.repository import LocalRepository
from tests.attacks import hostile_packs
from tests.attacks.hostile_packs import (
    FILE,
    FOLDER,
    LINK,
    Entry,
    PackDelta,
    PackObject,
    Stored,
    Zeros,
    blob,
    pack,
    tree,
)
from tests.attacks.memory_bounds import measure
from tests.conftest import a_place

REPO = "acme/shop"
MIB = 1 << 20
README = blob(b"hello\n")
BASE = tree((FILE, "README.md", README))
COMMIT = hostile_packs.commit(BASE)
SOME = 24 * MIB
"""What a worker may grow by: Python holds some MiB of what it is done with."""
STALL = 0.25
"""Seconds that its event loop may stand still: a thread that works beside it holds it up for 5 ms
now and then."""


@pytest.fixture
async def place(place: Path) -> Path:
    """A folder with host repositories in `git`, whose mirror has the base."""
    await HostRepositories(place / "git").prepare_repository(REPO)
    add(place, [README, BASE, COMMIT])
    return place


def add(place: Path, things: Sequence[PackObject | PackDelta | Stored | Zeros]) -> None:
    """Put objects into the mirror, as if they had been fetched."""
    mirror = HostRepositories(place / "git").mirror_path(REPO)
    argv = ["git", "-C", str(mirror), "index-pack", "--stdin", "--fix-thin"]
    subprocess.run(argv, input=pack(things), check=True, capture_output=True)


def listed(place: Path, commit: str, most: int) -> int:
    """How many bytes git lists for a commit when nobody stops it; for the control, up to `most`."""
    argv = [
        "git",
        "-C",
        str(HostRepositories(place / "git").mirror_path(REPO)),
        "ls-tree",
        "-r",
        "-z",
        commit,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as lister:
        size = len(lister.stdout.read(most))
        lister.kill()
    return size


def put(place: Path, things: Sequence[PackObject | PackDelta | Stored | Zeros]) -> str:
    """A file with a pack."""
    with tempfile.NamedTemporaryFile(dir=place, delete=False) as file:
        file.write(pack(things))
    return file.name


def tree_bomb(*leaves: Entry) -> list[PackObject]:
    """Forty folders, of which each holds the one below it forty times."""
    found = [tree(*leaves)]
    for _ in range(40):
        found.append(tree(*((FOLDER, f"{n:02}", found[-1]) for n in range(40))))
    return found


# ── what a repository holds ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("leaves", [[(FILE, "go.mod", README)], []], ids=["files", "nothing"])
async def test_folders_that_hold_each_other_without_end(leaves, place, verdict):
    """The first lists files for ever, the second only folders, which git looks through for ever."""
    bomb = tree_bomb(*leaves)
    root = tree((FILE, "AGENTS.md", blob(b"be kind\n")), (FOLDER, "d", bomb[-1]))
    commit = hostile_packs.commit(root)
    add(place, [README, blob(b"be kind\n"), *bomb, root, commit])
    found = measure("fingerprint", cpu=1, place=f"{place}/git", commit=commit.id)
    assert found.answer == root.id
    assert (found.growth < SOME, found.stall < STALL, found.cpu < 4) == (True, True, True), found
    read = measure("instructions", cpu=1, place=f"{place}/git", commit=commit.id)
    assert read.answer["AGENTS.md"].startswith("be kind\n")
    assert "The repository has more files than Osiris searches" in read.answer["AGENTS.md"]
    assert (read.growth < SOME, read.stall < STALL, read.cpu < 4) == (True, True, True), read
    assert not leaves or listed(place, commit.id, 160 * MIB) == 160 * MIB
    verdict("the tree's own id, and the instructions at the root", "git lists without end")


async def test_instructions_that_are_large(place, verdict):
    large = Zeros(40)
    inner = tree((FILE, "AGENTS.md", large))
    root = tree((FILE, "AGENTS.md", large), *((FOLDER, f"{n:02}", inner) for n in range(19)))
    commit = hostile_packs.commit(root)
    add(place, [large, inner, root, commit])
    found = measure("instructions", place=f"{place}/git", commit=commit.id)
    text = found.answer["AGENTS.md"]
    assert "Only the first 16,000 characters of `AGENTS.md` are shown here" in text
    assert "`00/AGENTS.md`" in text.rpartition("Not shown here")[2]
    assert (found.growth < SOME, found.stall < STALL) == (True, True), found
    verdict("the head is read", f"{large.mib} MiB each")


async def test_names_that_a_pattern_takes_long_for(place, verdict):
    """Also those that are longer than any file's name can be on a disk."""
    for length in (255, 4095):
        names = (f"{n:04}" + "requirements" * 400 for n in range(1500 if length == 255 else 400))
        root = tree(*((FILE, name[:length], README) for name in names))
        commit = hostile_packs.commit(root)
        add(place, [root, commit])
        found = measure("fingerprint", place=f"{place}/git", commit=commit.id)
        assert found.answer == root.id
        assert (found.growth < SOME, found.stall < STALL) == (True, True), found
    verdict("no stall", "a pattern that looks again from each place")


async def test_a_large_honest_repository(place):
    """400,000 files: their lock files still count, and their nested instructions are found."""
    files = tree(
        *((FILE, f"a_rather_long_name_of_a_module_{n:04}.py", README) for n in range(1000))
    )
    locked = tree((FILE, "AGENTS.md", README), (FILE, "uv.lock", README))
    folders = tree(*((FOLDER, f"package_{n:03}", files) for n in range(399)), (FOLDER, "z", locked))
    root = tree((FOLDER, "some_folder_of_the_sources", folders))
    other = tree((FOLDER, "some_folder_of_the_sources", folders), (FILE, "README.md", README))
    commits = [hostile_packs.commit(root), hostile_packs.commit(other)]
    add(place, [README, files, locked, folders, root, other, *commits])
    found = measure("fingerprint", place=f"{place}/git", commit=commits[0].id)
    assert found.answer not in (root.id, other.id)
    assert found.answer == await HostRepositories(place / "git").fingerprint_packages(
        REPO, commits[1].id
    )
    assert (found.growth < SOME, found.stall < STALL) == (True, True), found
    read = measure("instructions", place=f"{place}/git", commit=commits[0].id)
    assert read.answer == {"some_folder_of_the_sources/z/AGENTS.md": "hello\n"}
    assert (read.growth < SOME, read.stall < STALL) == (True, True), read


# ── what a pack holds ─────────────────────────────────────────────────────────────────────────────


async def test_a_link_to_somewhere_very_long(place, verdict):
    """It is small for a file, and large for what has to be split and looked at."""
    target = blob(b"a/" * (6 * MIB))
    made = tree((FILE, "README.md", README), (LINK, "link", target))
    found = measure(
        "take", place=f"{place}/git", base=COMMIT.id, tree=made.id, pack=put(place, [target, made])
    )
    assert "the target of the link `link` is longer than 4095 bytes" in found.answer
    assert (found.growth < SOME, found.stall < STALL) == (True, True), found
    verdict("refused by its length", f"{len(target.content) // MIB} MiB")


async def test_files_that_take_a_processor_long_to_unpack(place, verdict):
    """A pack of 4 MB, of which git takes four GiB of zeros."""
    good = tree((FILE, "README.md", README), (FILE, "new", README))
    zeros = [Zeros(1024 + n) for n in range(4)]
    found = measure(
        "take",
        place=f"{place}/git",
        base=COMMIT.id,
        tree=good.id,
        pack=put(place, [*zeros, good]),
        cpu=2,
    )
    assert "git index-pack needed more than 2 seconds of processor time" in found.answer
    assert found.answer.startswith("Refused: ")
    assert found.cpu < 4, found
    verdict("refused after its time", "git unpacks it all")


async def test_complaints_without_end(place, verdict):
    """git complains of each tag, and quotes its name."""
    good = tree((FILE, "README.md", README), (FILE, "new", README))
    tags = [hostile_packs.tag(BASE, b"%04d~" % n + b"t" * 20_000) for n in range(5000)]
    found = measure(
        "take", place=f"{place}/git", base=COMMIT.id, tree=good.id, pack=put(place, [*tags, good])
    )
    assert found.growth < SOME, found
    verdict(
        "the beginning and the end are kept",
        f"{sum(len(tag.content) for tag in tags) // MIB} MiB of complaints",
    )


async def test_lines_that_take_long_to_count(place, verdict):
    """The work is taken, and not counted; no git goes on."""
    numbers = random.Random(1)
    lines = [bytes(numbers.choices(b"ab\n", k=1_000_000)) for _ in range(4)]
    old = [blob(text[:900_000] + b"%d\n" % n) for text in lines for n in range(8)]
    new = [blob(text[100_000:] + b"%d\n" % n) for text in reversed(lines) for n in range(8)]
    before, after = (
        tree(*((FILE, f"{n:03}", file) for n, file in enumerate(files))) for files in (old, new)
    )
    commit = hostile_packs.commit(before)
    add(place, [*old, before, commit])
    found = measure(
        "take",
        place=f"{place}/git",
        base=commit.id,
        tree=after.id,
        pack=put(place, [*new, after]),
        cpu=2,
    )
    assert [file["additions"] for file in found.answer] == [None] * len(new)
    assert {file["counted"] for file in found.answer} == {False}
    assert found.cpu < 9, found
    assert running_in(place) == []
    verdict("taken, and not counted", "git counts for a long time")


async def test_what_was_not_counted_is_said(place):
    """A file is binary by what is in it, and not counted by its size."""
    text = blob(b"a line\n" * (MIB // 6))
    binary = blob(b"\0\1\2")
    made = tree((FILE, "binary", binary), (FILE, "large.txt", text), (FILE, "new.txt", README))
    with Path(put(place, [text, binary, made])).open("rb") as file:
        taken = await HostRepositories(place / "git").import_pack(
            REPO, COMMIT.id, Export(tree=made.id, pack=file), ()
        )
    work = Work(
        summary="s", files=taken.files, commands=(), instructions=(), model="m", steps=1, seconds=1
    )
    rows = [row for row in comments.format_evidence(work).splitlines() if "| added |" in row]
    assert rows == [
        "| `binary` | added | binary |",
        "| `large.txt` | added | not counted |",
        "| `new.txt` | added | +1 −0 |",
    ]


def running_in(place: Path) -> list[str]:
    """The programs that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if f"{place}/git".encode() in words:
                found.append((process / "comm").read_text())
    return found


# ── what goes on for long ─────────────────────────────────────────────────────────────────────────


class Workspace:
    """A session whose files are other ones, of 8 MiB, each time they are taken."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    async def export(self, base: str) -> Export:
        large = Stored(next(self._numbers).to_bytes(4, "big") * (2 * MIB))
        made = tree((FILE, "README.md", README), (FILE, "large", blob(large.content)))
        file = tempfile.TemporaryFile()  # noqa: SIM115  (whoever gets the export closes it)
        file.write(pack([large, made]))
        file.seek(0)
        return Export(tree=made.id, pack=file)


class FakeCheckpointStorage:
    """Where files are put away, and where nothing is taken from."""

    async def save(self, repo: str, run: str, tree: str, base: str, before: str) -> str:
        return tree

    restore = delete = None


class FakeTranscripts:
    async def record_checkpoint(self, run: str, checkpoint: Checkpoint) -> None:
        pass


class FakeSandbox:
    """It has the session already."""

    def list_sessions(self) -> list[str]:
        return ["run"]

    async def create(self, name: str, plan: Any) -> tuple[Workspace, bool]:
        return Workspace(), False


class FakeRecorder:
    messages = ()


@dataclass(frozen=True)
class FakePlan:
    base: str = ""
    files: str = ""


async def test_what_is_put_away_of_a_workspace_that_rewrites_its_files(place, verdict):
    """In half an hour; each minute's files would be 240 MiB, here and on GitHub."""
    repositories = HostRepositories(place / "git")
    now = [0.0]
    shelf = Checkpoints(
        RunLocation(repo=REPO, ref="1-1", run="run"),
        FakeCheckpointStorage(),
        repositories,
        FakeTranscripts(),
        clock=lambda: now[0],
    )
    begun = ResumedRun(base=COMMIT.id, seconds=0, here=True, checkpoint=None)
    session, _ = await shelf.open_session(FakeSandbox(), begun, FakePlan())
    while now[0] < 1800:
        now[0] += 10
        await shelf.save_if_due(session, FakeRecorder())
    packs_there = list((repositories.repository_path(REPO) / "objects/pack").glob("*.pack"))
    size = sum(file.stat().st_size for file in packs_there)
    assert len(packs_there) > 5
    assert size < 1800 * (64 << 10)
    verdict(f"{size // MIB} MiB", "240 MiB")


class FakeAppAuth:
    async def get_read_token(self, repo: str) -> str:
        return "token"

    def forget_read_token(self, repo: str) -> None:
        pass


async def no_pause() -> None:
    pass


async def test_what_killed_fetches_left_is_removed(place):
    """Else each try of a fetch that is never finished adds what it got to the disk."""
    repositories = HostRepositories(place / "git")
    origin = place / "origins" / f"{REPO}.git"
    origin.parent.mkdir(parents=True)
    subprocess.run(
        ["git", "clone", "-q", "--bare", repositories.mirror_path(REPO), origin],
        check=True,
        capture_output=True,
    )
    other = hostile_packs.commit(tree((FILE, "README.md", blob(b"other\n"))))
    for thing in (blob(b"other\n"), tree((FILE, "README.md", blob(b"other\n"))), other):
        with packed([thing]) as file:
            await run_git(origin, "index-pack", "--stdin", stdin=file)
    await run_git(origin, "update-ref", "refs/heads/main", other.id)
    await run_git(origin, "symbolic-ref", "HEAD", "refs/heads/main")
    left = repositories.mirror_path(REPO) / "objects/pack/tmp_pack_aBcDeF"
    left.write_bytes(bytes(100))
    remotes = RemoteRepositories(repositories, FakeAppAuth(), f"file://{place}/origins", no_pause)
    assert (await remotes.fetch_checkout(REPO, "bot")).commit == other.id
    assert not left.exists()


@contextlib.contextmanager
def packed(things: Sequence[PackObject]) -> Iterator[Any]:
    with tempfile.TemporaryFile() as file:
        file.write(pack(things))
        file.seek(0)
        yield file


# ── a person's own repository, which may be the clone of a stranger's ─────────────────────────────


def test_a_file_of_a_clone_that_is_large(place_of_clone):
    clone, commit = place_of_clone
    repository = LocalRepository(path=clone, commit=commit, branch="main", dirty=0)
    assert repository.read_file(commit, "README.md") == "hello"
    assert repository.read_file(commit, "missing") == ""
    with pytest.raises(Refused, match=r"`large` in .* is larger than 1 MiB"):
        repository.read_file(commit, "large")


@pytest.fixture
def place_of_clone() -> Iterator[tuple[Path, str]]:
    """A repository with a large file, and its commit."""
    with a_place() as clone:
        root = tree((FILE, "README.md", README), (FILE, "large", large := Zeros(8)))
        commit = hostile_packs.commit(root)
        subprocess.run(["git", "init", "-q", clone], check=True)
        argv = ["git", "-C", str(clone), "index-pack", "--stdin"]
        subprocess.run(
            argv, input=pack([README, large, root, commit]), check=True, capture_output=True
        )
        yield clone, commit.id
