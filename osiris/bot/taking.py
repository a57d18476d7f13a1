"""Taking work over from a sandbox as a stranger's push: held apart from everything until it was looked at.

Whoever made the pack may have taken the sandbox over. So git's own checks are at their strictest, what git lets pass is
checked here, git has little memory for it (a pack of 5 KB can unfold to gigabytes), and what is refused leaves nothing.
"""

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from osiris.bot.git import GitFailed, git, has, shown
from osiris.errors import Refused, Unavailable
from osiris.events import FileChange
from osiris.ports import Taken
from osiris.sandboxing import MIB, Export

_PACK_LIMIT = 64 * MIB
_BLOB_LIMIT = 20 * MIB
_SUM_LIMIT = 256 * MIB  # of all changed files
_FILES_LIMIT = 3000
_MEMORY = 144 * MIB  # that one git may fill
_LISTED = 16 * MIB  # bytes that git may list the changes in; with the longest paths 3,000 take 13
_NAME_LIMIT, _PATH_LIMIT = 255, 4095  # bytes: NAME_MAX and PATH_MAX of Linux
_LEFT_OVER = 3600.0  # seconds after which what a killed worker held apart is removed
# `--strict` with what git else only warns of: https://git-scm.com/docs/git-fsck#_fsck_messages
_STRICT = "--strict=badFilemode=error,zeroPaddedFilemode=error,nullSha1=error,fullPathname=error,emptyName=error"
_SMALL = {"core.bigFileThreshold": "1m", "core.deltaBaseCacheLimit": "16m", "pack.threads": "1"}
_MODES = {b"100644", b"100755", b"120000", b"000000"}
_GIT_FOLDER = re.compile(r"(?i)\.git|git~\d+")
_HIDING = re.compile(
    "[\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\udc80-\udc9f]"
    "|[\U000e0000-\U000e007f]"
)
"""Control characters of seven and eight bits, and what is not seen or turns the writing direction; but for the joiners
that some scripts, and emoji, are written with."""

_HUNGRY = re.compile(r"(?i)out of memory|cannot allocate|could not allocate|inflateinit")

Change = tuple[list[bytes], bytes]
"""([mode before, mode after, id before, id after, status], path)"""


async def take(desk: Path, base: str, export: Export, deny: Sequence[str]) -> Taken:
    """The work in `export` against commit `base`, checked, and from now on in `desk`; `deny` are path prefixes that it
    may not change.

    Raises Refused with what is wrong with it, or Unavailable.
    """
    with _apart(desk) as (folder, apart):
        try:
            limit = f"--max-input-size={_PACK_LIMIT}"
            await _git(desk, "index-pack", "--stdin", "--fix-thin", _STRICT, limit, apart=apart, stdin=export.pack)
            if (await _git(desk, "cat-file", "-t", export.tree, apart=apart)).strip() != b"tree":
                raise Refused("the work could not be taken over: what came out of the sandbox is no tree")
            await _git(desk, "rev-list", "--objects", "--quiet", export.tree, "--not", base, apart=apart)
            changes = await _changes(desk, base, export.tree, apart)
            await _check(desk, changes, deny, apart)
            files = await _files(desk, base, export.tree, changes, apart)
        except GitFailed as error:
            raise await _not_taken(desk, base, error) from None
        _move(folder, desk)
    return Taken(tree=export.tree, files=files)


# ── apart ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _apart(desk: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """A folder for what git is handed, and the environment in which it puts it there. What is not moved is removed."""
    for left in (desk / "objects").glob("incoming-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_OVER:
                shutil.rmtree(left, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix="incoming-", dir=desk / "objects"))
    except OSError as error:
        raise Unavailable(f"this machine has no place to take the work over: {error.strerror}") from None
    try:
        objects = {"GIT_OBJECT_DIRECTORY": str(folder), "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(desk / "objects")}
        yield folder, objects
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, desk: Path) -> None:
    """Into the desk, the index last: a pack without one is not looked at."""
    packs = desk / "objects/pack"
    packs.mkdir(exist_ok=True)
    for file in sorted((folder / "pack").glob("pack-*"), key=lambda file: file.suffix == ".idx"):
        file.replace(packs / file.name)


async def _git(desk: Path, *args: str, apart: Mapping[str, str], **how: Any) -> bytes:
    return await git(desk, *args, env=apart, config=_SMALL, memory=_MEMORY, **how)


async def _not_taken(desk: Path, base: str, error: GitFailed) -> Refused | Unavailable:
    """Why a pack was not taken: this machine could not, or the pack is not what it should be."""
    if not await has(desk, f"{base}^{{commit}}"):  # it was there when the run began
        return Unavailable(f"the commit {base} is missing on this machine and is fetched again")
    if "No space left on device" in error.told:
        return Unavailable("this machine has no room to take the work over")
    if _HUNGRY.search(error.told):
        return Refused(f"the work could not be taken over: it unfolds to more than {_MEMORY // MIB} MiB of memory")
    return Refused(f"the work could not be taken over: {_complaint(error.told)}")


def _complaint(told: str) -> str:
    """git's own words at the beginning of what it said; further on it quotes whoever made the pack, line ends too."""
    first = next(
        (line for line in told.splitlines() if line.startswith(("error: ", "fatal: "))), told.partition("\n")[0]
    )
    words = re.match(r"(?:(?:error|fatal): )?(?:object [0-9a-f]+: )?(\w+(?: \w+){0,6})", first)
    return words[1] if words else "it was not said why"


# ── what git lets pass ────────────────────────────────────────────────────────────────────────────────────────────


async def _changes(desk: Path, base: str, tree: str, apart: Mapping[str, str]) -> list[Change]:
    args = ("diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", f"{base}^{{tree}}", tree)
    many = Refused(f"more than {_FILES_LIMIT} files were changed; so many are not taken")
    try:
        listed = await _git(desk, *args, apart=apart, most=_LISTED)
    except GitFailed as error:  # it counts them all before it prints the first
        raise many if _HUNGRY.search(error.told) else error from None
    if len(listed) >= _LISTED:
        raise many
    raw = listed.split(b"\0")
    return [(raw[i].lstrip(b":").split(b" "), raw[i + 1]) for i in range(0, len(raw) - 1, 2)]


async def _check(desk: Path, changes: Sequence[Change], deny: Sequence[str], apart: Mapping[str, str]) -> None:
    if len(changes) > _FILES_LIMIT:
        raise Refused(f"{len(changes)} files were changed; more than {_FILES_LIMIT} are not taken")
    for (before, after, *_), path in changes:
        _check_path(path, deny, gone=after == b"000000")
        if b"160000" in (before, after):
            raise Refused(f"`{shown(path)}` is a submodule or a repository in the repository; that needs a person")
        if after not in _MODES:
            raise Refused(f"`{shown(path)}` has the mode {after.decode()}, which is not taken")
    await _check_sizes(desk, [new for (_b, after, _o, new, _s), _ in changes if after != b"000000"], apart)
    for (_before, after, _old, new, _status), path in changes:
        if after == b"120000":
            _check_link(path, await _git(desk, "cat-file", "blob", new.decode(), apart=apart))


def _check_path(path: bytes, deny: Sequence[str], *, gone: bool) -> None:
    name = shown(path)
    if not gone and (len(path) > _PATH_LIMIT or any(len(part) > _NAME_LIMIT for part in path.split(b"/"))):
        raise Refused(f"the file name `{name[:80]}…` is too long")
    if not gone and _HIDING.search(path.decode("utf-8", "surrogateescape")):
        raise Refused(f"the file name `{name}` has a control character in it, or one that is not seen")
    if any(name.startswith(prefix) or prefix.startswith(f"{name}/") for prefix in deny):
        raise Refused(f"`{name}` is protected in this repository; a change there needs a person")


def _check_link(path: bytes, target: bytes) -> None:
    """A link may lead up, and then down. With a `..` behind a name it would lead where that name, which may be a link
    itself, leads; so links that only go so stay inside whatever others there are."""
    parts = [part for part in target.split(b"/") if part not in (b"", b".")]
    down = next((n for n, part in enumerate(parts) if part != b".."), len(parts))
    leaves = down > path.count(b"/") or b".." in parts[down:]
    into_git = any(_GIT_FOLDER.fullmatch(part.decode("utf-8", "replace")) for part in parts)
    if target.startswith(b"/") or b"\0" in target or leaves or into_git or len(target) > _PATH_LIMIT:
        raise Refused(f"the link `{shown(path)}` leaves the repository")


async def _check_sizes(desk: Path, blobs: Sequence[bytes], apart: Mapping[str, str]) -> None:
    if not blobs:
        return
    asked = b"\n".join(blobs) + b"\n"
    told = await _git(desk, "cat-file", "--batch-check=%(objectsize)", apart=apart, stdin=asked)
    sizes = [int(size) for size in told.split()]
    if max(sizes) > _BLOB_LIMIT:
        raise Refused(f"a changed file is larger than {_BLOB_LIMIT // MIB} MiB")
    if sum(sizes) > _SUM_LIMIT:
        raise Refused(f"the changed files are larger than {_SUM_LIMIT // MIB} MiB together")


# ── what the evidence says of it ──────────────────────────────────────────────────────────────────────────────────


async def _files(
    desk: Path, base: str, tree: str, changes: Sequence[Change], apart: Mapping[str, str]
) -> tuple[FileChange, ...]:
    args = ("diff-tree", "-r", "-z", "--numstat", "--no-renames", "--no-ext-diff", "--no-textconv")
    counts = {}
    for line in (await _git(desk, *args, f"{base}^{{tree}}", tree, apart=apart)).split(b"\0"):
        if line:
            added, deleted, path = line.split(b"\t", 2)
            counts[path] = (None, None) if added == b"-" else (int(added), int(deleted))
    return tuple(_file(path, fields[4], *counts.get(path, (None, None))) for fields, path in changes)


def _file(path: bytes, status: bytes, additions: int | None, deletions: int | None) -> FileChange:
    name = str(PurePosixPath(shown(path)))
    match status[:1]:
        case b"A":
            return FileChange(path=name, status="added", additions=additions, deletions=deletions)
        case b"D":
            return FileChange(path=name, status="deleted", additions=additions, deletions=deletions)
    return FileChange(path=name, status="modified", additions=additions, deletions=deletions)
