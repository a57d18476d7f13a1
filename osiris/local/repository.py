"""The user's own repository: it is only read until the end, when one new branch is added."""

import signal
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from osiris.core.errors import Refused

_TIMEOUT = 600.0  # seconds; reading a large repository on a slow disk takes minutes
_OUTPUT = 1 << 20  # bytes that git may print
_NAMES = 16 << 20  # bytes: names of changed files
_STDERR = 1 << 16
_QUIET = (
    "core.hooksPath=/dev/null",
    "gc.auto=0",
    "maintenance.auto=false",
    "fetch.writeCommitGraph=false",
    # no setting of the repository can turn our path into another address or a command
    "protocol.allow=never",
    "protocol.file.allow=always",
)


class _TooMuchOutput(Refused):
    """git printed more about a repository than is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRepository:
    """The user's repository.

    `branch` is "" when no branch is checked out; `dirty` is the number of paths that differ from
    `commit`.
    """

    path: Path
    commit: str
    branch: str
    dirty: int

    @classmethod
    def open_at(cls, path: Path) -> "LocalRepository":
        """Return the repository that contains `path`.

        Raises Refused when there is none that can be worked on.
        """
        if not path.is_dir():
            raise Refused(f"{path} is not a folder")
        try:
            top = Path(_run_git(path, "rev-parse", "--show-toplevel"))
        except Refused as refused:
            hint = "" if "ownership" in str(refused) else "; `git init` makes one"
            raise Refused(
                f"{path} is not in a git repository that you may use ({refused}){hint}"
            ) from None
        try:
            commit = _run_git(top, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except Refused:
            raise Refused(
                f"{top} has no commit yet; make a first one, which the work starts from"
            ) from None
        if _run_git(top, "rev-parse", "--is-shallow-repository") == "true":
            raise Refused(f"{top} is a shallow clone; `git fetch --unshallow` makes it whole")
        if _run_git(top, "rev-parse", "--show-object-format") != "sha1" or _is_partial_clone(top):
            raise Refused(
                f"{top} is a partial clone, or one with other hashes than SHA-1: I cannot work"
                " on it"
            )
        branch = _run_git(top, "branch", "--show-current")
        status = ("--no-optional-locks", "status", "-z", "--porcelain", "--no-renames")
        changed = _run_git(top, *status, most=_NAMES)
        return cls(path=top, commit=commit, branch=branch, dirty=changed.count("\0"))

    def read_file(self, commit: str, path: str) -> str:
        """Return a text file as it is in a commit; "" when it does not exist.

        Raises Refused when it is too large.
        """
        try:
            return _run_git(self.path, "cat-file", "blob", f"{commit}:{path}")
        except _TooMuchOutput:
            size = f"{_OUTPUT >> 20} MiB"
            raise Refused(
                f"`{path}` in {self.path} is larger than {size}; make it smaller"
            ) from None
        except Refused:
            return ""

    def import_commit(self, source: Path, commit: str, branch: str) -> str:
        """Fetch `commit` from another repository as a new branch and return its name, with a number
        if `branch` is taken.

        Nothing else changes: neither the work tree nor the index nor any other branch. Doing it
        again changes nothing.
        """
        if self._has_conflicting_name(branch):
            branch = branch.replace("/", "-")
        name, number = branch, 1
        while (tip := self._read_tip(name)) not in ("", commit):
            number += 1
            name = f"{branch}-{number}"
        if not tip:
            flags = (
                "--quiet",
                "--no-tags",
                "--no-write-fetch-head",
                "--no-recurse-submodules",
                "--no-auto-maintenance",
            )
            config = [word for setting in _QUIET for word in ("-c", setting)]
            _run_git(
                self.path,
                *config,
                "fetch",
                *flags,
                "--",
                str(source),
                f"{commit}:refs/heads/{name}",
            )
        return name

    def _has_conflicting_name(self, branch: str) -> bool:
        """Return whether a branch has the name of a folder of this one, or vice versa: git stores
        branches as files."""
        args = ("for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads")
        listed = _run_git(self.path, *args, most=_NAMES)
        names = listed.splitlines()
        return any(branch.startswith(f"{name}/") or name.startswith(f"{branch}/") for name in names)

    def _read_tip(self, branch: str) -> str:
        try:
            return _run_git(
                self.path, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}"
            )
        except Refused:
            return ""


def _is_partial_clone(top: Path) -> bool:
    """Return whether a clone lacks objects that it would fetch when they are needed."""
    try:
        return bool(
            _run_git(
                top, "config", "--get-regexp", r"^(extensions\.partialclone|remote\..*\.promisor)$"
            )
        )
    except _TooMuchOutput:
        raise
    except Refused:
        return False


def _run_git(at: Path, *args: str, most: int = _OUTPUT) -> str:
    """Run git as the user runs it, with their settings.

    Raises Refused with its first line of stderr, or when it prints more than `most` bytes or does
    not end: the repository may be untrusted.
    """
    # fsmonitor would be a program that the repository configures
    command = ["git", "-C", str(at), "-c", "core.fsmonitor=false", *args]
    with tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
            )
        except FileNotFoundError:
            raise Refused("git is not installed") from None
        out = _read_output(process, args[0], most)
        err.seek(0)
        said = err.read(_STDERR).decode("utf-8", "replace").strip().splitlines()
    if process.returncode:
        first = said[0] if said else f"git {args[0]} ended with {process.returncode}"
        raise Refused(first.removeprefix("fatal: "))
    return out.decode("utf-8", "surrogateescape").removesuffix("\n")


def _read_output(process: subprocess.Popen[bytes], command: str, most: int) -> bytes:
    """Return the output of git once it has ended.

    Raises Refused, and kills git, when it prints too much or takes too long.
    """
    stop = threading.Timer(_TIMEOUT, process.kill)
    stop.start()
    try:
        with process:
            out = process.stdout.read(most + 1) if process.stdout else b""
            if len(out) > most:
                process.kill()
    finally:
        stop.cancel()
    if len(out) > most:
        raise _TooMuchOutput(f"git {command} printed more than {most >> 20} MiB, too much to read")
    if process.returncode == -signal.SIGKILL:
        minutes = f"{_TIMEOUT / 60:g} minutes"
        raise Refused(f"git {command} was killed: it took more than {minutes}, or too much memory")
    return out
