"""The files whose bytes are still those of the checkout, although git would store them anew: a
conversion of line ends or of the encoding does not always lead back to the content in the history.
It runs INSIDE the jail of an export by `python3 -I -S`.

stdin lists the files that git takes for changed, as `git diff-files --raw -z` does. Those with the
bytes of the checkout are marked in the index, so that `git add` leaves their content alone; a new
mode is noted.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO

    Entry = tuple[bytes, bytes, bytes]  # (mode now, id in the base, path)

WORKSPACE = b"/workspace"
CHECKOUT = b"/tmp/was"
REGULAR = (b"100644", b"100755")
MOST_CHECKED_OUT = 24 << 20  # bytes of a blob: its file may have twice as many
MOST_TOGETHER = 96 << 20
CHUNK = 1 << 20


def find_unchanged(entries: list[Entry]) -> Iterator[Entry]:
    """Yield the entries of files with the bytes that the base has, or that its checkout wrote."""
    if not entries:
        return
    asked = b"".join(b"%s\n" % entry[1] for entry in entries)
    sizes = map(int, _run_git("cat-file", "--batch-check=%(objectsize)", stdin=asked).split())
    group: list[Entry] = []
    total = 0
    for entry, size in zip(entries, sizes, strict=True):
        if _has_content(entry, size):
            yield entry
        elif size <= MOST_CHECKED_OUT:
            if total + size > MOST_TOGETHER:
                yield from _compare_checkout(group)
                group, total = [], 0
            group.append(entry)
            total += size
    yield from _compare_checkout(group)


def _has_content(entry: Entry, size: int) -> bool:
    """Return whether a file has the bytes of a blob of this size."""
    _, blob, path = entry
    with _open_regular(os.path.join(WORKSPACE, path)) as file:
        if file is None or os.fstat(file.fileno()).st_size != size:
            return False
        digest = hashlib.new("sha1" if len(blob) == 40 else "sha256", b"blob %d\0" % size)
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest().encode() == blob


def _compare_checkout(entries: list[Entry]) -> Iterator[Entry]:
    """Yield the entries of files with the bytes that a checkout of the base writes. The attributes
    are those in the index of the base."""
    names = b"".join(path + b"\0" for _, _, path in entries)
    os.makedirs(CHECKOUT, exist_ok=True)
    place = {"GIT_INDEX_FILE": "/base.index", "GIT_WORK_TREE": os.fsdecode(CHECKOUT)}
    _run_git("checkout-index", "-q", "-z", "--stdin", stdin=names, check=False, **place)
    for entry in entries:
        written = os.path.join(CHECKOUT, entry[2])
        if _are_equal(written, os.path.join(WORKSPACE, entry[2])):
            yield entry
        if os.path.lexists(written):
            os.unlink(written)


def _are_equal(first: bytes, second: bytes) -> bool:
    with _open_regular(first) as one, _open_regular(second) as two:
        if one is None or two is None:
            return False
        while piece := one.read(CHUNK):
            if piece != two.read(CHUNK):
                return False
        return not two.read(1)


class _open_regular:
    """A regular file while it is open; None when there is none that can be read."""

    def __init__(self, path: bytes) -> None:
        self._file: IO[bytes] | None = None
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        self._file = os.fdopen(fd, "rb")
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            self.__exit__()

    def __enter__(self) -> IO[bytes] | None:
        return self._file

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        self._file = None


def _run_git(*args: str, stdin: bytes, check: bool = True, **environ: str) -> bytes:
    env = {**os.environ, **environ}
    cwd = env["GIT_WORK_TREE"]
    done = subprocess.run(
        ["/usr/bin/git", *args], input=stdin, stdout=subprocess.PIPE, env=env, cwd=cwd, check=check
    )
    return done.stdout


def _parse_entries(listed: bytes) -> Iterator[Entry]:
    fields = listed.split(b"\0")
    for row, path in zip(fields[::2], fields[1::2], strict=False):
        before, now, blob, _, _ = row.lstrip(b":").split(b" ")
        if before in REGULAR and now in REGULAR:
            yield now, blob, path


def _mark_unchanged(entries: Iterable[Entry]) -> None:
    entries = list(entries)
    rows = b"".join(b"%s %s\t%s\0" % entry for entry in entries)
    names = b"".join(path + b"\0" for _, _, path in entries)
    _run_git("update-index", "-z", "--index-info", stdin=rows)
    _run_git("update-index", "-z", "--assume-unchanged", "--stdin", stdin=names)


if __name__ == "__main__":
    _mark_unchanged(find_unchanged(list(_parse_entries(sys.stdin.buffer.read()))))
