"""A real jail for every test: a machine without one turns these tests red, never grey."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from osiris.core.ports.sandbox import Plan, SandboxLimits
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.options import SandboxOptions
from tests.conftest import a_place, disks_in

MIB = 1 << 20
GIT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@x",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@x",
}


def git(*words: str | Path, cwd: Path | None = None, stdin: bytes = b"") -> bytes:
    result = subprocess.run(
        ["git", *map(str, words)], cwd=cwd, env=GIT, input=stdin, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@dataclass
class Mirror:
    """A bare repository with one commit, and a bare repository of the host beside it that takes
    packs in."""

    path: Path
    base: str

    def plan(self, limits: SandboxLimits, **more: Any) -> Plan:
        """A session of it; its path serves as its name."""
        return Plan(
            **{
                "repo": str(self.path),
                "base": self.base,
                "trusted": self.base,
                "limits": limits,
                **more,
            }
        )

    @property
    def tree(self) -> str:
        return git("rev-parse", f"{self.base}^{{tree}}", cwd=self.path).decode().strip()

    def take(self, export, place: Path) -> dict[bytes, tuple[bytes, bytes]]:
        """Import a pack as from a stranger; the tree as {name: (mode, content)}."""
        host = place / "host.git"
        git("init", "-q", "--bare", host)
        (host / "objects/info/alternates").write_text(f"{self.path}/objects\n")
        with export.pack:
            git(
                "index-pack",
                "--stdin",
                "--fix-thin",
                "--strict",
                cwd=host,
                stdin=export.pack.read(),
            )
        git("rev-list", "--objects", "--quiet", export.tree, "--not", self.base, cwd=host)
        rows = git("ls-tree", "-r", "-z", export.tree, cwd=host).split(b"\0")[:-1]
        found = {}
        for row in rows:
            (mode, kind, name) = row.split(b"\t", 1)[0].split()
            path = row.split(b"\t", 1)[1]
            content = git("cat-file", "blob", name.decode(), cwd=host) if kind == b"blob" else b""
            found[path] = (mode, content)
        return found


def make_mirror(place: Path, files: dict[str, str]) -> Mirror:
    seed = place / "seed"
    git("init", "-q", "-b", "main", seed)
    for name, text in files.items():
        (seed / name).parent.mkdir(parents=True, exist_ok=True)
        (seed / name).write_text(text)
    git("add", "-A", cwd=seed)
    git("commit", "-q", "-m", "base", cwd=seed)
    git("clone", "-q", "--bare", seed, place / "mirror.git")
    return Mirror(place / "mirror.git", git("rev-parse", "HEAD", cwd=seed).decode().strip())


@pytest.fixture
def mirror_of(place: Path):
    """Makes a mirror of given files."""
    return lambda files: make_mirror(place, files)


@pytest.fixture
def mirror(place: Path) -> Mirror:
    return make_mirror(
        place, {"README.md": "hello\n", "src/app.py": "print('one')\n", "run.sh": "#!/bin/sh\n"}
    )


@pytest.fixture
def limits() -> SandboxLimits:
    return SandboxLimits(
        memory=256 * MIB, disk=64 * MIB, file_size=48 * MIB, inodes=5000, processes=100
    )


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    """One data folder for all tests: preparing the jails' /etc is the slow part of a first
    start."""
    with a_place() as place:
        yield place / "sandboxes"


@pytest.fixture
async def sandbox(root: Path) -> AsyncIterator[BubblewrapSandbox]:
    sandbox = BubblewrapSandbox(root, Path, SandboxOptions(weak=True))
    yield sandbox
    for name in sandbox.list_sessions():
        await sandbox.remove(name)


@pytest.fixture
async def session(sandbox: BubblewrapSandbox, mirror: Mirror, limits: SandboxLimits):
    session, _ = await sandbox.create("shop-7-1", mirror.plan(limits))
    await session.seal()
    yield session
    await session.destroy()


@pytest.fixture
def keep(root: Path, session) -> Path:
    """What the host keeps on the disk of `session`: one that root mounted, or that an ordinary
    user's process holds."""
    return next(disk.host_only for disk in disks_in(root) if disk.folder.name == "shop-7-1")


@pytest.fixture
def bash(session):
    async def run(script: str, **options) -> str:
        result = await session.run(["/bin/bash", "-c", script], **options)
        return result.output.decode("utf-8", "surrogateescape")

    return run


@pytest.fixture
def python(session):
    async def run(program: str, **options) -> str:
        result = await session.run(["/usr/bin/python3", "-c", program], **options)
        return result.output.decode("utf-8", "surrogateescape")

    return run


@pytest.fixture
def living():
    """Asks whether any process of this machine has a word in its command line."""

    def find(word: str) -> list[str]:
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in words and int(pid) != os.getpid():
                found.append(pid)
        return found

    return find
