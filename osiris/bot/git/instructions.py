"""Instructions for agents in a repository, such as `AGENTS.md`, as they are in a commit."""

import heapq
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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

log = logging.getLogger(__name__)

_KNOWN_PLACES = ("AGENTS.md", "CLAUDE.md", ".github/copilot-instructions.md")
_NESTED = b"/AGENTS.md"
_FILES_LIMIT = 20
_TEXT_LIMIT = 16_000  # characters, all files together
_PATH_LIMIT = 1_000  # bytes of a path, which is in the brief too
_NAMED = 10  # omitted files that are listed by name
_REGULAR = (b"100644", b"100755")
_NOT_SEARCHED = (
    "[The repository has more files than Osiris searches: other folders may hold an AGENTS.md too.]"
)


@dataclass(frozen=True, slots=True)
class _Nested:
    """The files in folders: those nearest the root, and how many there are."""

    nearest: Sequence[ListedFile]
    count: int


async def read_instructions(repo: Path, commit: str) -> Mapping[str, str]:
    """Return path -> text of the instructions files, those nearest the root first.

    A note at the end of a text reports what was cut or left out.
    """
    known = await _find_known(repo, commit)
    nested, is_whole = await search_files(repo, commit, _find_nested)
    files = sorted([*known, *nested.nearest[: _FILES_LIMIT - len(known)]], key=_depth_key)
    texts, left_out = await _read_texts(repo, files)
    notes = []
    if more := _name_left_out(left_out, nested.count + len(known) - len(files)):
        notes.append(more)
    if not is_whole:
        notes.append(_NOT_SEARCHED)
    if notes and not texts:
        log.warning("no instructions were read at %s: %s", commit, " ".join(notes))
    elif notes:
        last = list(texts)[-1]
        texts[last] = "\n\n".join([texts[last], *notes])
    return texts


async def _find_known(repo: Path, commit: str) -> list[ListedFile]:
    """Find the files at known paths, however many other files there are."""
    listed = await run_git(repo, "ls-tree", "-z", "--full-tree", commit, "--", *_KNOWN_PLACES)
    files = [ListedFile.parse(record) for record in listed.split(b"\0") if record]
    return [file for file in files if file.mode in _REGULAR]


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
    if file.mode not in _REGULAR or len(file.path) > _PATH_LIMIT:
        return False
    return all(len(name) <= NAME_LIMIT for name in file.path.split(b"/"))


def _depth_key(file: ListedFile) -> tuple[int, bytes]:
    return file.path.count(b"/"), file.path


async def _read_texts(repo: Path, files: Sequence[ListedFile]) -> tuple[dict[str, str], list[str]]:
    """Return the texts, cut to the limit for all of them, and the paths that were left out."""
    texts: dict[str, str] = {}
    left_out = []
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
        texts[path] = text
        if len(text) > room:
            shown_part = f"Only the first {room:,} characters of `{path}` are shown here."
            texts[path] = f"{text[:room]}\n\n[{shown_part} The rest is in the repository.]"
        room -= len(text)
    return texts, left_out


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
    return f"[Not shown here, {why}: {', '.join(named)}.]"
