"""Hostile packs: the sandbox that exports the work is compromised, and hands any data to the
host."""

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import GitCommandFailed, run_git
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Export
from tests.attacks import hostile_packs
from tests.attacks.hostile_packs import (
    FILE,
    FOLDER,
    GITLINK,
    LINK,
    Entry,
    PackDelta,
    PackObject,
    StoredBlob,
    build_pack,
    make_blob,
    make_tree,
)
from tests.conftest import create_test_folder

REPO = "acme/shop"
DENY = (".github/workflows/",)
README = make_blob(b"hello\n")
APP = make_blob(b"print('one')\n")
LARGE = make_blob(b"base\n" * 5000)
SRC = make_tree((FILE, "app.py", APP))
BASE_ENTRIES: Sequence[Entry] = (
    (FILE, "README.md", README),
    (FILE, "large", LARGE),
    (FOLDER, "src", SRC),
)
BASE = make_tree(*BASE_ENTRIES)
COMMIT = hostile_packs.make_commit(BASE)
NEW = make_blob(b"new\n")
GOOD_TREE = make_tree(*BASE_ENTRIES, (FILE, "new.txt", NEW))
STRANGE = make_blob(b"strange\n" * 20)
OUTSIDE = "leaves the repository"
NOT_IMPORTED = "could not be taken over"
MODULE = "is a submodule or a repository in the repository"
CONTROL = "contains a control character"
PROTECTED = "is protected in this repository"
WINDOWS = "on Windows the link `link` leaves the repository"
BACKSLASH, COLON = "contains a backslash: on Windows", "contains a colon: on Windows"
DEVICE, SHORTENED = "is the name of a device on Windows", "ends with a dot or a space: on Windows"
GIT_ELSEWHERE = "would be git's own folder on Windows or macOS"


@dataclass(frozen=True, kw_only=True)
class HostileWork:
    """Work that must be refused with a message that matches `refusal`: the id of its tree, and a
    pack. With `git_refuses`, git itself does not accept it."""

    refusal: str
    tree: str
    pack: bytes
    git_refuses: bool = False


def build_entries(
    refusal: str, *entries: Entry, objects: Sequence[PackObject] = (NEW,), sort: bool = True
) -> HostileWork:
    """Return work with bad entries beside the good files."""
    root = make_tree(*BASE_ENTRIES, *entries, sort=sort)
    return HostileWork(refusal=refusal, tree=root.id, pack=build_pack([*objects, root]))


def build_file(refusal: str, name: str | bytes) -> HostileWork:
    return build_entries(refusal, (FILE, name, NEW))


def build_link(target: bytes, name: str = "link", refusal: str = OUTSIDE) -> HostileWork:
    return build_entries(refusal, (LINK, name, make_blob(target)), objects=[make_blob(target)])


def build_folder(refusal: str, name: str, inner: PackObject, *objects: PackObject) -> HostileWork:
    return build_entries(refusal, (FOLDER, name, inner), objects=[inner, *objects])


def build_modules(text: bytes) -> HostileWork:
    return build_entries(
        NOT_IMPORTED, (FILE, ".gitmodules", make_blob(text)), objects=[make_blob(text)]
    )


def build_many_files(count: int) -> HostileWork:
    inner = make_tree(*((FILE, f"{n:05}", NEW) for n in range(count)))
    return build_folder("3001 files were changed", "many", inner, NEW)


def build_nested_folders(refusal: str, levels: int) -> HostileWork:
    trees = [make_tree((FILE, "f", NEW))]
    for _ in range(levels):
        trees.append(make_tree((FOLDER, "d", trees[-1])))
    return build_folder(refusal, "deep", trees[-1], *trees[:-1], NEW)


def build_broken_pack(pack: bytes) -> HostileWork:
    """Return work with a pack that git does not accept."""
    return HostileWork(refusal=NOT_IMPORTED, tree=GOOD_TREE.id, pack=pack, git_refuses=True)


def build_objects(
    tree_id: str, *objects: PackObject | PackDelta | StoredBlob, refusal: str = ""
) -> HostileWork:
    """Return work with the tree `tree_id` and a pack with these objects."""
    return HostileWork(refusal=refusal or NOT_IMPORTED, tree=tree_id, pack=build_pack(objects))


GOOD_PACK = build_pack([NEW, GOOD_TREE])
UP = make_blob(b"..")
TWISTED = make_blob(b"d/up/../out")
BYWAY: Entry = (FOLDER, "d", make_tree((LINK, "up", UP)))
NAMELESS = make_tree(*BASE_ENTRIES, (FILE, "", NEW))
HOSTILE_WORK = {
    "garbage": build_broken_pack(b"garbage"),
    "nothing": build_broken_pack(b""),
    "a pack that is cut": build_broken_pack(GOOD_PACK[:-30]),
    "a wrong checksum": build_broken_pack(GOOD_PACK[:-1] + bytes([GOOD_PACK[-1] ^ 1])),
    "a damaged byte": build_broken_pack(
        hostile_packs.add_checksum(GOOD_PACK[:14] + bytes([GOOD_PACK[14] ^ 1]) + GOOD_PACK[15:-20])
    ),
    "more things than it says": build_broken_pack(build_pack([NEW, GOOD_TREE], count=1)),
    "fewer things than it says": build_broken_pack(build_pack([NEW, GOOD_TREE], count=3)),
    "an unknown version": build_broken_pack(
        hostile_packs.add_checksum(b"PACK" + (9).to_bytes(4, "big") + GOOD_PACK[8:-20])
    ),
    "a delta that reads behind its base": build_broken_pack(
        build_pack([PackDelta(README.id, hostile_packs.encode_copy_beyond_end(6)), NEW, GOOD_TREE])
    ),
    "a delta of a base that nobody has": build_broken_pack(
        build_pack([PackDelta("1" * 40, hostile_packs.encode_copies(1 << 12, 2)), NEW, GOOD_TREE])
    ),
    "a missing file": build_entries(NOT_IMPORTED, (FILE, "f", "2" * 40)),
    "a missing folder": build_entries(NOT_IMPORTED, (FOLDER, "d", "3" * 40)),
    "no tree at all": HostileWork(
        refusal=NOT_IMPORTED, tree="1" * 40, pack=GOOD_PACK, git_refuses=True
    ),
    "a commit for a tree": build_objects(
        hostile_packs.make_commit(GOOD_TREE).id,
        hostile_packs.make_commit(GOOD_TREE),
        GOOD_TREE,
        NEW,
        refusal="is not a tree",
    ),
    "a tag for a tree": build_objects(
        hostile_packs.make_tag(GOOD_TREE).id,
        hostile_packs.make_tag(GOOD_TREE),
        GOOD_TREE,
        NEW,
        refusal="is not a tree",
    ),
    "a file for a tree": HostileWork(
        refusal="is not a tree", tree=NEW.id, pack=GOOD_PACK, git_refuses=True
    ),
    "a file that calls itself a folder": build_entries(NOT_IMPORTED, (FOLDER, "d", NEW)),
    "a folder that calls itself a file": build_entries(
        NOT_IMPORTED, (FILE, "f", GOOD_TREE), objects=[GOOD_TREE, NEW]
    ),
    "a commit that calls itself a file": build_entries(NOT_IMPORTED, (FILE, "f", COMMIT)),
    ".git": build_folder(NOT_IMPORTED, ".git", make_tree((FILE, "config", NEW)), NEW),
    ".GIT": build_folder(NOT_IMPORTED, ".GIT", make_tree((FILE, "config", NEW)), NEW),
    "git~1": build_folder(NOT_IMPORTED, "git~1", make_tree((FILE, "config", NEW)), NEW),
    ".git for HFS": build_folder(NOT_IMPORTED, ".g\u200cit", make_tree((FILE, "config", NEW)), NEW),
    ".git in a folder below": build_folder(
        NOT_IMPORTED, "d", make_tree((FOLDER, ".git", GOOD_TREE)), GOOD_TREE, NEW
    ),
    "..": build_folder(NOT_IMPORTED, "..", make_tree((FILE, "f", NEW)), NEW),
    ".": build_file(NOT_IMPORTED, "."),
    "an empty name": HostileWork(
        refusal=NOT_IMPORTED, tree=NAMELESS.id, pack=build_pack([NEW, NAMELESS]), git_refuses=True
    ),
    "a slash in a name": build_file(NOT_IMPORTED, "../../etc/cron.d/x"),
    "entries out of order": build_entries(NOT_IMPORTED, (FILE, "AAA", NEW), sort=False),
    "a name twice": build_entries(NOT_IMPORTED, (FILE, "README.md", NEW)),
    "a name for a file and a folder": build_entries(NOT_IMPORTED, (FILE, "src", NEW)),
    "a submodule": build_entries(MODULE, (GITLINK, "module", COMMIT.id)),
    "a mode with a leading zero": build_entries(NOT_IMPORTED, ("0100644", "f", NEW)),
    "a file that all may write": build_entries(NOT_IMPORTED, ("100666", "f", NEW)),
    "a program that all may write": build_entries(NOT_IMPORTED, ("100777", "f", NEW)),
    "a setuid program": build_entries(NOT_IMPORTED, ("104755", "f", NEW)),
    "a device": build_entries("needs a person|could not be taken over", ("60644", "f", NEW)),
    "an absolute link": build_link(b"/etc/passwd"),
    "a link to the folder above": build_link(b".."),
    "a link that leaves": build_link(b"src/../../out"),
    "a link that leaves by way of another": build_entries(
        OUTSIDE, (LINK, "link", TWISTED), BYWAY, objects=[TWISTED, UP, make_tree((LINK, "up", UP))]
    ),
    "a link into .git": build_link(b".git/config"),
    "a link that leaves on Windows": build_link(b"..\\..\\out", refusal=WINDOWS),
    "a link that leaves on Windows by one folder": build_link(b"src\\..\\..\\out", refusal=WINDOWS),
    "a link to a drive": build_link(b"C:/x", refusal=WINDOWS),
    "a link to a file of a drive": build_link(b"C:\\x", refusal=WINDOWS),
    "a link to a file of the drive": build_link(b"\\x", refusal=WINDOWS),
    "a link to another machine": build_link(b"\\\\host\\share", refusal=WINDOWS),
    "a link that leaves by dots with a space": build_link(b".. /x", refusal=WINDOWS),
    "a link into .git on Windows": build_link(b"src\\..\\.git", refusal=WINDOWS),
    "a link into .git for HFS": build_link(".g\u200cit".encode()),
    "a link into .git with a dot": build_link(b".git./config"),
    "a link into .git with a stream": build_link(b".git::$INDEX_ALLOCATION/config"),
    "a link into .git by its short name": build_link(b"GIT~1"),
    "a backslash in a name": build_file(BACKSLASH, "a\\b"),
    "a colon in a name": build_file(COLON, "a:b"),
    "a drive for a name": build_folder(COLON, "C:", make_tree((FILE, "x", NEW)), NEW),
    "a dot at the end of a name": build_file(SHORTENED, "README.md."),
    "a space at the end of a name": build_file(SHORTENED, "README.md "),
    "a space at the end of a folder's name": build_folder(
        SHORTENED, "src ", make_tree((FILE, "x", NEW)), NEW
    ),
    "CON": build_file(DEVICE, "CON"),
    "NUL": build_file(DEVICE, "NUL"),
    "a device with an ending": build_file(DEVICE, "aux.txt"),
    "a device with a space": build_file(DEVICE, "com1 .txt"),
    "a device of a superscript": build_file(DEVICE, "LPT\u00b9"),
    "a folder that is a device": build_folder(DEVICE, "aux", make_tree((FILE, "x", NEW)), NEW),
    "GIT~1": build_file(NOT_IMPORTED, "GIT~1"),
    "git's short name with another number": build_file(GIT_ELSEWHERE, "GIT~2"),
    ".git with a joiner of emoji": build_file(GIT_ELSEWHERE, ".gi\ufe0ft"),
    ".gitmodules with a command": build_modules(
        b'[submodule "s"]\n\tpath = s\n\turl = u\n\tupdate = !touch x\n'
    ),
    ".gitmodules with an option for an address": build_modules(
        b'[submodule "s"]\n\tpath = s\n\turl = --upload-pack=x\n'
    ),
    ".gitmodules with an option for a path": build_modules(
        b'[submodule "s"]\n\tpath = -x\n\turl = u\n'
    ),
    ".gitmodules with a name that leaves": build_modules(
        b'[submodule "../../x"]\n\tpath = s\n\turl = u\n'
    ),
    ".gitmodules that is a link": build_link(b"README.md", ".gitmodules", NOT_IMPORTED),
    "a line break in a name": build_file(CONTROL, "a\nb"),
    "an escape in a name": build_file(CONTROL, "a\x1b[2Jb"),
    "a delete in a name": build_file(CONTROL, "a\x7fb"),
    "an escape of eight bits in a name": build_file(CONTROL, "a\x9b2Jb"),
    "a name that is read backwards": build_file(CONTROL, "a\u202etxt.sh"),
    "a name that is too long for any disk": build_file("is too long", "a" * 300),
    "a path that is too long for any system": build_nested_folders("is too long", 3000),
    "a protected path": build_folder(
        PROTECTED, ".github", make_tree((FOLDER, "workflows", GOOD_TREE)), GOOD_TREE, NEW
    ),
    "a link where a protected folder would be": build_folder(
        PROTECTED,
        ".github",
        make_tree((LINK, "workflows", make_blob(b"../src"))),
        make_blob(b"../src"),
    ),
    "too many files": build_many_files(3001),
}


@pytest.fixture(scope="module")
async def repositories() -> Iterator[HostRepositories]:
    """Provide host repositories whose mirror has the base. All tests share them, because refused
    work must not harm later work."""
    with create_test_folder() as folder:
        repositories = HostRepositories(folder / "git")
        await repositories.prepare_repository(REPO)
        mirror = repositories.mirror_path(REPO)
        with open_content(build_pack([README, APP, LARGE, SRC, BASE, COMMIT])) as base:
            await run_git(mirror, "index-pack", "--stdin", "--strict", stdin=base)
        await run_git(mirror, "update-ref", "refs/heads/main", COMMIT.id)
        yield repositories


@pytest.fixture(scope="module")
async def naive_repository(repositories: HostRepositories) -> Path:
    """Provide a repository of a host that checks nothing."""
    return await create_naive_repository(repositories, "naive")


async def create_naive_repository(repositories: HostRepositories, name: str) -> Path:
    """Create a repository that also has the objects of the mirror."""
    repository = repositories.repository_path(REPO).with_name(f"{name}.git")
    repository.mkdir(exist_ok=True)
    await run_git(repository, "init", "-q", "--bare")
    objects = f"{repositories.mirror_path(REPO)}/objects\n"
    (repository / "objects/info/alternates").write_text(objects)
    return repository


@contextlib.contextmanager
def open_content(content: bytes) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


async def import_work(
    repositories: HostRepositories, tree_id: str, pack: bytes, base: str = COMMIT.id
) -> list[str]:
    """Import work, and return the paths that it changes."""
    with open_content(pack) as file:
        imported = await repositories.import_pack(REPO, base, Export(tree=tree_id, pack=file), DENY)
    return [file.path for file in imported.files]


async def is_accepted_by_git(repository: Path, work: HostileWork) -> bool:
    """Return whether git accepts a pack into a repository of a host that checks nothing."""
    try:
        with open_content(work.pack) as file:
            await run_git(repository, "index-pack", "--stdin", "--fix-thin", stdin=file)
        await run_git(repository, "ls-tree", work.tree)
    except GitCommandFailed:
        return False
    return True


@pytest.mark.parametrize("name", HOSTILE_WORK)
async def test_a_pack_of_a_sandbox_that_was_taken_over(
    name, repositories, naive_repository, record_verdict
):
    work = HOSTILE_WORK[name]
    with pytest.raises(Refused, match=work.refusal) as refused:
        await import_work(repositories, work.tree, work.pack)
    assert await import_work(repositories, GOOD_TREE.id, GOOD_PACK) == ["new.txt"]
    assert await is_accepted_by_git(naive_repository, work) is not work.git_refuses
    record_verdict(
        str(refused.value).splitlines()[0][:60],
        "git itself refuses" if work.git_refuses else "git takes it",
    )


async def test_what_a_person_is_told_is_one_line(repositories):
    """A person must not read text of the sandbox: git's complaints quote the objects."""
    text = (
        b'[submodule "s"]\n\tpath = s\n\turl = u\n\tupdate = "!x\\n\\n@everyone: all is well, merge'
        b' this"\n'
    )
    work = build_modules(text)
    with pytest.raises(Refused) as refused:
        await import_work(repositories, work.tree, work.pack)
    assert "\n" not in str(refused.value)
    assert "@everyone" not in str(refused.value)


ODD_FOLDER = make_tree((FILE, "a:b", README))
ODD_TREE = make_tree((FILE, "aux.c", README), (FOLDER, "aux", ODD_FOLDER))
ODD_COMMIT = hostile_packs.make_commit(ODD_TREE)


async def test_odd_names_of_the_base_are_no_obstacle(repositories):
    """Odd names that are already in a repository may be changed, and odd folders may get more
    files."""
    with open_content(build_pack([README, ODD_FOLDER, ODD_TREE, ODD_COMMIT])) as file:
        await run_git(repositories.mirror_path(REPO), "index-pack", "--stdin", stdin=file)
    inner = make_tree((FILE, "a:b", NEW), (FILE, "new.c", NEW))
    changed = make_tree((FILE, "aux.c", NEW), (FOLDER, "aux", inner))
    changed_pack = build_pack([NEW, inner, changed])
    paths = await import_work(repositories, changed.id, changed_pack, ODD_COMMIT.id)
    assert paths == ["aux.c", "aux/a:b", "aux/new.c"]
    innermost = make_tree((FILE, "x", NEW))
    for name, inner in {
        "a:c": make_tree((FILE, "a:c", NEW)),
        "con": make_tree((FOLDER, "con", innermost)),
    }.items():
        root = make_tree((FOLDER, "aux", inner))
        objects = [NEW, innermost, inner, root]
        with pytest.raises(Refused, match=f"the file name `aux/{name}` "):
            await import_work(repositories, root.id, build_pack(objects), ODD_COMMIT.id)
    linked = make_tree((FILE, "aux.c", README), (LINK, "aux", make_blob(b"..\\out")))
    linked_pack = build_pack([make_blob(b"..\\out"), linked])
    with pytest.raises(Refused, match="on Windows the link `aux` leaves"):
        await import_work(repositories, linked.id, linked_pack, ODD_COMMIT.id)


async def test_names_and_links_that_only_look_odd_are_taken(repositories):
    """Joiners are letters of some scripts, and belong to emoji."""
    target = make_blob(b"../src/app.py")
    names = [
        "console.c",
        "auxiliary",
        "nul-terminated.md",
        ".gitignore",
        "git~",
        "a..b",
        "...a",
        "COM10",
        "b c.txt",
    ]
    names += [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f469\u200d\U0001f4bb.md",
        "\u2764\ufe0f",
    ]
    links = make_tree(
        (LINK, "up", target),
        (LINK, "beside", make_blob(b"./app.py")),
        (LINK, "odd", make_blob(b"ab:c/d e")),
    )
    root = make_tree(
        *BASE_ENTRIES, *((FILE, name, NEW) for name in names), (FOLDER, "links", links)
    )
    objects = [NEW, target, make_blob(b"./app.py"), make_blob(b"ab:c/d e"), links, root]
    assert set(await import_work(repositories, root.id, build_pack(objects))) >= {
        "console.c",
        "links/up",
        "links/odd",
        "COM10",
        "...a",
    }


REFUSED_WORK = {
    **{name: HOSTILE_WORK[name] for name in (".git", "a pack that is cut", "a missing file")},
    "a link": build_link(b"/etc/hostname"),
}


@pytest.mark.parametrize("name", REFUSED_WORK)
async def test_what_was_refused_leaves_nothing(name, repositories, record_verdict):
    """Otherwise an agent could fill this machine's disk, one pack after another."""
    work = REFUSED_WORK[name]
    folder = repositories.repository_path(REPO)
    before = sorted(folder.rglob("*"))
    with pytest.raises(Refused):
        await import_work(repositories, work.tree, work.pack)
    assert sorted(folder.rglob("*")) == before
    naive_repository = await create_naive_repository(repositories, work.tree)
    await is_accepted_by_git(naive_repository, work)
    assert list(naive_repository.glob("objects/pack/*")) != []
    record_verdict("nothing", "a pack")


async def test_a_pack_that_calls_a_file_by_the_name_of_another(
    repositories, naive_repository, record_verdict
):
    strange_pack = build_pack([STRANGE])
    await import_work(repositories, BASE.id, strange_pack)
    repository = repositories.repository_path(REPO)
    assert await run_git(repository, "cat-file", "blob", README.id) == README.content
    # a naive host copies packs with their indexes
    index = hostile_packs.build_lying_index(STRANGE, README.id, strange_pack)
    (naive_repository / "objects/pack/pack-1.pack").write_bytes(strange_pack)
    (naive_repository / "objects/pack/pack-1.idx").write_bytes(index)
    assert await run_git(naive_repository, "cat-file", "blob", README.id) == STRANGE.content
    record_verdict("things are called what they are", "another file in its place")


# ── small packs of large objects ──────────────────────────────────────────────────────────────────

MIB = 1 << 20
# MiB that git and the worker may use for one pack; Python with our modules uses about 50 of them
MEMORY_LIMIT = 192
IMPORT_PACK = """
import asyncio
from pathlib import Path
from osiris.bot.git.repositories import HostRepositories
from osiris.core.errors import OsirisError
from osiris.core.ports.sandbox import Export
with open(pack, "rb") as file:
    try:
        asyncio.run(HostRepositories(Path(place)).import_pack("acme/shop", base, Export(tree=tree, pack=file), ()))
    except OsirisError as error:
        output = str(error)
"""
IMPORT_NAIVELY = """
import subprocess
for words in ("git index-pack --stdin --fix-thin", f"git diff-tree -r {base}^{{tree}} {tree}"):
    with open(pack, "rb") as file:
        output = str(len(subprocess.run(words.split(), stdin=file, cwd=place, capture_output=True).stdout))
"""
MEASURE = """
import resource, sys
place, base, tree, pack = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
output = "it was taken"
{}
mine = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(max(mine, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10, output)
"""


def measure_memory(code: str, folder: Path, work: HostileWork) -> tuple[int, str]:
    """Import a pack with Python code in a separate process. Return (MiB that it used, output)."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(work.pack)
        file.flush()
        argv = [
            sys.executable,
            "-c",
            MEASURE.format(code),
            str(folder),
            COMMIT.id,
            work.tree,
            file.name,
        ]
        result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    size, _, output = result.stdout.strip().partition(" ")
    return int(size), output


def build_swollen_delta() -> HostileWork:
    """Build a file of 256 MiB in 5 KB: a delta that copies one MiB of zeros over and over."""
    zeros = make_blob(bytes(MIB))
    delta = PackDelta(zeros.id, hostile_packs.encode_copies(MIB, 256))
    return build_objects(GOOD_TREE.id, zeros, delta, NEW, GOOD_TREE)


def build_swollen_tree() -> HostileWork:
    """Build a folder that is large itself: git streams only large files, and reads a folder into
    memory."""
    return build_objects(
        GOOD_TREE.id, PackObject(hostile_packs.TREE, bytes(256 * MIB)), NEW, GOOD_TREE
    )


def build_million_files() -> HostileWork:
    """Build three levels of a hundred entries each, with the same content in all files."""
    trees = [make_tree(*((FILE, f"{n:02}", NEW) for n in range(100)))]
    for _ in range(2):
        trees.append(make_tree(*((FOLDER, f"{n:02}", trees[-1]) for n in range(100))))
    return build_folder("files were changed", "many", trees[-1], *trees[:-1], NEW)


def build_large_file() -> HostileWork:
    large = make_blob(bytes(21 * MIB))
    return build_entries("is larger than 20 MiB", (FILE, "f", large), objects=[large])


def build_many_large_files() -> HostileWork:
    """Build files with the same content, in 100 KB: a checkout takes 760 MiB, and to count their
    lines takes long."""
    large = make_blob(b"a line of text\n" * (19 * MIB // 15))
    inner = make_tree(*((FILE, f"{n:02}", large) for n in range(40)))
    return build_folder("larger than .* together", "many", inner, large)


def build_large_pack() -> HostileWork:
    stored = StoredBlob(bytes(65 * MIB))
    refusal = "maximum allowed size|over limit"
    return build_objects(GOOD_TREE.id, stored, NEW, GOOD_TREE, refusal=refusal)


def build_endless_folders() -> HostileWork:
    """Build folders that are nested so deeply that the stack of git overflows."""
    return build_nested_folders(r"could not be taken over: \w", 60_000)


MEMORY_BOMBS: Mapping[str, Callable[[], HostileWork]] = {
    "swollen_delta": build_swollen_delta,
    "swollen_tree": build_swollen_tree,
    "million_files": build_million_files,
}
"""Packs for which git itself needs more than `MEMORY_LIMIT`."""
BOMBS: Mapping[str, Callable[[], HostileWork]] = {
    **MEMORY_BOMBS,
    "large_file": build_large_file,
    "many_large_files": build_many_large_files,
    "large_pack": build_large_pack,
    "endless_folders": build_endless_folders,
}


@pytest.mark.first_case
@pytest.mark.parametrize("bomb", BOMBS)
async def test_a_pack_of_large_things(bomb, repositories, naive_repository, record_verdict):
    work = BOMBS[bomb]()
    folder = repositories.repository_path(REPO).parents[2]
    memory, output = measure_memory(IMPORT_PACK, folder, work)
    assert re.search(work.refusal, output), output
    assert memory < MEMORY_LIMIT, "it took as much memory as the pack wanted"
    assert await import_work(repositories, GOOD_TREE.id, GOOD_PACK) == ["new.txt"]
    assert await is_accepted_by_git(naive_repository, work)
    if bomb in MEMORY_BOMBS:
        assert measure_memory(IMPORT_NAIVELY, naive_repository, work)[0] > MEMORY_LIMIT
    record_verdict(
        output[:60], "git took all that memory" if bomb in MEMORY_BOMBS else "git takes it"
    )
