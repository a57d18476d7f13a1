"""The host's git on objects of a stranger: the memory, the time of the event loop and the processor
time that they cost are limited.

The cost of a call is measured in a separate process (`memory_bounds.py`). The control reads the
same objects without limits.
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
    StoredBlob,
    ZeroBlob,
    build_pack,
    make_blob,
    make_tree,
)
from tests.attacks.memory_bounds import Cost, measure_cost
from tests.conftest import create_test_folder

REPO = "acme/shop"
MIB = 1 << 20
README = make_blob(b"hello\n")
BASE = make_tree((FILE, "README.md", README))
COMMIT = hostile_packs.make_commit(BASE)
GROWTH_LIMIT = 24 * MIB
"""Bytes by which a worker may grow: Python keeps some MiB that it no longer uses."""
STALL_LIMIT = 0.25
"""Seconds for which the event loop may stand still: a busy thread beside it delays it by 5 ms now
and then."""


@pytest.fixture
async def folder(folder: Path) -> Path:
    """Provide a folder with host repositories in `git`, whose mirror has the base."""
    await HostRepositories(folder / "git").prepare_repository(REPO)
    add_objects(folder, [README, BASE, COMMIT])
    return folder


def add_objects(
    folder: Path, objects: Sequence[PackObject | PackDelta | StoredBlob | ZeroBlob]
) -> None:
    """Add objects to the mirror, as if they had been fetched."""
    mirror = HostRepositories(folder / "git").mirror_path(REPO)
    argv = ["git", "-C", str(mirror), "index-pack", "--stdin", "--fix-thin"]
    subprocess.run(argv, input=build_pack(objects), check=True, capture_output=True)


def count_listed_bytes(folder: Path, commit: str, limit: int) -> int:
    """Return how many bytes git lists for a commit without limits, up to `limit`, for the
    control."""
    argv = [
        "git",
        "-C",
        str(HostRepositories(folder / "git").mirror_path(REPO)),
        "ls-tree",
        "-r",
        "-z",
        commit,
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as lister:
        size = len(lister.stdout.read(limit))
        lister.kill()
    return size


def write_pack(
    folder: Path, objects: Sequence[PackObject | PackDelta | StoredBlob | ZeroBlob]
) -> str:
    """Write a pack with objects to a file, and return its path."""
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(build_pack(objects))
    return file.name


def build_tree_bomb(*leaves: Entry) -> list[PackObject]:
    """Return forty nested folders, each of which holds the one below it forty times."""
    trees = [make_tree(*leaves)]
    for _ in range(40):
        trees.append(make_tree(*((FOLDER, f"{n:02}", trees[-1]) for n in range(40))))
    return trees


def assert_small(cost: Cost, *, cpu: float | None = None) -> None:
    """Assert that memory and stalls are below the limits, and processor time below `cpu`."""
    assert cost.growth < GROWTH_LIMIT, cost
    assert cost.stall < STALL_LIMIT, cost
    assert cpu is None or cost.cpu < cpu, cost


def measure_import(
    folder: Path,
    base: PackObject,
    root: PackObject,
    objects: Sequence[PackObject | PackDelta | StoredBlob | ZeroBlob],
    *,
    cpu: int = 0,
) -> Cost:
    """Return the cost of importing the tree `root` from a pack with objects."""
    return measure_cost(
        "import_pack",
        folder=f"{folder}/git",
        base=base.id,
        tree=root.id,
        pack=write_pack(folder, objects),
        cpu=cpu,
    )


# ── hostile repositories ──────────────────────────────────────────────────────────────────────────


@pytest.mark.first_case
@pytest.mark.parametrize("leaves", [[], [(FILE, "go.mod", README)]], ids=["nothing", "files"])
async def test_folders_that_hold_each_other_without_end(leaves, folder, record_verdict):
    """git lists the files of one bomb for ever. The other has only folders, which git searches for
    ever."""
    bomb = build_tree_bomb(*leaves)
    root = make_tree((FILE, "AGENTS.md", make_blob(b"be kind\n")), (FOLDER, "d", bomb[-1]))
    commit = hostile_packs.make_commit(root)
    add_objects(folder, [README, make_blob(b"be kind\n"), *bomb, root, commit])
    cost = measure_cost("fingerprint_packages", cpu=1, folder=f"{folder}/git", commit=commit.id)
    assert cost.answer == root.id
    assert_small(cost, cpu=4)
    cost = measure_cost("read_instructions", cpu=1, folder=f"{folder}/git", commit=commit.id)
    assert cost.answer["texts"]["AGENTS.md"] == "be kind\n"
    [left_out] = cost.answer["left_out"]
    assert left_out.startswith("The repository has more files than Osiris searches")
    assert_small(cost, cpu=4)
    assert not leaves or count_listed_bytes(folder, commit.id, 160 * MIB) == 160 * MIB
    record_verdict("the tree's own id, and the instructions at the root", "git lists without end")


async def test_instructions_that_are_large(folder, record_verdict):
    large = ZeroBlob(40)
    inner = make_tree((FILE, "AGENTS.md", large))
    root = make_tree((FILE, "AGENTS.md", large), *((FOLDER, f"{n:02}", inner) for n in range(19)))
    commit = hostile_packs.make_commit(root)
    add_objects(folder, [large, inner, root, commit])
    cost = measure_cost("read_instructions", folder=f"{folder}/git", commit=commit.id)
    cut, left_out = cost.answer["left_out"]
    assert cut.startswith("Of `AGENTS.md` only the first 16,000 characters are shown")
    assert left_out.startswith("Not shown, because")
    assert "`00/AGENTS.md`" in left_out
    assert_small(cost)
    record_verdict("the head is read", f"{large.mib} MiB each")


async def test_names_that_a_pattern_takes_long_for(folder, record_verdict):
    """Names may be longer than any disk allows."""
    for length in (255, 4095):
        names = (f"{n:04}" + "requirements" * 400 for n in range(1500 if length == 255 else 400))
        root = make_tree(*((FILE, name[:length], README) for name in names))
        commit = hostile_packs.make_commit(root)
        add_objects(folder, [root, commit])
        cost = measure_cost("fingerprint_packages", folder=f"{folder}/git", commit=commit.id)
        assert cost.answer == root.id
        assert_small(cost)
    record_verdict("no stall", "a pattern that looks again from each place")


@pytest.mark.long
async def test_a_large_honest_repository(folder):
    """400,000 files: their lock files still count, and their nested instructions are found."""
    files = make_tree(
        *((FILE, f"a_rather_long_name_of_a_module_{n:04}.py", README) for n in range(1000))
    )
    locked = make_tree((FILE, "AGENTS.md", README), (FILE, "uv.lock", README))
    folders = make_tree(
        *((FOLDER, f"package_{n:03}", files) for n in range(399)), (FOLDER, "z", locked)
    )
    root = make_tree((FOLDER, "some_folder_of_the_sources", folders))
    other = make_tree((FOLDER, "some_folder_of_the_sources", folders), (FILE, "README.md", README))
    commits = [hostile_packs.make_commit(root), hostile_packs.make_commit(other)]
    add_objects(folder, [README, files, locked, folders, root, other, *commits])
    cost = measure_cost("fingerprint_packages", folder=f"{folder}/git", commit=commits[0].id)
    assert cost.answer not in (root.id, other.id)
    assert cost.answer == await HostRepositories(folder / "git").fingerprint_packages(
        REPO, commits[1].id
    )
    assert_small(cost)
    cost = measure_cost("read_instructions", folder=f"{folder}/git", commit=commits[0].id)
    texts = {"some_folder_of_the_sources/z/AGENTS.md": "hello\n"}
    assert cost.answer == {"texts": texts, "left_out": []}
    assert_small(cost)


# ── hostile packs ─────────────────────────────────────────────────────────────────────────────────


async def test_a_link_to_somewhere_very_long(folder, record_verdict):
    """The target is small for a file, and large for a path that has to be split and checked."""
    target = make_blob(b"a/" * (6 * MIB))
    root = make_tree((FILE, "README.md", README), (LINK, "link", target))
    cost = measure_import(folder, COMMIT, root, [target, root])
    assert "the target of the link `link` is longer than 4095 bytes" in cost.answer
    assert_small(cost)
    record_verdict("refused by its length", f"{len(target.content) // MIB} MiB")


@pytest.mark.long
async def test_files_that_take_a_processor_long_to_unpack(folder, record_verdict):
    """A pack of 4 MB that git unpacks to four GiB of zeros."""
    good = make_tree((FILE, "README.md", README), (FILE, "new", README))
    zeros = [ZeroBlob(1024 + n) for n in range(4)]
    cost = measure_import(folder, COMMIT, good, [*zeros, good], cpu=2)
    assert "git index-pack needed more than 2 seconds of processor time" in cost.answer
    assert cost.answer.startswith("Refused: ")
    assert cost.cpu < 4, cost
    record_verdict("refused after its time", "git unpacks it all")


async def test_complaints_without_end(folder, record_verdict):
    """git complains about each tag, and quotes its name."""
    good = make_tree((FILE, "README.md", README), (FILE, "new", README))
    tags = [hostile_packs.make_tag(BASE, b"%04d~" % n + b"t" * 20_000) for n in range(5000)]
    cost = measure_import(folder, COMMIT, good, [*tags, good])
    assert cost.growth < GROWTH_LIMIT, cost
    record_verdict(
        "the beginning and the end are kept",
        f"{sum(len(tag.content) for tag in tags) // MIB} MiB of complaints",
    )


@pytest.mark.long
async def test_lines_that_take_long_to_count(folder, record_verdict):
    """The work is imported, its lines are not counted, and no git continues to run."""
    numbers = random.Random(1)
    lines = [bytes(numbers.choices(b"ab\n", k=1_000_000)) for _ in range(4)]
    old = [make_blob(text[:900_000] + b"%d\n" % n) for text in lines for n in range(8)]
    new = [make_blob(text[100_000:] + b"%d\n" % n) for text in reversed(lines) for n in range(8)]
    before, after = (
        make_tree(*((FILE, f"{n:03}", file) for n, file in enumerate(files)))
        for files in (old, new)
    )
    commit = hostile_packs.make_commit(before)
    add_objects(folder, [*old, before, commit])
    cost = measure_import(folder, commit, after, [*new, after], cpu=2)
    assert [file["additions"] for file in cost.answer] == [None] * len(new)
    assert {file["counted"] for file in cost.answer} == {False}
    assert cost.cpu < 9, cost
    assert find_processes_in(folder) == []
    record_verdict("taken, and not counted", "git counts for a long time")


async def test_what_was_not_counted_is_said(folder):
    """A file is binary because of its content, and not counted because of its size."""
    text = make_blob(b"a line\n" * (MIB // 6))
    binary = make_blob(b"\0\1\2")
    root = make_tree((FILE, "binary", binary), (FILE, "large.txt", text), (FILE, "new.txt", README))
    with Path(write_pack(folder, [text, binary, root])).open("rb") as file:
        imported = await HostRepositories(folder / "git").import_pack(
            REPO, COMMIT.id, Export(tree=root.id, pack=file), ()
        )
    work = Work(
        summary="s",
        files=imported.files,
        commands=(),
        instructions=(),
        model="m",
        steps=1,
        seconds=1,
    )
    rows = [row for row in comments.format_evidence(work).splitlines() if "| added |" in row]
    assert rows == [
        "| `binary` | added | binary |",
        "| `large.txt` | added | not counted |",
        "| `new.txt` | added | +1 −0 |",
    ]


def find_processes_in(folder: Path) -> list[str]:
    """Return the names of the processes that use the host repositories in a folder."""
    names = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
            if f"{folder}/git".encode() in text:
                names.append((process / "comm").read_text())
    return names


# ── long runs, and fetches that fail again and again ──────────────────────────────────────────────


class FakeSession:
    """A session that has another file of 8 MiB at each export."""

    def __init__(self) -> None:
        self._numbers = itertools.count()

    async def export(self, base: str) -> Export:
        large = StoredBlob(next(self._numbers).to_bytes(4, "big") * (2 * MIB))
        root = make_tree((FILE, "README.md", README), (FILE, "large", make_blob(large.content)))
        file = tempfile.TemporaryFile()  # noqa: SIM115  (the receiver of the export closes it)
        file.write(build_pack([large, root]))
        file.seek(0)
        return Export(tree=root.id, pack=file)


class FakeCheckpointStorage:
    """A storage to which checkpoints are only saved."""

    async def save(self, repo: str, run: str, tree: str, base: str, before: str) -> str:
        return tree

    restore = delete = None


class FakeTranscripts:
    async def record_checkpoint(self, run: str, checkpoint: Checkpoint) -> None:
        pass


class FakeSandbox:
    """A sandbox that already has the session."""

    def list_sessions(self) -> list[str]:
        return ["run"]

    async def create(self, name: str, plan: Any) -> tuple[FakeSession, bool]:
        return FakeSession(), False


class FakeRecorder:
    messages = ()


@dataclass(frozen=True)
class FakePlan:
    base: str = ""
    files: str = ""


@pytest.mark.long
async def test_what_is_put_away_of_a_workspace_that_rewrites_its_files(folder, record_verdict):
    """The run takes half an hour. To save the files each minute would be 240 MiB, here and on
    GitHub."""
    repositories = HostRepositories(folder / "git")
    now = [0.0]
    checkpoints = Checkpoints(
        RunLocation(repo=REPO, ref="1-1", run="run"),
        FakeCheckpointStorage(),
        repositories,
        FakeTranscripts(),
        clock=lambda: now[0],
    )
    resumed_run = ResumedRun(base=COMMIT.id, seconds=0, here=True, checkpoint=None)
    session, _ = await checkpoints.open_session(FakeSandbox(), resumed_run, FakePlan())
    while now[0] < 1800:
        now[0] += 10
        await checkpoints.save_if_due(session, FakeRecorder())
    packs = list((repositories.repository_path(REPO) / "objects/pack").glob("*.pack"))
    size = sum(file.stat().st_size for file in packs)
    assert len(packs) > 5
    assert size < 1800 * (64 << 10)
    record_verdict(f"{size // MIB} MiB", "240 MiB")


class FakeAppAuth:
    async def get_read_token(self, repo: str) -> str:
        return "token"

    def forget_read_token(self, repo: str) -> None:
        pass


async def no_pause() -> None:
    pass


async def test_what_killed_fetches_left_is_removed(folder):
    """Otherwise each attempt of a fetch that never completes would leave its data on the disk."""
    repositories = HostRepositories(folder / "git")
    origin = folder / "origins" / f"{REPO}.git"
    origin.parent.mkdir(parents=True)
    subprocess.run(
        ["git", "clone", "-q", "--bare", repositories.mirror_path(REPO), origin],
        check=True,
        capture_output=True,
    )
    other = hostile_packs.make_commit(make_tree((FILE, "README.md", make_blob(b"other\n"))))
    for one in (
        make_blob(b"other\n"),
        make_tree((FILE, "README.md", make_blob(b"other\n"))),
        other,
    ):
        with open_pack([one]) as file:
            await run_git(origin, "index-pack", "--stdin", stdin=file)
    await run_git(origin, "update-ref", "refs/heads/main", other.id)
    await run_git(origin, "symbolic-ref", "HEAD", "refs/heads/main")
    partial_pack = repositories.mirror_path(REPO) / "objects/pack/tmp_pack_aBcDeF"
    partial_pack.write_bytes(bytes(100))
    remotes = RemoteRepositories(repositories, FakeAppAuth(), f"file://{folder}/origins", no_pause)
    assert (await remotes.fetch_checkout(REPO, "bot")).commit == other.id
    assert not partial_pack.exists()


@contextlib.contextmanager
def open_pack(objects: Sequence[PackObject]) -> Iterator[Any]:
    with tempfile.TemporaryFile() as file:
        file.write(build_pack(objects))
        file.seek(0)
        yield file


# ── a person's own repository, which may be a clone of a stranger's ───────────────────────────────


def test_a_file_of_a_clone_that_is_large(place_of_clone):
    clone, commit = place_of_clone
    repository = LocalRepository(path=clone, commit=commit, branch="main", dirty=0)
    assert repository.read_file(commit, "README.md") == "hello"
    assert repository.read_file(commit, "missing") == ""
    with pytest.raises(Refused, match=r"`large` in .* is larger than 1 MiB"):
        repository.read_file(commit, "large")


@pytest.fixture
def place_of_clone() -> Iterator[tuple[Path, str]]:
    """Provide a repository with a large file, and its commit."""
    with create_test_folder() as clone:
        root = make_tree((FILE, "README.md", README), (FILE, "large", large := ZeroBlob(8)))
        commit = hostile_packs.make_commit(root)
        subprocess.run(["git", "init", "-q", clone], check=True)
        argv = ["git", "-C", str(clone), "index-pack", "--stdin"]
        subprocess.run(
            argv, input=build_pack([README, large, root, commit]), check=True, capture_output=True
        )
        yield clone, commit.id
