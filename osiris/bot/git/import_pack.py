"""Imports the pack that a sandbox produced.

The pack is untrusted: it is unpacked into quarantine and moved into the repository only after every
check passes. Whoever made it may have taken over the sandbox. So git's own checks are at their
strictest, what git accepts is checked here, git has little memory for it (a pack of 5 KB can unfold
to gigabytes), and a pack that is refused leaves nothing behind.
"""

import asyncio
import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from osiris.bot.git.file_listings import PATH_LIMIT
from osiris.bot.git.path_checks import check_changed_path, check_link, find_bad_name
from osiris.bot.git.runner import (
    STREAMING,
    GitCommandFailed,
    GitLimits,
    LimitReached,
    escape_path,
    has_object,
    run_git,
)
from osiris.core.errors import LocalTimeout, Refused, Unavailable
from osiris.core.ports.repositories import (
    MOST_FILE_SIZE,
    MOST_FILES,
    MOST_PACK_SIZE,
    ImportedWork,
)
from osiris.core.ports.sandbox import MIB, Export
from osiris.core.work import FileChange

_SUM_LIMIT = 256 * MIB  # of all changed files
_NAMES_LIMIT = 2 * MIB  # bytes: names of all changed files, and targets of all changed links
_STREAMED = 1 * MIB  # git streams larger files, and does not count lines in them
_LEFT_OVER = 3600.0  # seconds after which the quarantine of a killed worker is removed
# An ordinary pack of 64 MiB with files of 120 MiB takes 1.5 seconds of an average processor.
_IMPORT = GitLimits(memory=144 * MIB, cpu=10, file_size=_SUM_LIMIT)
_UNPACK = _IMPORT
_WALK = replace(_IMPORT, cpu=20)
# Modes and ids precede each name.
_LISTING = replace(_IMPORT, output=_NAMES_LIMIT + MOST_FILES * 128)
_SIZES = replace(_IMPORT, output=2 * MOST_FILES * 64)
_COUNTING = replace(_IMPORT, seconds=30, cpu=8, output=_NAMES_LIMIT + MOST_FILES * 32)
# `--strict` with errors for what git only warns of by default: https://git-scm.com/docs/git-fsck#_fsck_messages
_FATAL = ("badFilemode", "zeroPaddedFilemode", "nullSha1", "fullPathname", "emptyName")
_STRICT = "--strict=" + ",".join(f"{fault}=error" for fault in _FATAL)
_SMALL = {**STREAMING, "core.deltaBaseCacheLimit": "16m", "pack.threads": "1"}
_MODES = {b"100644", b"100755", b"120000", b"000000"}
_LINK, _NOTHING = b"120000", b"000000"
_BLOB = b"blob\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Change:
    """One row of `git diff-tree --raw`. The mode 000000 means that there is no file."""

    mode_before: bytes
    mode_after: bytes
    id_before: bytes
    id_after: bytes
    status: bytes
    path: bytes

    @property
    def is_gone(self) -> bool:
        return self.mode_after == _NOTHING

    @property
    def is_new(self) -> bool:
        return self.mode_before == _NOTHING


async def import_pack(repo: Path, base: str, export: Export, deny: Sequence[str]) -> ImportedWork:
    """Check the work in `export` against commit `base` and move it into the host repository `repo`.

    `deny` lists path prefixes that the work may not change. Raises Refused with what is wrong with
    it, or Unavailable.
    """
    with _open_quarantine(repo) as (folder, quarantine):
        try:
            limit = f"--max-input-size={MOST_PACK_SIZE}"
            unpack = ("index-pack", "--stdin", "--fix-thin", _STRICT, limit)
            await _run_quarantined(
                repo, *unpack, quarantine=quarantine, limits=_UNPACK, stdin=export.pack
            )
            if (
                await _run_quarantined(repo, "cat-file", "-t", export.tree, quarantine=quarantine)
            ).strip() != b"tree":
                raise Refused(
                    "the work could not be taken over: what came out of the sandbox is not a tree"
                )
            walk = ("rev-list", "--objects", "--quiet", export.tree, "--not", base)
            await _run_quarantined(repo, *walk, quarantine=quarantine, limits=_WALK)
            changes = await _list_changes(repo, base, export.tree, quarantine)
            sizes = await _check_changes(repo, base, changes, deny, quarantine)
            counts = await _count_lines(repo, base, export.tree, quarantine)
        except LimitReached as error:
            raise Refused(f"the work could not be taken over: {error}") from None
        except GitCommandFailed as error:
            raise await _describe_failure(repo, base, error) from None
        added = _move_packs(folder, repo)
    return ImportedWork(tree=export.tree, files=_describe_files(changes, sizes, counts), size=added)


# ── quarantine ────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def _open_quarantine(repo: Path) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """Create a folder for the objects that git receives, and yield it with the environment that
    makes git use it. Files that are not moved are removed."""
    for left in (repo / "objects").glob("incoming-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_OVER:
                shutil.rmtree(left, ignore_errors=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix="incoming-", dir=repo / "objects"))
    except OSError as error:
        raise Unavailable(
            f"this machine has no place to import the work: {error.strerror}"
        ) from None
    try:
        objects = {
            "GIT_OBJECT_DIRECTORY": str(folder),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(repo / "objects"),
        }
        yield folder, objects
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_packs(folder: Path, repo: Path) -> int:
    """Move the packs into the repository; return their size in bytes.

    The index is moved last, because git ignores a pack without one.
    """
    packs = repo / "objects/pack"
    packs.mkdir(exist_ok=True)
    added = 0
    for file in sorted((folder / "pack").glob("pack-*"), key=lambda file: file.suffix == ".idx"):
        added += file.stat().st_size
        file.replace(packs / file.name)
    return added


async def _run_quarantined(
    repo: Path,
    *args: str,
    quarantine: Mapping[str, str],
    limits: GitLimits = _IMPORT,
    **how: Any,
) -> bytes:
    return await run_git(repo, *args, env=quarantine, config=_SMALL, limits=limits, **how)


async def _describe_failure(
    repo: Path, base: str, error: GitCommandFailed
) -> Refused | Unavailable:
    """Return why a pack was not imported: this machine was not able to, or the pack is invalid."""
    if not await has_object(repo, f"{base}^{{commit}}"):  # it was there when the run began
        return Unavailable(f"the commit {base} is missing on this machine and is fetched again")
    if "No space left on device" in error.output:
        return Unavailable("this machine has no disk space to import the work")
    return Refused(f"the work could not be taken over: {_extract_complaint(error.output)}")


def _extract_complaint(told: str) -> str:
    """Return git's own words at the beginning of its output.

    Further on it quotes text of whoever made the pack, with line ends.
    """
    first = next(
        (line for line in told.splitlines() if line.startswith(("error: ", "fatal: "))),
        told.partition("\n")[0],
    )
    words = re.match(r"(?:(?:error|fatal): )?(?:object [0-9a-f]+: )?(\w+(?: \w+){0,6})", first)
    return words[1] if words else "no reason given"


# ── checks beyond git's own ───────────────────────────────────────────────────────────────────────


async def _list_changes(
    repo: Path, base: str, tree: str, quarantine: Mapping[str, str]
) -> list[_Change]:
    args = (
        "diff-tree",
        "-r",
        "-z",
        "--raw",
        "--no-renames",
        "--no-abbrev",
        f"{base}^{{tree}}",
        tree,
    )
    many = Refused(f"more than {MOST_FILES} files were changed; so many are not taken")
    try:
        listed = await _run_quarantined(
            repo, *args, quarantine=quarantine, limits=_LISTING, head=True
        )
    except LimitReached as error:  # git counts all of them before it prints the first
        raise many if error.limit == "memory" else error from None
    count = listed.count(b"\0") // 2
    if len(listed) >= _LISTING.output:
        size = f"{_NAMES_LIMIT // MIB} MiB"
        long = Refused(f"the names of the changed files are longer than {size} together")
        raise many if count > MOST_FILES else long
    if count > MOST_FILES:
        raise Refused(f"{count} files were changed; more than {MOST_FILES} are not taken")
    raw = listed.split(b"\0")
    return [_parse_change(raw[i], raw[i + 1]) for i in range(0, len(raw) - 1, 2)]


def _parse_change(fields: bytes, path: bytes) -> _Change:
    mode_before, mode_after, id_before, id_after, status = fields.lstrip(b":").split(b" ")
    return _Change(
        mode_before=mode_before,
        mode_after=mode_after,
        id_before=id_before,
        id_after=id_after,
        status=status,
        path=path,
    )


async def _check_changes(
    repo: Path,
    base: str,
    changes: Sequence[_Change],
    deny: Sequence[str],
    quarantine: Mapping[str, str],
) -> Mapping[bytes, int]:
    """Raise Refused for a change that is not allowed.

    Returns the sizes of all changed files, before and after, by their ids.
    """
    await asyncio.to_thread(_check_paths, changes, deny)
    await _check_new_names(repo, base, changes, quarantine)
    sizes = await _read_sizes(repo, changes, quarantine)
    _check_sizes(changes, sizes)
    links = [change for change in changes if change.mode_after == _LINK]
    await _check_links(repo, links, sizes, quarantine)
    return sizes


def _check_paths(changes: Sequence[_Change], deny: Sequence[str]) -> None:
    for change in changes:
        check_changed_path(change.path, deny, is_gone=change.is_gone)
        if b"160000" in (change.mode_before, change.mode_after):
            what = f"`{escape_path(change.path)}` is a submodule or a repository in the repository"
            raise Refused(f"{what}; that needs a person")
        if change.mode_after not in _MODES:
            mode = change.mode_after.decode()
            raise Refused(f"`{escape_path(change.path)}` has the mode {mode}, which is not taken")


async def _check_new_names(
    repo: Path,
    base: str,
    changes: Sequence[_Change],
    quarantine: Mapping[str, str],
) -> None:
    """Raise Refused for a name that is invalid on other systems and that the base does not have."""
    found = await asyncio.to_thread(_find_bad_names, changes)
    if not found:
        return
    asked = b"".join(b"%s:%s\n" % (base.encode(), prefix) for prefix in found)
    args = ("cat-file", "--batch-check=%(objecttype)")
    told = await _run_quarantined(repo, *args, quarantine=quarantine, limits=_LISTING, stdin=asked)
    for (prefix, why), line in zip(found.items(), told.split(b"\n"), strict=False):
        if line.endswith(b" missing"):
            raise Refused(f"the file name `{escape_path(prefix)}` {why}; give it another name")


def _find_bad_names(changes: Sequence[_Change]) -> dict[bytes, str]:
    names = (find_bad_name(change.path) for change in changes if change.is_new)
    return dict(name for name in names if name)


async def _read_sizes(
    repo: Path,
    changes: Sequence[_Change],
    quarantine: Mapping[str, str],
) -> dict[bytes, int]:
    ids = {change.id_after for change in changes if not change.is_gone}
    ids |= {change.id_before for change in changes if not change.is_new}
    if not ids:
        return {}
    asked = b"\n".join(sorted(ids)) + b"\n"
    args = ("cat-file", "--batch-check=%(objectsize)")
    told = await _run_quarantined(repo, *args, quarantine=quarantine, limits=_SIZES, stdin=asked)
    return dict(zip(sorted(ids), map(int, told.split()), strict=True))


def _check_sizes(changes: Sequence[_Change], sizes: Mapping[bytes, int]) -> None:
    after = [sizes[change.id_after] for change in changes if not change.is_gone]
    if max(after, default=0) > MOST_FILE_SIZE:
        raise Refused(f"a changed file is larger than {MOST_FILE_SIZE // MIB} MiB")
    if sum(after) > _SUM_LIMIT:
        raise Refused(f"the changed files are larger than {_SUM_LIMIT // MIB} MiB together")


async def _check_links(
    repo: Path, links: Sequence[_Change], sizes: Mapping[bytes, int], quarantine: Mapping[str, str]
) -> None:
    """Raise Refused for a link that leaves the repository.

    A target is read only when it is short.
    """
    for link in links:
        if sizes[link.id_after] > PATH_LIMIT:
            name = escape_path(link.path)
            raise Refused(f"the target of the link `{name}` is longer than {PATH_LIMIT} bytes")
    total = sum(sizes[link.id_after] for link in links)
    if total > _NAMES_LIMIT:
        size = f"{_NAMES_LIMIT // MIB} MiB"
        raise Refused(f"the targets of the changed links are longer than {size} together")
    if not links:
        return
    asked = b"".join(b"%s\n" % link.id_after for link in links)
    limits = replace(_IMPORT, output=total + (len(_BLOB) + 1) * len(links))
    args = ("cat-file", "--batch=%(objecttype)")
    told = await _run_quarantined(repo, *args, quarantine=quarantine, limits=limits, stdin=asked)
    await asyncio.to_thread(_check_targets, links, sizes, told)


def _check_targets(links: Sequence[_Change], sizes: Mapping[bytes, int], told: bytes) -> None:
    """Check the output of `git cat-file --batch`: for each link its type, its target, and line
    ends."""
    at = 0
    for link in links:
        at += len(_BLOB)
        end = at + sizes[link.id_after]
        check_link(link.path, told[at:end])
        at = end + 1


# ── the description for the evidence ──────────────────────────────────────────────────────────────

Counts = tuple[int | None, int | None]
_STATUSES: Mapping[bytes, Literal["added", "deleted"]] = {b"A": "added", b"D": "deleted"}


async def _count_lines(
    repo: Path,
    base: str,
    tree: str,
    quarantine: Mapping[str, str],
) -> Mapping[bytes, Counts] | None:
    """Return the numbers of lines added to and deleted from each path (None: it is binary).

    Returns None when counting took too long; the work is accepted all the same.
    """
    args = ("diff-tree", "-r", "-z", "--numstat", "--no-renames", "--no-ext-diff", "--no-textconv")
    try:
        told = await _run_quarantined(
            repo, *args, f"{base}^{{tree}}", tree, quarantine=quarantine, limits=_COUNTING
        )
    except (LimitReached, LocalTimeout):
        return None
    counts: dict[bytes, Counts] = {}
    for line in told.split(b"\0"):
        if line:
            added, deleted, path = line.split(b"\t", 2)
            counts[path] = (None, None) if added == b"-" else (int(added), int(deleted))
    return counts


def _describe_files(
    changes: Sequence[_Change], sizes: Mapping[bytes, int], counts: Mapping[bytes, Counts] | None
) -> tuple[FileChange, ...]:
    return tuple(_describe_file(change, sizes, counts) for change in changes)


def _describe_file(
    change: _Change,
    sizes: Mapping[bytes, int],
    counts: Mapping[bytes, Counts] | None,
) -> FileChange:
    additions, deletions = (counts or {}).get(change.path, (None, None))
    is_streamed = max(sizes.get(id_, 0) for id_ in (change.id_before, change.id_after)) > _STREAMED
    path = str(PurePosixPath(escape_path(change.path)))
    is_counted = counts is not None and not (additions is None and is_streamed)
    return FileChange(
        path=path,
        status=_STATUSES.get(change.status[:1], "modified"),
        additions=additions,
        deletions=deletions,
        counted=is_counted,
    )
