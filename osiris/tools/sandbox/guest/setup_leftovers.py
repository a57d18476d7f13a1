"""The distinction between the files of a set-up and those of an agent. It runs INSIDE the jail by
`python3 -I -S`.

`note` runs after the set-up. Files that the repository's own rules ignore, and a folder that
ignores itself, as virtual environments do, are listed as a whole: git counts nothing in them as
work. Every other file is listed with a digest. `rules` and `drop` run at the export: a listed file
is not part of the work as long as it is unchanged since the set-up. Each name in a list ends with a
NUL.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST = 5_000  # files that no ignore rule covers
TOO_MANY = 68  # exit code
RULE_FILES = (b".gitignore", b".gitattributes")
SPECIAL = b"[]\\*?!# "  # characters with a meaning in a rule of git


def write_lists() -> None:
    """Write the lists for the set-up's tar, and the list of its content.

    /tmp/new lists what git does not know, a whole folder as one name; /tmp/ignored those names that
    the repository's own rules ignore, a folder as a file `x` in it.
    """
    whole: list[bytes] = []
    files: list[bytes] = []
    ignored = {name.removeprefix(b"./") for name in _read_names("/tmp/ignored")}  # noqa: S108
    for entry in _read_names("/tmp/new"):  # noqa: S108
        if _is_kept_whole(entry, ignored):
            whole.append(entry)
        else:
            files += (
                path for path in _list_files(entry) if os.path.basename(path) not in RULE_FILES
            )
        if len(files) > MOST:
            sys.stderr.write(f"{os.fsdecode(files[0])!a}\n")
            sys.exit(TOO_MANY)
    digests = {path: digest for path in files if (digest := _compute_digest(path))}
    _write_names("/tmp/own", whole)  # noqa: S108
    _write_names("/tmp/left", (b"%s\t%s" % (digest, path) for path, digest in digests.items()))  # noqa: S108
    with open("/tmp/exclude", "wb") as file:  # noqa: S108
        file.writelines(_format_rules([*whole, *digests]))
    kept = [b"home/agent", b"tmp/own", b"tmp/left", b"tmp/exclude"]
    _write_names("/tmp/list", [*kept, *(b"workspace/" + path for path in [*whole, *digests])])  # noqa: S108


def write_rules() -> None:
    """Write git's ignore rules for the files of the set-up that the agent did not change, and the
    list of these files."""
    noted = (entry.split(b"\t", 1) for entry in _read_names("/base.left"))
    unchanged = [path for digest, path in noted if _compute_digest(path) == digest]
    names = [*_read_names("/base.own"), *unchanged]
    _write_names("/tmp/drop", names)  # noqa: S108
    with open(os.path.join(os.environ["GIT_DIR"], "info/exclude"), "ab") as file:
        file.writelines(_format_rules(names))


def print_dropped() -> None:
    """Print the names from stdin that are on that list: ignore rules in the tree may have included
    them again."""
    names = set(_read_names("/tmp/drop"))  # noqa: S108
    folders = tuple(name for name in names if name.endswith(b"/"))
    for name in sys.stdin.buffer.read().split(b"\0"):
        if name and (name in names or name.startswith(folders)):
            sys.stdout.buffer.write(name + b"\0")


def _is_kept_whole(entry: bytes, ignored: set[bytes]) -> bool:
    if not entry.endswith(b"/"):
        return entry in ignored
    is_repository = os.path.lexists(entry + b".git")
    return entry + b"x" in ignored or is_repository or os.path.lexists(entry + b".gitignore")


def _list_files(entry: bytes) -> Iterator[bytes]:
    if not entry.endswith(b"/"):
        yield entry
        return
    folders = [entry.rstrip(b"/")]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                for item in found:
                    if item.is_dir(follow_symlinks=False):
                        folders.append(item.path)
                    else:
                        yield item.path
        except OSError:  # a folder that cannot be opened cannot be kept
            continue


def _compute_digest(path: bytes) -> bytes:
    """Return a digest that shows whether a file was changed; "" for one that cannot be kept."""
    try:
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            return b"link " + hashlib.sha256(os.readlink(path)).hexdigest().encode()
        if not stat.S_ISREG(mode):
            return b""
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest().encode()
    except OSError:
        return b""
    return (b"run " if mode & 0o100 else b"file ") + content


def _format_rules(names: Iterable[bytes]) -> Iterator[bytes]:
    """Yield an ignore rule for each name, except for names that no rule can express."""
    for name in names:
        if b"\n" not in name and b"\r" not in name:
            escaped = b"".join(b"\\%c" % byte if byte in SPECIAL else b"%c" % byte for byte in name)
            yield b"/%s\n" % escaped


def _read_names(path: str) -> list[bytes]:
    with open(path, "rb") as file:
        return [name for name in file.read().split(b"\0") if name]


def _write_names(path: str, names: Iterable[bytes]) -> None:
    with open(path, "wb") as file:
        file.writelines(name + b"\0" for name in names)


if __name__ == "__main__":
    {"note": write_lists, "rules": write_rules, "drop": print_dropped}[sys.argv[1]]()
