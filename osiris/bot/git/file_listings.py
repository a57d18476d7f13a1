"""The file listing of a commit, from git.

Listings are searched in a thread, in chunks, and never held in memory as a whole.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

from osiris.bot.git.runner import GitCommandFailed, GitLimits, LimitReached, run_git
from osiris.core.errors import LocalTimeout
from osiris.core.ports.sandbox import MIB

NAME_LIMIT, PATH_LIMIT = 255, 4095  # bytes: NAME_MAX and PATH_MAX of Linux
_LIMITS = GitLimits(output=128 * MIB, cpu=5)  # 400,000 files take about 40 MB and 0.3 seconds
_PIECE = 1 << 16
_RECORD_LIMIT = PATH_LIMIT + 64  # bytes: mode, kind and id precede the path

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """One row of `git ls-tree`: the mode, the id of the blob, and the path."""

    mode: bytes
    blob: bytes
    path: bytes

    @classmethod
    def parse(cls, record: bytes) -> "ListedFile":
        head, _, path = record.partition(b"\t")
        mode, _kind, blob = head.split(b" ")
        return cls(mode=mode, blob=blob, path=path)


async def search_files(
    repo: Path,
    commit: str,
    search: Callable[[Iterator[bytes]], T],
) -> tuple[T, bool]:
    """Return the result of `search` on the rows of `git ls-tree -r`, and whether it received all of
    them.

    The search runs in a thread. It does not receive all rows when git reached a limit: a few
    objects can refer to each other so often that the list of files is endless. Rows with a path
    that is impossible on Linux are left out.
    """
    with tempfile.TemporaryFile() as file:
        is_whole = True
        try:
            await run_git(
                repo, "ls-tree", "-r", "-z", "--full-tree", commit, limits=_LIMITS, to=file
            )
        except (GitCommandFailed, LimitReached, LocalTimeout):
            is_whole = False
        file.seek(0)
        return await asyncio.to_thread(search, read_records(file)), is_whole


def read_records(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the records that end with a zero byte, without those of more than 4,159 bytes."""
    rest = b""
    is_too_long = False
    while piece := file.read(_PIECE):
        *records, rest = (rest + piece).split(b"\0")
        for record in records:
            if not is_too_long and len(record) <= _RECORD_LIMIT:
                yield record
            is_too_long = False
        if len(rest) > _RECORD_LIMIT:
            rest = b""
            is_too_long = True
