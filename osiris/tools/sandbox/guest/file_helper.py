"""The file helper. It runs INSIDE the jail by `python3 -I -S`: a request in argv, a file's content
on stdin, one answer on stdout.

An answer begins with a line `ok` or `trouble`; a sentence or text for the model follows. File names
may be any bytes (surrogateescape). The top imports only modules that the start of python imports
anyway: `json` alone takes 8 ms, `typing` 10, and python itself only 9.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterator
    from typing import Any

# characters in an answer: six bytes each in the worst case, below the session's output cap
MOST_TEXT = 20_000
MOST_LINE = 2_000
MOST_READ = 64 << 20  # bytes of a file that are read
MOST_EDIT = 8 << 20
MOST_SEARCHED = 4 << 20
MOST_ENTRIES = 500
MOST_MATCHES = 200


class FileHelperError(Exception):
    """The error of a request; the text is a sentence for the model."""


def read_file(path: str, start: int, lines: int) -> str:
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        shown = []
        total = 0
        room = MOST_TEXT
        if b"\0" in file.peek(8192)[:8192]:
            return f"{_format_name(path)} is a binary file of {size} bytes"
        for total, line in enumerate(_read_lines(file), 1):
            if start <= total < start + lines and room > 0:
                text = f"{total:6}\t{_shorten_line(line)}"
                room -= len(text) + 1
                shown.append(text)
        complete = not file.read(1)
    return _format_page(path, start, shown, total, complete)


def _format_page(path: str, start: int, shown: list[str], total: int, complete: bool) -> str:
    if not total:
        return f"{_format_name(path)} is empty"
    many = f"{total} lines" if complete else f"more than {total} lines"
    if not shown:
        return f"{_format_name(path)} has only {many}"
    last = start + len(shown) - 1
    more = f"; go on with start={last + 1}" if last < total or not complete else ""
    return f"{_format_name(path)}: lines {start}-{last} of {many}{more}\n" + "\n".join(shown)


def _read_lines(file: Any) -> Iterator[bytes]:
    """Yield the lines of the first `MOST_READ` bytes, each cut to a chunk's length."""
    left, rest = MOST_READ, b""
    while left > 0 and (chunk := file.read(min(1 << 20, left))):
        left -= len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
        rest = rest if len(rest) < 1 << 16 else rest[: 1 << 16]
    if rest:
        yield rest


def _shorten_line(line: bytes) -> str:
    text = line.rstrip(b"\r").decode("utf-8", "replace")
    return (
        text
        if len(text) <= MOST_LINE
        else f"{text[:MOST_LINE]} … [{len(text) - MOST_LINE} more characters]"
    )


def write_file(path: str, data: bytes) -> str:
    fresh = not os.path.lexists(path)
    _replace_file(path, data)
    return f"{'made' if fresh else 'wrote'} {_format_name(path)}: {len(data)} bytes"


def edit_file(path: str, old: str, new: str) -> str:
    with _open_regular(path) as file:
        raw = file.read(MOST_EDIT + 1)
    if len(raw) > MOST_EDIT:
        raise FileHelperError(f"{_format_name(path)} is too large to edit like this; use a command")
    text = raw.decode("utf-8", "surrogateescape")
    if old not in text and "\r\n" in text:
        old, new = (part.replace("\r\n", "\n").replace("\n", "\r\n") for part in (old, new))
    count = text.count(old)
    if count != 1:
        raise FileHelperError(_explain_mismatch(path, text, old, count))
    at = text.index(old)
    _replace_file(
        path, (text[:at] + new + text[at + len(old) :]).encode("utf-8", "surrogateescape")
    )
    line = text.count("\n", 0, at) + 1
    return f"edited {_format_name(path)} at line {line}"


def _explain_mismatch(path: str, text: str, old: str, count: int) -> str:
    if count:
        where = ", ".join(map(str, _find_lines(text, old)))
        return (
            f"`old` is found {count} times in {_format_name(path)} (lines {where}); add lines"
            " around it until it is unique"
        )
    near = _find_nearest_line(text.split("\n"), old)
    return (
        f"`old` is not in {_format_name(path)}; it must match exactly, with all white space.{near}"
    )


def _find_lines(text: str, part: str) -> list[int]:
    found: list[int] = []
    at = text.find(part)
    while at >= 0 and len(found) < 10:
        found.append(text.count("\n", 0, at) + 1)
        at = text.find(part, at + len(part))
    return found


def _find_nearest_line(lines: list[str], old: str) -> str:
    """Return a sentence with the line that is most similar to the first non-empty line of `old`."""
    from difflib import SequenceMatcher  # takes a few milliseconds, needed only here

    wanted = next((line.strip() for line in old.split("\n") if line.strip()), "")[:200]
    best, where = 0.6, 0
    matcher = SequenceMatcher(b=wanted)
    for number, line in enumerate(lines[:20_000], 1):
        matcher.set_seq1(line.strip()[:200])
        if (
            matcher.real_quick_ratio() > best
            and matcher.quick_ratio() > best
            and matcher.ratio() > best
        ):
            best = matcher.ratio()
            where = number
    return f" The nearest line is {where}: {lines[where - 1][:300]}" if where else ""


def list_folder(path: str) -> str:
    with os.scandir(path) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    shown = [_format_entry(entry) for entry in found[:MOST_ENTRIES]]
    if len(found) > len(shown):
        shown.append(f"… and {len(found) - len(shown)} more")
    return "\n".join(shown) or f"{_format_name(path)} is empty"


def _format_entry(entry: os.DirEntry[str]) -> str:
    name = _format_name(entry.name)
    if entry.is_symlink():
        return f"{name} -> {_format_name(os.readlink(entry.path))}"
    if entry.is_dir():
        return f"{name}/"
    info = entry.stat(follow_symlinks=False)
    return (
        f"{name}  {info.st_size} bytes"
        if stat.S_ISREG(info.st_mode)
        else f"{name}  (not a regular file)"
    )


def search_files(path: str, pattern: str) -> str:
    import re

    try:
        wanted = re.compile(pattern, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise FileHelperError(f"the pattern is not a regular expression: {error}") from error
    shown: list[str] = []
    room, skipped = MOST_TEXT, 0
    for file in _walk_files(path):
        text = _read_searchable(file)
        skipped += text is None
        for line in _find_matches(wanted, text or "", file):
            shown.append(line)
            room -= len(line) + 1
            if len(shown) >= MOST_MATCHES or room < 0:
                return "\n".join(
                    [*shown, "… there are more matches: narrow the pattern or the path"]
                )
    note = (
        f" ({skipped} files larger than {MOST_SEARCHED >> 20} MiB were left out)" if skipped else ""
    )
    return (
        "\n".join(shown) + note
        if shown
        else f"no match for {pattern!r} below {_format_name(path)}{note}"
    )


def _walk_files(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        _open_regular(path).close()
        yield path
        return
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if name != ".git")
        yield from (os.path.normpath(os.path.join(folder, name)) for name in sorted(files))


def _read_searchable(path: str) -> str | None:
    """Return the text of a file; "" when it is not a text file, None when it is too large."""
    try:
        with _open_regular(path, follow=False) as file:
            if os.fstat(file.fileno()).st_size > MOST_SEARCHED:
                return None
            data = file.read(MOST_SEARCHED)
    except (OSError, FileHelperError):
        return ""
    return "" if b"\0" in data[:8192] else data.decode("utf-8", "surrogateescape")


def _find_matches(wanted: re.Pattern[str], text: str, path: str) -> Iterator[str]:
    line = 1
    counted = 0
    shown = 0
    for match in wanted.finditer(text):
        line += text.count("\n", counted, match.start())
        counted = match.start()
        if line != shown:
            begin = text.rfind("\n", 0, counted) + 1
            end = text.find("\n", counted)
            yield (
                f"{_format_name(path)}:{line}:"
                f" {text[begin : end if end >= 0 else None].rstrip()[:300]}"
            )
            shown = line


def _open_regular(path: str, follow: bool = True) -> Any:
    """Open a regular file for reading, with O_NONBLOCK: opening a FIFO would block for ever."""
    fd = os.open(
        path,
        os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW),
    )
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    raise FileHelperError(
        f"{_format_name(path)} is a folder"
        if stat.S_ISDIR(mode)
        else f"{_format_name(path)} is not a regular file"
    )


def _replace_file(path: str, data: bytes) -> None:
    """Replace a file completely or not at all: a full disk must not destroy the old content."""
    target = os.path.realpath(path)
    mode = 0o644
    if os.path.lexists(target):
        mode = os.stat(target).st_mode
        if not stat.S_ISREG(mode):
            raise FileHelperError(
                f"{_format_name(path)} is a folder"
                if stat.S_ISDIR(mode)
                else f"{_format_name(path)} is no regular file"
            )
    os.makedirs(os.path.dirname(target), exist_ok=True)
    temporary = os.path.join(os.path.dirname(target), f".osiris-{os.urandom(8).hex()}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.chmod(temporary, stat.S_IMODE(mode))
        os.replace(temporary, target)
    finally:
        if os.path.lexists(temporary):
            os.unlink(temporary)


def _format_name(path: str) -> str:
    """Return a name for display, with unprintable characters escaped."""
    plain = path.removeprefix("/workspace/")
    return plain if plain.isprintable() else plain.encode("unicode_escape").decode()


def answer_request(do: str, path: str, words: list[str], content: bytes) -> str:
    """Return the answer to request `do`. The content of `edit` is `old` and then `new`; its word is
    the length of `old` in bytes."""
    match do:
        case "read":
            return read_file(path, int(words[0]), int(words[1]))
        case "write":
            return write_file(path, content)
        case "edit":
            length = int(words[0])
            old, new = (
                part.decode("utf-8", "surrogateescape")
                for part in (content[:length], content[length:])
            )
            return edit_file(path, old, new)
        case "list":
            return list_folder(path)
        case "search":
            return search_files(path, words[0])
    raise FileHelperError(f"the helper cannot {do}")


def main() -> str:
    _, do, path, *words = sys.argv
    try:
        return "ok\n" + answer_request(do, path, words, sys.stdin.buffer.read())
    except FileHelperError as trouble:
        return f"trouble\n{trouble}"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno == errno.ENOSPC and os.statvfs(".").f_favail == 0:
            reason = "the disk has no room for one more file, however small; remove some files"
        return f"trouble\n{_format_name(path)}: {reason}"
    except RecursionError:  # os.makedirs creates the folders above recursively
        return "trouble\nthe path has too many folders"


if __name__ == "__main__":
    sys.stdout.buffer.write(main().encode("utf-8", "replace"))
