"""Git on the host, in the proven safe way: it never opens a workspace, and takes work as a stranger's push."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from osiris.bot import processes
from osiris.errors import Mendable, Refused, TooSlow, Unavailable
from osiris.events import FileChange
from osiris.ports import Taken
from osiris.redaction import Redactor
from osiris.sandboxing import Export

_ENV = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_LITERAL_PATHSPECS": "1",
}
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.sshCommand": "/bin/false",
    "core.alternateRefsCommand": "/bin/false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "credential.helper": "",
    "protocol.allow": "never",
    "http.followRedirects": "false",
    "transfer.fsckObjects": "true",
    "fetch.fsckObjects": "true",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "commit.gpgSign": "false",
    "push.gpgSign": "false",
    "submodule.recurse": "false",
    "safe.bareRepository": "explicit",
    "safe.directory": "*",
}
_PACK_LIMIT = 64 * 1024 * 1024  # bytes
_BLOB_LIMIT = 20 * 1024 * 1024
_FILES_LIMIT = 3000
_INSTRUCTIONS = re.compile(r"(?:.*/)?AGENTS\.md|CLAUDE\.md|\.github/copilot-instructions\.md")
_INSTRUCTIONS_LIMIT = 16_000  # characters, all files together
_FILE_LIMIT = 100_000  # bytes
_LOCKS = re.compile(
    rb"(?i).*\.(?:lock|lockb|lockfile|cabal|csproj|gemspec)|go\.(?:mod|sum)|package(?:-lock)?\.json|npm-shrinkwrap\.json"
    rb"|pnpm-lock\.yaml|(?:.*requirements.*|constraints.*)\.(?:txt|in)|pyproject\.toml|setup\.(?:py|cfg)|cargo\.toml"
    rb"|gemfile|pom\.xml|build\.gradle(?:\.kts)?|gradle\.properties|composer\.json|mix\.exs|stack\.yaml|\.tool-versions"
)
"""Names of files that say which packages a repository needs."""
_MODES = {b"100644", b"100755", b"120000", b"000000"}


class GitFailed(Exception):
    """git ended with an error; `told` is the end of what it said, on both its outputs."""

    def __init__(self, command: str, told: str) -> None:
        super().__init__(f"git {command}: {told}")
        self.told = told


async def git(
    repo: Path,
    *args: str,
    stdin: bytes | IO[bytes] = b"",
    env: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> bytes:
    """Run git on a repository of our own; what it printed. Raises GitFailed, or TooSlow after `timeout` seconds.

    Configuration goes through the environment, so that no token is ever in an argv.
    """
    environ = {**_ENV, **_settings({**_CONFIG, **(config or {})}), "GIT_DIR": str(repo), **(env or {})}
    try:
        code, out, told = await processes.run(["git", *args], env=environ, stdin=stdin, timeout=timeout)
    except TimeoutError:
        raise TooSlow(f"git {args[0]} gave no answer in {timeout:g} seconds") from None
    if code == -signal.SIGKILL:
        raise TooSlow(f"git {args[0]} was cut off; this machine may be short of memory")
    if code:
        raise GitFailed(args[0], (told + out[:2000]).decode("utf-8", "replace")[-3000:].strip())
    return out


def _settings(config: Mapping[str, str]) -> dict[str, str]:
    """git's configuration as environment variables."""
    pairs = {"GIT_CONFIG_COUNT": str(len(config))}
    for i, (key, value) in enumerate(config.items()):
        pairs |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    return pairs


class HostDesk:
    """`osiris.ports.Desk`: for each repository a bare mirror the sandbox may read, and a desk it never sees."""

    def __init__(self, root: Path, hide: Redactor | None = None) -> None:
        """`root` is where all that is; `hide` takes secrets out of the messages of commits."""
        self._root, self._hide = root, hide or Redactor()

    def mirror(self, repo: str) -> Path:
        return self._root / "mirrors" / f"{repo}.git"

    def desk(self, repo: str) -> Path:
        return self._root / "desks" / f"{repo}.git"

    async def prepare(self, repo: str) -> None:
        """Make mirror and desk when they are missing; from now on they count as just used."""
        mirror, desk = self.mirror(repo), self.desk(repo)
        for path in (mirror, desk):
            if not all((path / part).exists() for part in ("HEAD", "config", "objects", "refs")):
                shutil.rmtree(path, ignore_errors=True)
                await _init(path)
        for parent in (self._root, *mirror.relative_to(self._root).parents):
            (self._root / parent).chmod(0o755)  # the sandbox's own user reads the mirror
        os.utime(mirror)
        _set(desk / "objects/info/alternates", f"{mirror}/objects\n")

    def cached(self) -> list[tuple[str, int, float]]:
        """The repositories on this machine: (name, bytes on the disk, when it was fetched into last)."""
        found = []
        for mirror in sorted((self._root / "mirrors").glob("*/*.git")):
            repo = str(mirror.relative_to(self._root / "mirrors")).removesuffix(".git")
            size = sum(_size(folder) for folder in (mirror, self.desk(repo)))
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                found.append((repo, size, mirror.stat().st_mtime))
        return found

    def forget(self, repo: str) -> None:
        """Remove a repository from this machine; it is fetched anew when it is needed."""
        for folder in (self.desk(repo), self.mirror(repo)):
            shutil.rmtree(folder, ignore_errors=True)

    async def mirrored(self, repo: str, commit: str) -> bool:
        """Whether the mirror itself has `commit`: the desk may have it too, but the sandbox cannot see the desk."""
        return await _has(self.mirror(repo), f"{commit}^{{commit}}")

    async def has_tree(self, repo: str, tree: str) -> bool:
        """Whether this machine has a tree that was taken, maybe on another one."""
        return await _has(self.desk(repo), f"{tree}^{{tree}}")

    # ── taking work ───────────────────────────────────────────────────────────────────────────────────────────────

    async def take(self, repo: str, base: str, export: Export, deny: Sequence[str]) -> Taken:
        desk = self.desk(repo)
        try:
            limit = f"--max-input-size={_PACK_LIMIT}"
            await git(desk, "index-pack", "--stdin", "--fix-thin", "--strict", limit, stdin=export.pack)
            if (await git(desk, "cat-file", "-t", export.tree)).strip() != b"tree":
                raise Refused("the work could not be taken over: what came out of the sandbox is no tree")
            await git(desk, "rev-list", "--objects", "--quiet", export.tree, "--not", base)
        except GitFailed as error:
            raise await _not_taken(desk, base, error) from None
        changes = await self._changes(desk, base, export.tree)
        await self._check(desk, changes, deny)
        return Taken(tree=export.tree, files=await self._files(desk, base, export.tree, changes))

    async def _changes(self, desk: Path, base: str, tree: str) -> list[tuple[list[bytes], bytes]]:
        """[(mode before, mode after, id before, id after, status)], path) of every changed path."""
        args = ("diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", f"{base}^{{tree}}", tree)
        raw = (await git(desk, *args)).split(b"\0")
        return [(raw[i].lstrip(b":").split(b" "), raw[i + 1]) for i in range(0, len(raw) - 1, 2)]

    async def _check(self, desk: Path, changes: Sequence[tuple[list[bytes], bytes]], deny: Sequence[str]) -> None:
        if len(changes) > _FILES_LIMIT:
            raise Refused(f"{len(changes)} files were changed; more than {_FILES_LIMIT} are not taken")
        for (before, after, _old, new, _status), path in changes:
            name = shown(path)
            if b"160000" in (before, after):
                raise Refused(f"`{name}` is a submodule or a repository in the repository; that needs a person")
            if after not in _MODES:
                raise Refused(f"`{name}` has the mode {after.decode()}, which is not taken")
            if any(byte < 32 or byte == 127 for byte in path):
                raise Refused(f"the file name `{name}` has a control character in it")
            if any(name.startswith(prefix) for prefix in deny):
                raise Refused(f"`{name}` is protected in this repository; a change there needs a person")
            if after == b"120000":
                await self._check_link(desk, path, new.decode())
        await self._check_sizes(desk, [new for (_b, after, _o, new, _s), _ in changes if after != b"000000"])

    async def _check_link(self, desk: Path, path: bytes, blob: str) -> None:
        target = await git(desk, "cat-file", "blob", blob)
        end = os.path.normpath(os.path.join(os.path.dirname(path), target))
        if target.startswith(b"/") or end == b".." or end.startswith(b"../"):
            raise Refused(f"the link `{shown(path)}` leaves the repository")

    async def _check_sizes(self, desk: Path, blobs: Sequence[bytes]) -> None:
        if not blobs:
            return
        told = await git(desk, "cat-file", "--batch-check=%(objectsize)", stdin=b"\n".join(blobs) + b"\n")
        if any(int(size) > _BLOB_LIMIT for size in told.split()):
            raise Refused(f"a changed file is larger than {_BLOB_LIMIT // 1024 // 1024} MiB")

    async def _files(
        self, desk: Path, base: str, tree: str, changes: Sequence[tuple[list[bytes], bytes]]
    ) -> tuple[FileChange, ...]:
        args = ("diff-tree", "-r", "-z", "--numstat", "--no-renames", "--no-ext-diff", "--no-textconv")
        counts = {}
        for line in (await git(desk, *args, f"{base}^{{tree}}", tree)).split(b"\0"):
            if line:
                added, deleted, path = line.split(b"\t", 2)
                counts[path] = (None, None) if added == b"-" else (int(added), int(deleted))
        return tuple(_file(path, fields[4], *counts.get(path, (None, None))) for fields, path in changes)

    # ── reading and committing ────────────────────────────────────────────────────────────────────────────────────

    async def instructions(self, repo: str, commit: str) -> Mapping[str, str]:
        desk, found, room = self.desk(repo), {}, _INSTRUCTIONS_LIMIT
        for path, blob in _instruction_files(await git(desk, "ls-tree", "-r", "-z", commit))[:20]:
            text = (await git(desk, "cat-file", "blob", blob)).decode("utf-8", "replace")
            if room > 0:
                found[path] = text[:room] + ("\n… cut" if len(text) > room else "")
                room -= len(text)
        return found

    async def read(self, repo: str, commit: str, path: str) -> str:
        try:
            return (await git(self.desk(repo), "cat-file", "blob", f"{commit}:{path}"))[:_FILE_LIMIT].decode(
                errors="replace"
            )
        except GitFailed:
            return ""

    async def fingerprint(self, repo: str, commit: str) -> str:
        desk = self.desk(repo)
        lines = (await git(desk, "ls-tree", "-r", "-z", commit)).split(b"\0")
        found = [line for line in lines if _LOCKS.fullmatch(line.rpartition(b"/")[2].rpartition(b"\t")[2])]
        if not found:
            return (await git(desk, "rev-parse", f"{commit}^{{tree}}")).decode().strip()
        return hashlib.sha256(b"\0".join(found)).hexdigest()

    async def commit(self, repo: str, *, tree: str, base: str, message: str, author: str, email: str, at: int) -> str:
        """The commit of `tree` on `base`: the same arguments give the same id, so a second time makes no second one."""
        who: dict[str, str] = {}
        for role in ("AUTHOR", "COMMITTER"):
            who |= {f"GIT_{role}_NAME": author, f"GIT_{role}_EMAIL": email, f"GIT_{role}_DATE": f"@{at} +0000"}
        made = await git(
            self.desk(repo),
            "commit-tree",
            tree,
            "-p",
            base,
            "-F",
            "-",
            stdin=self._hide(message).encode("utf-8", "replace"),
            env=who,
        )
        return made.decode().strip()


async def _init(path: Path) -> None:
    """A new bare repository, there whole or not at all: a worker may die in the middle of it."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.mkdir(parents=True)
    try:
        await git(new, "init", "-q", "--bare", "--template=")
        with contextlib.suppress(OSError):  # somebody else was quicker
            new.rename(path)
    except GitFailed as error:
        raise Unavailable(f"this machine could not make a repository: {error}"[:300]) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


async def _has(repo: Path, what: str) -> bool:
    try:
        await git(repo, "cat-file", "-e", what)
    except GitFailed:
        return False
    return True


def _set(path: Path, text: str) -> None:
    """Let a file hold `text`, without a moment in which it does not: another run's git may be reading it."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.write_text(text)
    new.replace(path)


async def _not_taken(desk: Path, base: str, error: GitFailed) -> Refused | Unavailable:
    """Why a pack was not taken: this machine could not, or the pack is not what it should be."""
    if not await _has(desk, f"{base}^{{commit}}"):  # it was there when the run began
        return Unavailable(f"the commit {base} is missing on this machine and is fetched again")
    if "No space left on device" in error.told or "Cannot allocate memory" in error.told:
        return Unavailable(f"this machine has no room to take the work over: {error.told[:300]}")
    return Refused(f"the work could not be taken over: {error.told[:300]}")


def _size(folder: Path) -> int:
    """Bytes on the disk below a folder; files may go while it is looked at."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(top, name)).st_blocks * 512
    return total


def _instruction_files(listing: bytes) -> list[tuple[str, str]]:
    """(path, blob id) of the regular files that hold instructions, those nearest the root first."""
    found = []
    for line in filter(None, listing.split(b"\0")):
        (mode, _kind, blob), name = line.partition(b"\t")[0].split(b" "), line.partition(b"\t")[2]
        if mode in (b"100644", b"100755") and _INSTRUCTIONS.fullmatch(path := shown(name)):
            found.append((path, blob.decode()))
    return sorted(found, key=lambda file: (file[0].count("/"), file[0]))


def shown(path: bytes) -> str:
    """A file name as text; what is no UTF-8 or not printable is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _file(path: bytes, status: bytes, additions: int | None, deletions: int | None) -> FileChange:
    name = str(PurePosixPath(shown(path)))
    match status[:1]:
        case b"A":
            return FileChange(path=name, status="added", additions=additions, deletions=deletions)
        case b"D":
            return FileChange(path=name, status="deleted", additions=additions, deletions=deletions)
    return FileChange(path=name, status="modified", additions=additions, deletions=deletions)


OVERTAKEN = re.compile(r"non-fast-forward|fetch first|stale info|Updates were rejected")
"""What git says when the end of a branch is not the one it knew."""


def outage(error: GitFailed, what: str) -> Refused | Unavailable:
    """What a failed fetch or push means: for good, or only now."""
    told = error.told
    if OVERTAKEN.search(told):
        return Refused("somebody else pushed to the branch while I worked, and I never force a push")
    if re.search(r"cannot lock ref|Internal Server Error|unpacker error", told):
        return Unavailable(f"git could not {what}: GitHub had a fault of its own")
    if match := re.search(r"\[remote rejected\][^\n]*", told):
        return Mendable(f"GitHub rejected the {what}: {match[0]}")
    if re.search(r"returned error: 40[134]|Authentication failed|not found|could not read Username", told):
        return Mendable(f"GitHub does not let Osiris {what} here; the App needs Contents: write on this repository")
    return Unavailable(f"git could not {what}: {told.splitlines()[0][:200] if told else 'no answer'}")
