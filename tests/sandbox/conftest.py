"""Fixtures with a real jail. On a machine without a working jail these tests fail; they are not
skipped."""

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
from tests.conftest import create_test_folder, list_disks

MIB = 1 << 20
GIT_ENVIRON = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@x",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@x",
}


def run_git(*args: str | Path, cwd: Path | None = None, stdin: bytes = b"") -> bytes:
    result = subprocess.run(
        ["git", *map(str, args)], cwd=cwd, env=GIT_ENVIRON, input=stdin, capture_output=True
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


@dataclass
class Mirror:
    """A bare repository with one commit, and beside it a bare repository of the host that imports
    packs."""

    path: Path
    base: str

    def build_plan(self, limits: SandboxLimits, **options: Any) -> Plan:
        """Return the plan of a session of this repository. The path of the repository serves as its
        name."""
        return Plan(
            **{
                "repo": str(self.path),
                "base": self.base,
                "trusted": self.base,
                "limits": limits,
                **options,
            }
        )

    @property
    def tree(self) -> str:
        return run_git("rev-parse", f"{self.base}^{{tree}}", cwd=self.path).decode().strip()

    def import_pack(self, export, folder: Path) -> dict[bytes, tuple[bytes, bytes]]:
        """Import a pack as from an untrusted source. Return its tree as {name: (mode, content)}."""
        host_repository = folder / "host.git"
        run_git("init", "-q", "--bare", host_repository)
        (host_repository / "objects/info/alternates").write_text(f"{self.path}/objects\n")
        with export.pack:
            run_git(
                "index-pack",
                "--stdin",
                "--fix-thin",
                "--strict",
                cwd=host_repository,
                stdin=export.pack.read(),
            )
        run_git(
            "rev-list", "--objects", "--quiet", export.tree, "--not", self.base, cwd=host_repository
        )
        rows = run_git("ls-tree", "-r", "-z", export.tree, cwd=host_repository).split(b"\0")[:-1]
        files = {}
        for row in rows:
            (mode, kind, name) = row.split(b"\t", 1)[0].split()
            path = row.split(b"\t", 1)[1]
            content = (
                run_git("cat-file", "blob", name.decode(), cwd=host_repository)
                if kind == b"blob"
                else b""
            )
            files[path] = (mode, content)
        return files


def create_mirror_in(folder: Path, files: dict[str, str]) -> Mirror:
    seed = folder / "seed"
    run_git("init", "-q", "-b", "main", seed)
    for name, text in files.items():
        (seed / name).parent.mkdir(parents=True, exist_ok=True)
        (seed / name).write_text(text)
    run_git("add", "-A", cwd=seed)
    run_git("commit", "-q", "-m", "base", cwd=seed)
    run_git("clone", "-q", "--bare", seed, folder / "mirror.git")
    return Mirror(folder / "mirror.git", run_git("rev-parse", "HEAD", cwd=seed).decode().strip())


@pytest.fixture
def create_mirror(folder: Path):
    """Provide a function that creates a mirror with the given files."""
    return lambda files: create_mirror_in(folder, files)


@pytest.fixture
def mirror(folder: Path) -> Mirror:
    return create_mirror_in(
        folder, {"README.md": "hello\n", "src/app.py": "print('one')\n", "run.sh": "#!/bin/sh\n"}
    )


@pytest.fixture
def limits() -> SandboxLimits:
    return SandboxLimits(
        memory=256 * MIB, disk=64 * MIB, file_size=48 * MIB, inodes=5000, processes=100
    )


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    """Provide one data folder for all tests: preparing the jails' /etc is the slow part of a first
    start."""
    with create_test_folder() as folder:
        yield folder / "sandboxes"


@pytest.fixture
async def sandbox(root: Path) -> AsyncIterator[BubblewrapSandbox]:
    sandbox = BubblewrapSandbox(root, Path, SandboxOptions(weak=True))
    yield sandbox
    for name in sandbox.list_sessions():
        await sandbox.remove(name)


@pytest.fixture
async def session(sandbox: BubblewrapSandbox, mirror: Mirror, limits: SandboxLimits):
    session, _ = await sandbox.create("shop-7-1", mirror.build_plan(limits))
    await session.seal()
    yield session
    await session.destroy()


@pytest.fixture
def host_folder(root: Path, session) -> Path:
    """Provide the folder on the disk of `session` that only the host uses. Root has mounted this
    disk, or a process of an ordinary user holds it."""
    return next(disk.host_only for disk in list_disks(root) if disk.folder.name == "shop-7-1")


@pytest.fixture
def run_bash(session):
    async def run(script: str, **options) -> str:
        result = await session.run(["/bin/bash", "-c", script], **options)
        return result.output.decode("utf-8", "surrogateescape")

    return run


@pytest.fixture
def run_python(session):
    async def run(program: str, **options) -> str:
        result = await session.run(["/usr/bin/python3", "-c", program], **options)
        return result.output.decode("utf-8", "surrogateescape")

    return run


@pytest.fixture
def find_processes():
    """Provide a function that returns the processes of this machine with a word in their command
    line."""

    def find_with_word(word: str) -> list[str]:
        pids = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in command_line and int(pid) != os.getpid():
                pids.append(pid)
        return pids

    return find_with_word
