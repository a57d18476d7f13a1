"""The repositories on this machine: for each a mirror that sandboxes may read, and a host
repository that they cannot access."""

import asyncio
import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from osiris.bot.git.file_listings import NAME_LIMIT, search_files
from osiris.bot.git.import_pack import import_pack
from osiris.bot.git.instructions import read_instructions
from osiris.bot.git.runner import (
    STREAMING,
    GitCommandFailed,
    GitLimits,
    LimitReached,
    has_object,
    run_git,
)
from osiris.config.atomic_file import write_atomically
from osiris.core.errors import Refused, Unavailable
from osiris.core.ports.repositories import ImportedWork, Instructions
from osiris.core.ports.sandbox import Export
from osiris.core.redaction import Redactor

_FILE_LIMIT = 100_000  # bytes
_PACKAGE_FILES = {
    b".tool-versions",
    b"build.gradle",
    b"build.gradle.kts",
    b"cargo.toml",
    b"composer.json",
    b"gemfile",
    b"go.mod",
    b"go.sum",
    b"gradle.properties",
    b"mix.exs",
    b"npm-shrinkwrap.json",
    b"package-lock.json",
    b"package.json",
    b"pnpm-lock.yaml",
    b"pom.xml",
    b"pyproject.toml",
    b"setup.cfg",
    b"setup.py",
    b"stack.yaml",
}
_PACKAGE_ENDINGS = (b".lock", b".lockb", b".lockfile", b".cabal", b".csproj", b".gemspec")


class HostRepositories:
    """An `osiris.core.ports.repositories.Repositories`.

    Each repository has a bare mirror that the sandbox may read, and a host repository that it
    cannot access.
    """

    def __init__(self, root: Path, hide: Redactor | None = None) -> None:
        """Create the storage in the folder `root`. `hide` redacts secrets from commit messages."""
        self._root = root
        self._hide = hide or Redactor()

    def mirror_path(self, repo: str) -> Path:
        return self._root / "mirrors" / f"{repo}.git"

    def repository_path(self, repo: str) -> Path:
        return self._root / "desks" / f"{repo}.git"

    async def prepare_repository(self, repo: str) -> None:
        """Create the mirror and the host repository when they are missing, and mark them as just
        used."""
        mirror = self.mirror_path(repo)
        host_repo = self.repository_path(repo)
        for path in (mirror, host_repo):
            if not all((path / part).exists() for part in ("HEAD", "config", "objects", "refs")):
                shutil.rmtree(path, ignore_errors=True)
                await _create_bare(path)
        for parent in (self._root, *mirror.relative_to(self._root).parents):
            (self._root / parent).chmod(0o755)  # the sandbox's user reads the mirror
        os.utime(mirror)
        alternates = host_repo / "objects/info/alternates"
        await asyncio.to_thread(_replace_text, alternates, f"{mirror}/objects\n")

    def list_cached(self) -> list[tuple[str, int, float]]:
        """Return the repositories on this machine: (name, bytes on the disk, time of the last
        fetch)."""
        found = []
        for mirror in sorted((self._root / "mirrors").glob("*/*.git")):
            repo = str(mirror.relative_to(self._root / "mirrors")).removesuffix(".git")
            size = sum(_measure_size(folder) for folder in (mirror, self.repository_path(repo)))
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                found.append((repo, size, mirror.stat().st_mtime))
        return found

    def remove_repository(self, repo: str) -> None:
        """Remove a repository from this machine. It is fetched again when it is needed."""
        for folder in (self.repository_path(repo), self.mirror_path(repo)):
            shutil.rmtree(folder, ignore_errors=True)

    async def remove_mirrored_ref(self, repo: str, ref: str) -> None:
        """Remove a ref from the mirror; its objects stay."""
        await run_git(self.mirror_path(repo), "update-ref", "-d", ref)

    def remove_unfinished(self, repo: str) -> None:
        """Remove the packs that killed fetches left in the mirror.

        Call it while no fetch is running.
        """
        for left in (self.mirror_path(repo) / "objects/pack").glob("tmp_*"):
            left.unlink(missing_ok=True)

    async def is_mirrored(self, repo: str, commit: str) -> bool:
        """Return whether the mirror itself has `commit`.

        The host repository may have it too, but the sandbox cannot read that.
        """
        return await has_object(self.mirror_path(repo), f"{commit}^{{commit}}")

    async def has_tree(self, repo: str, tree: str) -> bool:
        """Return whether this machine has a tree that was imported, maybe on another machine."""
        return await has_object(self.repository_path(repo), f"{tree}^{{tree}}")

    async def import_pack(
        self, repo: str, base: str, export: Export, deny: Sequence[str]
    ) -> ImportedWork:
        return await import_pack(self.repository_path(repo), base, export, deny)

    # ── reading and committing ────────────────────────────────────────────────────────────────────

    async def read_instructions(self, repo: str, commit: str) -> Instructions:
        return await read_instructions(self.repository_path(repo), commit)

    async def read_file(self, repo: str, commit: str, path: str) -> str:
        host_repo = self.repository_path(repo)
        limits = GitLimits(output=_FILE_LIMIT, cpu=10)
        try:
            # `cat-file COMMIT:PATH` says the same of a missing file as of a damaged repository
            listed = await run_git(host_repo, "ls-tree", "-z", "--full-tree", commit, "--", path)
            fields = listed.split()[:3]  # the mode, the kind and the id
            if b"blob" not in fields:
                return ""
            args = ("cat-file", "blob", fields[2].decode())
            content = await run_git(host_repo, *args, config=STREAMING, limits=limits, head=True)
        except GitCommandFailed as error:
            raise Unavailable(f"`{path}` cannot be read: {error}"[:300]) from None
        except LimitReached as error:
            raise Refused(f"`{path}` cannot be read: {error}") from None
        return content.decode(errors="replace")

    async def fingerprint_packages(self, repo: str, commit: str) -> str:
        """Return a digest of the files that list packages.

        It is the id of the whole tree when there are none, or too many files to search: then a
        cached setup fits fewer commits, and nothing breaks.
        """
        host_repo = self.repository_path(repo)
        found, is_whole = await search_files(host_repo, commit, _digest_package_files)
        if found and is_whole:
            return found
        return (await run_git(host_repo, "rev-parse", f"{commit}^{{tree}}")).decode().strip()

    async def commit_tree(
        self, repo: str, *, tree: str, base: str, message: str, author: str, email: str, at: int
    ) -> str:
        """Create a commit of `tree` on `base` and return its id.

        The same arguments give the same id, so a second call creates no second commit.
        """
        who: dict[str, str] = {}
        for role in ("AUTHOR", "COMMITTER"):
            who |= {
                f"GIT_{role}_NAME": author,
                f"GIT_{role}_EMAIL": email,
                f"GIT_{role}_DATE": f"@{at} +0000",
            }
        made = await run_git(
            self.repository_path(repo),
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


async def _create_bare(path: Path) -> None:
    """Create a bare repository atomically, because a worker may die in the middle of it."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    new.mkdir(parents=True)
    try:
        await run_git(new, "init", "-q", "--bare", "--template=")
        with contextlib.suppress(OSError):  # another process was faster
            new.rename(path)
    except (GitCommandFailed, LimitReached) as error:
        raise Unavailable(f"this machine could not make a repository: {error}"[:300]) from None
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace_text(path: Path, text: str) -> None:
    """Write `text` to a file atomically, because another run's git may be reading it."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text, mode=0o644)


def _measure_size(folder: Path) -> int:
    """Return the bytes on the disk below a folder. Files may disappear meanwhile."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(top, name)).st_blocks * 512
    return total


def _digest_package_files(records: Iterator[bytes]) -> str:
    """Return a digest of the rows of files that list packages; "" when there are none."""
    digest = hashlib.sha256()
    count = 0
    for record in records:
        if _names_packages(record.rpartition(b"\t")[2].rpartition(b"/")[2]):
            digest.update(b"\0" + record if count else record)
            count += 1
    return digest.hexdigest() if count else ""


def _names_packages(name: bytes) -> bool:
    """Return whether a file of this name lists the packages that a repository needs."""
    if len(name) > NAME_LIMIT:
        return False
    name = name.lower()
    if name in _PACKAGE_FILES or name.endswith(_PACKAGE_ENDINGS):
        return True
    is_list = b"requirements" in name or name.startswith(b"constraints")
    return is_list and name.endswith((b".txt", b".in"))
