"""Instructions for agents in a repository, such as `AGENTS.md`, as they are in a commit."""

import heapq
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from osiris.bot.git.file_listings import NAME_LIMIT, ListedFile, search_files
from osiris.bot.git.runner import (
    STREAMING,
    GitCommandFailed,
    GitLimits,
    LimitReached,
    escape_path,
    run_git,
)
from osiris.core.errors import LocalTimeout
from osiris.core.ports.repositories import Instructions
from osiris.core.ports.sandbox import KIB

log = logging.getLogger(__name__)

_KNOWN_PLACES = ("AGENTS.md", "CLAUDE.md", ".github/copilot-instructions.md")
_NESTED = b"/AGENTS.md"
_FILES_LIMIT = 20
_TEXT_LIMIT = 16_000  # characters, all files together
_PATH_LIMIT = 1_000  # bytes of a path, which is in the brief too
_NAMED = 10  # omitted files that are listed by name
_REGULAR = (b"100644", b"100755")
_LINK = b"120000"
_FOLLOWING = GitLimits(output=64 * KIB, cpu=5)
_NOT_SEARCHED = (
    "The repository has more files than Osiris searches: other folders may hold an AGENTS.md too."
)


@dataclass(frozen=True, slots=True)
class _Nested:
    """The files in folders: those nearest the root, and how many there are."""

    nearest: Sequence[ListedFile]
    count: int


async def read_instructions(repo: Path, commit: str) -> Instructions:
    """Return the instructions files of a commit, those nearest the root first, and in sentences
    what of them was cut or left out."""
    known = await _find_known(repo, commit)
    nested, is_whole = await search_files(repo, commit, _find_nested)
    listed = sorted([*known, *nested.nearest[: _FILES_LIMIT - len(known)]], key=_depth_key)
    files, unreadable = await _resolve_links(repo, commit, listed)
    texts, left_out, sentences = await _read_texts(repo, files)
    more = nested.count + len(known) - len(listed)
    if named := _name_left_out([*unreadable, *left_out], more):
        sentences.append(named)
    if not is_whole:
        sentences.append(_NOT_SEARCHED)
    return Instructions(texts=texts, left_out=tuple(sentences))


async def _find_known(repo: Path, commit: str) -> list[ListedFile]:
    """Find the files at known paths, however many other files there are."""
    listed = await run_git(repo, "ls-tree", "-z", "--full-tree", commit, "--", *_KNOWN_PLACES)
    files = [ListedFile.parse(record) for record in listed.split(b"\0") if record]
    return [file for file in files if file.mode in (*_REGULAR, _LINK)]


async def _resolve_links(
    repo: Path, commit: str, files: Sequence[ListedFile]
) -> tuple[list[ListedFile], list[str]]:
    """Return the files with the blobs that links lead to, and the paths of links to anything else
    than a file of the repository. A link to a file that is read anyway is left out."""
    blobs = {file.blob for file in files if file.mode != _LINK}
    resolved = []
    unreadable = []
    for file in files:
        if file.mode == _LINK:
            blob = await _follow_link(repo, commit, file.path)
            if blob in blobs:
                continue
            if not blob:
                unreadable.append(escape_path(file.path))
                continue
            blobs.add(blob)
            file = replace(file, blob=blob)
        resolved.append(file)
    return resolved, unreadable


async def _follow_link(repo: Path, commit: str, path: bytes) -> bytes:
    """Return the id of the blob that a link leads to within the commit; b"" when there is none.

    git follows it in its own data: no file of this machine is opened.
    """
    asked = commit.encode() + b":" + path
    args = ("cat-file", "--batch-check=%(objecttype) %(objectname)", "--follow-symlinks", "-z")
    try:
        told = await run_git(repo, *args, stdin=asked + b"\0", limits=_FOLLOWING)
    except (GitCommandFailed, LimitReached, LocalTimeout) as error:
        log.warning("the link %s could not be followed: %s", escape_path(path), error)
        return b""
    match told.split():
        case [b"blob", blob]:
            return blob
    return b""


def _find_nested(records: Iterator[bytes]) -> _Nested:
    count = 0

    def find_matching() -> Iterator[ListedFile]:
        nonlocal count
        for record in records:
            if record.endswith(_NESTED) and _is_instructions(file := ListedFile.parse(record)):
                count += 1
                yield file

    nearest = heapq.nsmallest(_FILES_LIMIT, find_matching(), key=_depth_key)
    return _Nested(nearest, count)


def _is_instructions(file: ListedFile) -> bool:
    if file.mode not in (*_REGULAR, _LINK) or len(file.path) > _PATH_LIMIT:
        return False
    return all(len(name) <= NAME_LIMIT for name in file.path.split(b"/"))


def _depth_key(file: ListedFile) -> tuple[int, bytes]:
    return file.path.count(b"/"), file.path


async def _read_texts(
    repo: Path, files: Sequence[ListedFile]
) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the texts, cut to the limit for all of them, the paths that were left out, and
    sentences on what was cut."""
    texts: dict[str, str] = {}
    left_out = []
    cut = []
    room = _TEXT_LIMIT
    for file in files:
        path = escape_path(file.path)
        if room <= 0:
            left_out.append(path)
            continue
        try:
            text = await _read_head(repo, file.blob.decode(), room + 1)
        except (GitCommandFailed, LimitReached, LocalTimeout) as error:
            log.warning("the instructions in %s could not be read: %s", path, error)
            left_out.append(path)
            continue
        texts[path] = text[:room]
        if len(text) > room:
            cut.append(
                f"Of `{path}` only the first {room:,} characters are shown; the rest is in the"
                " repository."
            )
        room -= len(text)
    return texts, left_out, cut


async def _read_head(repo: Path, blob: str, characters: int) -> str:
    """Return the first characters of a file; in UTF-8, each takes four bytes at most."""
    limits = GitLimits(output=4 * characters, cpu=10)
    content = await run_git(
        repo, "cat-file", "blob", blob, config=STREAMING, limits=limits, head=True
    )
    return content.decode("utf-8", "replace")[:characters]


def _name_left_out(paths: Sequence[str], more: int) -> str:
    named = [f"`{path}`" for path in paths[:_NAMED]]
    more += len(paths) - len(named)
    if more:
        named.append(f"{more} more" if named else f"{more} files with instructions")
    if not named:
        return ""
    why = "because the instructions are too long or could not be read"
    return f"Not shown, {why}: {', '.join(named)}."
