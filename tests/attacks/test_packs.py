"""Hostile packs: the sandbox that takes the work out was taken over, and hands the host whatever it
likes."""

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
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
    Stored,
    blob,
    pack,
    tree,
)
from tests.conftest import a_place

REPO = "acme/shop"
DENY = (".github/workflows/",)
README = blob(b"hello\n")
APP = blob(b"print('one')\n")
LARGE = blob(b"base\n" * 5000)
SRC = tree((FILE, "app.py", APP))
KEPT: Sequence[Entry] = ((FILE, "README.md", README), (FILE, "large", LARGE), (FOLDER, "src", SRC))
BASE = tree(*KEPT)
COMMIT = hostile_packs.commit(BASE)
NEW = blob(b"new\n")
GOOD = tree(*KEPT, (FILE, "new.txt", NEW))
STRANGE = blob(b"strange\n" * 20)
OUTSIDE = "leaves the repository"
NOT_TAKEN = "could not be taken over"
MODULE = "is a submodule or a repository in the repository"
CONTROL = "contains a control character"
PROTECTED = "is protected in this repository"
WINDOWS = "on Windows the link `link` leaves the repository"
BACKSLASH, COLON = "contains a backslash: on Windows", "contains a colon: on Windows"
DEVICE, SHORTENED = "is the name of a device on Windows", "ends with a dot or a space: on Windows"
GIT_ELSEWHERE = "would be git's own folder on Windows or macOS"


@dataclass(frozen=True, kw_only=True)
class Evil:
    """Work that must be refused in `words` (a pattern): the name of its tree, and a pack. What
    `git_refuses` is good for nobody: no git takes it in."""

    words: str
    tree: str
    pack: bytes
    git_refuses: bool = False


def entry(
    words: str, *entries: Entry, things: Sequence[PackObject] = (NEW,), sort: bool = True
) -> Evil:
    """A bad entry beside the good files."""
    made = tree(*KEPT, *entries, sort=sort)
    return Evil(words=words, tree=made.id, pack=pack([*things, made]))


def named(words: str, name: str | bytes) -> Evil:
    return entry(words, (FILE, name, NEW))


def link(target: bytes, name: str = "link", words: str = OUTSIDE) -> Evil:
    return entry(words, (LINK, name, blob(target)), things=[blob(target)])


def folder(words: str, name: str, inner: PackObject, *things: PackObject) -> Evil:
    return entry(words, (FOLDER, name, inner), things=[inner, *things])


def modules(text: bytes) -> Evil:
    return entry(NOT_TAKEN, (FILE, ".gitmodules", blob(text)), things=[blob(text)])


def many(count: int) -> Evil:
    inner = tree(*((FILE, f"{n:05}", NEW) for n in range(count)))
    return folder("3001 files were changed", "many", inner, NEW)


def deep(levels: int) -> list[PackObject]:
    found = [tree((FILE, "f", NEW))]
    for _ in range(levels):
        found.append(tree((FOLDER, "d", found[-1])))
    return found


def nested(words: str, levels: int) -> Evil:
    inner = deep(levels)
    return folder(words, "deep", inner[-1], *inner[:-1], NEW)


def raw(content: bytes, tree_: str = GOOD.id) -> Evil:
    return Evil(words=NOT_TAKEN, tree=tree_, pack=content, git_refuses=True)


def beside(tree_: str, *things: PackObject | PackDelta | Stored, words: str = "") -> Evil:
    return Evil(words=words or NOT_TAKEN, tree=tree_, pack=pack(things))


WHOLE = pack([NEW, GOOD])
UP = blob(b"..")
TWISTED = blob(b"d/up/../out")
BYWAY: Entry = (FOLDER, "d", tree((LINK, "up", UP)))
NAMELESS = tree(*KEPT, (FILE, "", NEW))
EVILS = {
    "garbage": raw(b"garbage"),
    "nothing": raw(b""),
    "a pack that is cut": raw(WHOLE[:-30]),
    "a wrong checksum": raw(WHOLE[:-1] + bytes([WHOLE[-1] ^ 1])),
    "a damaged byte": raw(
        hostile_packs.sealed(WHOLE[:14] + bytes([WHOLE[14] ^ 1]) + WHOLE[15:-20])
    ),
    "more things than it says": raw(pack([NEW, GOOD], count=1)),
    "fewer things than it says": raw(pack([NEW, GOOD], count=3)),
    "an unknown version": raw(
        hostile_packs.sealed(b"PACK" + (9).to_bytes(4, "big") + WHOLE[8:-20])
    ),
    "a delta that reads behind its base": raw(
        pack([PackDelta(README.id, hostile_packs.beyond(6)), NEW, GOOD])
    ),
    "a delta of a base that nobody has": raw(
        pack([PackDelta("1" * 40, hostile_packs.copies(1 << 12, 2)), NEW, GOOD])
    ),
    "a missing file": entry(NOT_TAKEN, (FILE, "f", "2" * 40)),
    "a missing folder": entry(NOT_TAKEN, (FOLDER, "d", "3" * 40)),
    "no tree at all": Evil(words=NOT_TAKEN, tree="1" * 40, pack=WHOLE, git_refuses=True),
    "a commit for a tree": beside(
        hostile_packs.commit(GOOD).id, hostile_packs.commit(GOOD), GOOD, NEW, words="is not a tree"
    ),
    "a tag for a tree": beside(
        hostile_packs.tag(GOOD).id, hostile_packs.tag(GOOD), GOOD, NEW, words="is not a tree"
    ),
    "a file for a tree": Evil(words="is not a tree", tree=NEW.id, pack=WHOLE, git_refuses=True),
    "a file that calls itself a folder": entry(NOT_TAKEN, (FOLDER, "d", NEW)),
    "a folder that calls itself a file": entry(NOT_TAKEN, (FILE, "f", GOOD), things=[GOOD, NEW]),
    "a commit that calls itself a file": entry(NOT_TAKEN, (FILE, "f", COMMIT)),
    ".git": folder(NOT_TAKEN, ".git", tree((FILE, "config", NEW)), NEW),
    ".GIT": folder(NOT_TAKEN, ".GIT", tree((FILE, "config", NEW)), NEW),
    "git~1": folder(NOT_TAKEN, "git~1", tree((FILE, "config", NEW)), NEW),
    ".git for HFS": folder(NOT_TAKEN, ".g\u200cit", tree((FILE, "config", NEW)), NEW),
    ".git in a folder below": folder(NOT_TAKEN, "d", tree((FOLDER, ".git", GOOD)), GOOD, NEW),
    "..": folder(NOT_TAKEN, "..", tree((FILE, "f", NEW)), NEW),
    ".": named(NOT_TAKEN, "."),
    "an empty name": Evil(
        words=NOT_TAKEN, tree=NAMELESS.id, pack=pack([NEW, NAMELESS]), git_refuses=True
    ),
    "a slash in a name": named(NOT_TAKEN, "../../etc/cron.d/x"),
    "entries out of order": entry(NOT_TAKEN, (FILE, "AAA", NEW), sort=False),
    "a name twice": entry(NOT_TAKEN, (FILE, "README.md", NEW)),
    "a name for a file and a folder": entry(NOT_TAKEN, (FILE, "src", NEW)),
    "a submodule": entry(MODULE, (GITLINK, "module", COMMIT.id)),
    "a mode with a leading zero": entry(NOT_TAKEN, ("0100644", "f", NEW)),
    "a file that all may write": entry(NOT_TAKEN, ("100666", "f", NEW)),
    "a program that all may write": entry(NOT_TAKEN, ("100777", "f", NEW)),
    "a setuid program": entry(NOT_TAKEN, ("104755", "f", NEW)),
    "a device": entry("needs a person|could not be taken over", ("60644", "f", NEW)),
    "an absolute link": link(b"/etc/passwd"),
    "a link to the folder above": link(b".."),
    "a link that leaves": link(b"src/../../out"),
    "a link that leaves by way of another": entry(
        OUTSIDE, (LINK, "link", TWISTED), BYWAY, things=[TWISTED, UP, tree((LINK, "up", UP))]
    ),
    "a link into .git": link(b".git/config"),
    "a link that leaves on Windows": link(b"..\\..\\out", words=WINDOWS),
    "a link that leaves on Windows by one folder": link(b"src\\..\\..\\out", words=WINDOWS),
    "a link to a drive": link(b"C:/x", words=WINDOWS),
    "a link to a file of a drive": link(b"C:\\x", words=WINDOWS),
    "a link to a file of the drive": link(b"\\x", words=WINDOWS),
    "a link to another machine": link(b"\\\\host\\share", words=WINDOWS),
    "a link that leaves by dots with a space": link(b".. /x", words=WINDOWS),
    "a link into .git on Windows": link(b"src\\..\\.git", words=WINDOWS),
    "a link into .git for HFS": link(".g\u200cit".encode()),
    "a link into .git with a dot": link(b".git./config"),
    "a link into .git with a stream": link(b".git::$INDEX_ALLOCATION/config"),
    "a link into .git by its short name": link(b"GIT~1"),
    "a backslash in a name": named(BACKSLASH, "a\\b"),
    "a colon in a name": named(COLON, "a:b"),
    "a drive for a name": folder(COLON, "C:", tree((FILE, "x", NEW)), NEW),
    "a dot at the end of a name": named(SHORTENED, "README.md."),
    "a space at the end of a name": named(SHORTENED, "README.md "),
    "a space at the end of a folder's name": folder(SHORTENED, "src ", tree((FILE, "x", NEW)), NEW),
    "CON": named(DEVICE, "CON"),
    "NUL": named(DEVICE, "NUL"),
    "a device with an ending": named(DEVICE, "aux.txt"),
    "a device with a space": named(DEVICE, "com1 .txt"),
    "a device of a superscript": named(DEVICE, "LPT\u00b9"),
    "a folder that is a device": folder(DEVICE, "aux", tree((FILE, "x", NEW)), NEW),
    "GIT~1": named(NOT_TAKEN, "GIT~1"),
    "git's short name with another number": named(GIT_ELSEWHERE, "GIT~2"),
    ".git with a joiner of emoji": named(GIT_ELSEWHERE, ".gi\ufe0ft"),
    ".gitmodules with a command": modules(
        b'[submodule "s"]\n\tpath = s\n\turl = u\n\tupdate = !touch x\n'
    ),
    ".gitmodules with an option for an address": modules(
        b'[submodule "s"]\n\tpath = s\n\turl = --upload-pack=x\n'
    ),
    ".gitmodules with an option for a path": modules(b'[submodule "s"]\n\tpath = -x\n\turl = u\n'),
    ".gitmodules with a name that leaves": modules(
        b'[submodule "../../x"]\n\tpath = s\n\turl = u\n'
    ),
    ".gitmodules that is a link": link(b"README.md", ".gitmodules", NOT_TAKEN),
    "a line break in a name": named(CONTROL, "a\nb"),
    "an escape in a name": named(CONTROL, "a\x1b[2Jb"),
    "a delete in a name": named(CONTROL, "a\x7fb"),
    "an escape of eight bits in a name": named(CONTROL, "a\x9b2Jb"),
    "a name that is read backwards": named(CONTROL, "a\u202etxt.sh"),
    "a name that is too long for any disk": named("is too long", "a" * 300),
    "a path that is too long for any system": nested("is too long", 3000),
    "a protected path": folder(PROTECTED, ".github", tree((FOLDER, "workflows", GOOD)), GOOD, NEW),
    "a link where a protected folder would be": folder(
        PROTECTED, ".github", tree((LINK, "workflows", blob(b"../src"))), blob(b"../src")
    ),
    "too many files": many(3001),
}


@pytest.fixture(scope="module")
async def repositories() -> Iterator[HostRepositories]:
    """Host repositories whose mirror has the base. All tests share it: what was refused must not harm what
    comes later."""
    with a_place() as place:
        made = HostRepositories(place / "git")
        await made.prepare_repository(REPO)
        with opened(pack([README, APP, LARGE, SRC, BASE, COMMIT])) as base:
            await run_git(made.mirror_path(REPO), "index-pack", "--stdin", "--strict", stdin=base)
        await run_git(made.mirror_path(REPO), "update-ref", "refs/heads/main", COMMIT.id)
        yield made


@pytest.fixture(scope="module")
async def naive(repositories: HostRepositories) -> Path:
    """A repository whose host checks nothing."""
    return await bare(repositories, "naive")


async def bare(repositories: HostRepositories, name: str) -> Path:
    """A new repository on top of the mirror."""
    made = repositories.repository_path(REPO).with_name(f"{name}.git")
    made.mkdir(exist_ok=True)
    await run_git(made, "init", "-q", "--bare")
    (made / "objects/info/alternates").write_text(f"{repositories.mirror_path(REPO)}/objects\n")
    return made


@contextlib.contextmanager
def opened(content: bytes) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


async def take(
    repositories: HostRepositories, tree_: str, content: bytes, base: str = COMMIT.id
) -> list[str]:
    """The paths that are changed in what was taken."""
    with opened(content) as file:
        taken = await repositories.import_pack(REPO, base, Export(tree=tree_, pack=file), DENY)
    return [file.path for file in taken.files]


async def takes_anything(naive: Path, evil: Evil) -> bool:
    """Whether a host that checks nothing takes the same."""
    try:
        with opened(evil.pack) as file:
            await run_git(naive, "index-pack", "--stdin", "--fix-thin", stdin=file)
        await run_git(naive, "ls-tree", evil.tree)
    except GitCommandFailed:
        return False
    return True


@pytest.mark.parametrize("name", EVILS)
async def test_a_pack_of_a_sandbox_that_was_taken_over(name, repositories, naive, verdict):
    evil = EVILS[name]
    with pytest.raises(Refused, match=evil.words) as refused:
        await take(repositories, evil.tree, evil.pack)
    assert await take(repositories, GOOD.id, WHOLE) == ["new.txt"]
    assert await takes_anything(naive, evil) is not evil.git_refuses
    verdict(
        str(refused.value).splitlines()[0][:60],
        "git itself refuses" if evil.git_refuses else "git takes it",
    )


async def test_what_a_person_is_told_is_one_line(repositories):
    """Not what the sandbox wants them to read: git's complaints quote the thing that they are
    about."""
    text = (
        b'[submodule "s"]\n\tpath = s\n\turl = u\n\tupdate = "!x\\n\\n@everyone: all is well, merge'
        b' this"\n'
    )
    evil = modules(text)
    with pytest.raises(Refused) as refused:
        await take(repositories, evil.tree, evil.pack)
    assert "\n" not in str(refused.value)
    assert "@everyone" not in str(refused.value)


ODD_FOLDER = tree((FILE, "a:b", README))
ODD = tree((FILE, "aux.c", README), (FOLDER, "aux", ODD_FOLDER))
ODD_COMMIT = hostile_packs.commit(ODD)


async def test_odd_names_of_the_base_are_no_obstacle(repositories):
    """What people have in their repository already may be changed, and there may be more in an odd
    folder of theirs."""
    with opened(pack([README, *(tree((FILE, "a:b", README)), ODD, ODD_COMMIT)])) as file:
        await run_git(repositories.mirror_path(REPO), "index-pack", "--stdin", stdin=file)
    inner = tree((FILE, "a:b", NEW), (FILE, "new.c", NEW))
    changed = tree((FILE, "aux.c", NEW), (FOLDER, "aux", inner))
    assert await take(repositories, changed.id, pack([NEW, inner, changed]), ODD_COMMIT.id) == [
        "aux.c",
        "aux/a:b",
        "aux/new.c",
    ]
    innermost = tree((FILE, "x", NEW))
    for name, inner in {
        "a:c": tree((FILE, "a:c", NEW)),
        "con": tree((FOLDER, "con", innermost)),
    }.items():
        made = tree((FOLDER, "aux", inner))
        things = [NEW, innermost, inner, made]
        with pytest.raises(Refused, match=f"the file name `aux/{name}` "):
            await take(repositories, made.id, pack(things), ODD_COMMIT.id)
    linked = tree((FILE, "aux.c", README), (LINK, "aux", blob(b"..\\out")))
    with pytest.raises(Refused, match="on Windows the link `aux` leaves"):
        await take(repositories, linked.id, pack([blob(b"..\\out"), linked]), ODD_COMMIT.id)


async def test_names_and_links_that_only_look_odd_are_taken(repositories):
    """Joiners are letters of some scripts, and belong to emoji."""
    target = blob(b"../src/app.py")
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
    links = tree(
        (LINK, "up", target), (LINK, "beside", blob(b"./app.py")), (LINK, "odd", blob(b"ab:c/d e"))
    )
    made = tree(*KEPT, *((FILE, name, NEW) for name in names), (FOLDER, "links", links))
    things = [NEW, target, blob(b"./app.py"), blob(b"ab:c/d e"), links, made]
    assert set(await take(repositories, made.id, pack(things))) >= {
        "console.c",
        "links/up",
        "links/odd",
        "COM10",
        "...a",
    }


LEFT = {
    **{name: EVILS[name] for name in (".git", "a pack that is cut", "a missing file")},
    "a link": link(b"/etc/hostname"),
}


@pytest.mark.parametrize("name", LEFT)
async def test_what_was_refused_leaves_nothing(name, repositories, verdict):
    """Else an agent fills this machine's disk, a pack at a time."""
    evil = LEFT[name]
    folder = repositories.repository_path(REPO)
    before = sorted(folder.rglob("*"))
    with pytest.raises(Refused):
        await take(repositories, evil.tree, evil.pack)
    assert sorted(folder.rglob("*")) == before
    naive_repository = await bare(repositories, evil.tree)
    await takes_anything(naive_repository, evil)
    assert list(naive_repository.glob("objects/pack/*")) != []
    verdict("nothing", "a pack")


async def test_a_pack_that_calls_a_file_by_the_name_of_another(repositories, naive, verdict):
    lie = pack([STRANGE])
    await take(repositories, BASE.id, lie)
    assert (
        await run_git(repositories.repository_path(REPO), "cat-file", "blob", README.id)
        == README.content
    )
    # a host that copies packs with their indexes
    (naive / "objects/pack/pack-1.pack").write_bytes(lie)
    (naive / "objects/pack/pack-1.idx").write_bytes(
        hostile_packs.lying_index(STRANGE, README.id, lie)
    )
    assert await run_git(naive, "cat-file", "blob", README.id) == STRANGE.content
    verdict("things are called what they are", "another file in its place")


# ── small packs of large things ───────────────────────────────────────────────────────────────────

MIB = 1 << 20
# MiB that git and the worker may take for one pack; Python with our modules takes some 50 of them
ROOM = 192
TAKE = """
import asyncio
from pathlib import Path
from osiris.bot.git.repositories import HostRepositories
from osiris.core.errors import OsirisError
from osiris.core.ports.sandbox import Export
with open(pack, "rb") as file:
    try:
        asyncio.run(HostRepositories(Path(place)).import_pack("acme/shop", base, Export(tree=tree, pack=file), ()))
    except OsirisError as error:
        said = str(error)
"""
TRUST = """
import subprocess
for words in ("git index-pack --stdin --fix-thin", f"git diff-tree -r {base}^{{tree}} {tree}"):
    with open(pack, "rb") as file:
        said = str(len(subprocess.run(words.split(), stdin=file, cwd=place, capture_output=True).stdout))
"""
MEASURE = """
import resource, sys
place, base, tree, pack = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
said = "it was taken"
{}
mine = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(max(mine, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) >> 10, said)
"""


def measured(what: str, place: Path, evil: Evil) -> tuple[int, str]:
    """(MiB that it took, what it said) when a process of its own takes a pack."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(evil.pack)
        file.flush()
        words = [
            sys.executable,
            "-c",
            MEASURE.format(what),
            str(place),
            COMMIT.id,
            evil.tree,
            file.name,
        ]
        result = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    size, _, said = result.stdout.strip().partition(" ")
    return int(size), said


def swollen_delta() -> Evil:
    """A file of 256 MiB in 5 KB: a delta that copies one MiB of zeros over and over."""
    zeros = blob(bytes(MIB))
    copied = PackDelta(zeros.id, hostile_packs.copies(MIB, 256))
    return beside(GOOD.id, zeros, copied, NEW, GOOD)


def swollen_tree() -> Evil:
    """git streams large files, and nothing else: a folder is read into memory whole."""
    return beside(GOOD.id, PackObject(hostile_packs.TREE, bytes(256 * MIB)), NEW, GOOD)


def million_files() -> Evil:
    """A folder of a hundred folders of a hundred folders of a hundred files, which are all one."""
    found = [tree(*((FILE, f"{n:02}", NEW) for n in range(100)))]
    for _ in range(2):
        found.append(tree(*((FOLDER, f"{n:02}", found[-1]) for n in range(100))))
    return folder("files were changed", "many", found[-1], *found[:-1], NEW)


def large_file() -> Evil:
    return entry(
        "is larger than 20 MiB", (FILE, "f", blob(bytes(21 * MIB))), things=[blob(bytes(21 * MIB))]
    )


def many_large_files() -> Evil:
    """All one: 760 MiB for whoever checks them out, and a long time for whoever counts their lines,
    in 100 KB."""
    large = blob(b"a line of text\n" * (19 * MIB // 15))
    inner = tree(*((FILE, f"{n:02}", large) for n in range(40)))
    return folder("larger than .* together", "many", inner, large)


def large_pack() -> Evil:
    stored = Stored(bytes(65 * MIB))
    return beside(GOOD.id, stored, NEW, GOOD, words="maximum allowed size|over limit")


def endless_folders() -> Evil:
    """So deep that git's own stack ends."""
    return nested(r"could not be taken over: \w", 60_000)


HUNGRY: Sequence[Callable[[], Evil]] = (swollen_delta, swollen_tree, million_files)
LARGE_ONES: Sequence[Callable[[], Evil]] = (
    large_file,
    many_large_files,
    large_pack,
    endless_folders,
)


@pytest.mark.parametrize("bomb", [*HUNGRY, *LARGE_ONES], ids=lambda bomb: bomb.__name__)
async def test_a_pack_of_large_things(bomb, repositories, naive, verdict):
    evil = bomb()
    most, said = measured(TAKE, repositories.repository_path(REPO).parents[2], evil)
    assert re.search(evil.words, said), said
    assert most < ROOM, "it took as much memory as the pack wanted"
    assert await take(repositories, GOOD.id, WHOLE) == ["new.txt"]
    assert await takes_anything(naive, evil)
    if bomb in HUNGRY:
        assert measured(TRUST, naive, evil)[0] > ROOM
    verdict(said[:60], "git took all that memory" if bomb in HUNGRY else "git takes it")
