"""The repositories on this machine: for each a mirror that sandboxes may read, and a desk that they never see."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from osiris.bot.git import GitFailed, git, has, shown
from osiris.bot.taking import take
from osiris.errors import Unavailable
from osiris.ports import Taken
from osiris.redaction import Redactor
from osiris.sandboxing import Export

_INSTRUCTIONS = re.compile(r"(?:.*/)?AGENTS\.md|CLAUDE\.md|\.github/copilot-instructions\.md")
_INSTRUCTIONS_LIMIT = 16_000  # characters, all files together
_FILE_LIMIT = 100_000  # bytes
_LOCKS = re.compile(
    rb"(?i).*\.(?:lock|lockb|lockfile|cabal|csproj|gemspec)|go\.(?:mod|sum)|package(?:-lock)?\.json|npm-shrinkwrap\.json"
    rb"|pnpm-lock\.yaml|(?:.*requirements.*|constraints.*)\.(?:txt|in)|pyproject\.toml|setup\.(?:py|cfg)|cargo\.toml"
    rb"|gemfile|pom\.xml|build\.gradle(?:\.kts)?|gradle\.properties|composer\.json|mix\.exs|stack\.yaml|\.tool-versions"
)
"""Names of files that say which packages a repository needs."""


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
        return await has(self.mirror(repo), f"{commit}^{{commit}}")

    async def has_tree(self, repo: str, tree: str) -> bool:
        """Whether this machine has a tree that was taken, maybe on another one."""
        return await has(self.desk(repo), f"{tree}^{{tree}}")

    async def take(self, repo: str, base: str, export: Export, deny: Sequence[str]) -> Taken:
        return await take(self.desk(repo), base, export, deny)

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
            content = await git(self.desk(repo), "cat-file", "blob", f"{commit}:{path}", most=_FILE_LIMIT)
        except GitFailed:
            return ""
        return content[:_FILE_LIMIT].decode(errors="replace")

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


def _set(path: Path, text: str) -> None:
    """Let a file hold `text`, without a moment in which it does not: another run's git may be reading it."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.write_text(text)
    new.replace(path)


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
