"""Where a session's files are: a place of limited size, with `work`, `home` and `tmp`, which the
jail sees, and `keep`, which it does not. `image_disk.py` makes it for root, `tmpfs_disk.py` for an
ordinary user."""

import asyncio
import contextlib
import json
import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from osiris.core.errors import LocalTimeout, Occupied, Unavailable
from osiris.core.ports.sandbox import SandboxLimits

T = TypeVar("T")
SHOWN: Final = ("work", "home", "tmp")
COARSE_CLOCK: Final = 0.05  # seconds; the time stamps of files run up to a tick behind
INDEX = "index"
NOTES = "notes.json"
OWN = "own"
LEFT = "left"
UNSEALED, SEALED = "unsealed", "ready"
USR = "usr"
ETC = "etc"
DEVICES = "dev"
TERMINALS = "pts"
"""What a session's jails have of their own, and would else share with those of all others."""
MOST_TERMINALS: Final = 64  # of the 3072 that kernel.pty.max leaves to all sessions of a machine
DEVPTS: Final = f"newinstance,ptmxmode=0666,mode=0620,max={MOST_TERMINALS}"


class Disk(ABC):
    """The disk `name` below `root`; what is on it belongs to user `uid` (None: to ours).

    With a prepared `etc` it is one of a session, and has a /usr, an /etc and terminals of its own,
    where the kernel can.
    """

    def __init__(self, root: Path, name: str, *, uid: int | None, etc: Path | None = None) -> None:
        self.folder = root / name
        """Where jails are told to look for it."""
        self.uid = uid
        self.etc = etc

    @property
    @abstractmethod
    def host_path(self) -> Path:
        """Where this process finds the same."""

    @property
    @abstractmethod
    def nsenter_prefix(self) -> Sequence[str]:
        """The words before a command that has to see the disk."""

    @property
    def host_only(self) -> Path:
        return self.host_path / "keep"

    def get_private_path(self, name: str) -> Path | None:
        """Return where jails find the session's own `usr`, `etc`, `dev` or `pts`; None where it has
        none."""
        with contextlib.suppress(OSError), os.scandir(self.host_path / name) as entries:
            if any(entries):
                return self.folder / name
        return None

    @abstractmethod
    def create(self, limits: SandboxLimits) -> None:
        """Make it anew. Raises Unavailable."""

    @abstractmethod
    def find_sealed(self) -> bool:
        """True when it is there, and sealed."""

    @abstractmethod
    def remove(self) -> None:
        """Throw it away; fine when it is not there. Raises Unavailable."""

    def _make_folders(self) -> None:
        for name in (*SHOWN, "keep"):
            path = self.host_path / name
            path.mkdir(mode=0o755)
            if self.uid is not None:
                os.chown(path, self.uid, self.uid)
        self.host_path.chmod(0o711)

    def finalize(self, notes: dict[str, Any]) -> None:
        """Close `keep` to the jail's user. What seals the disk is made now, while there is room for
        it."""
        if self.uid is not None:
            os.chown(self.host_only, 0, 0)
            for entry in self.host_only.iterdir():
                os.chown(entry, 0, 0, follow_symlinks=False)
        (self.host_only / NOTES).write_text(json.dumps(notes))
        (self.host_only / UNSEALED).touch(mode=0o600)

    def seal(self) -> None:
        """Mark it as complete: from now on it is found. It takes no room: the agent may have left
        none."""
        with contextlib.suppress(FileNotFoundError):  # it is sealed
            (self.host_only / UNSEALED).rename(self.host_only / SEALED)

    @property
    def is_sealed(self) -> bool:
        return (self.host_only / SEALED).is_file()

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted when it was closed."""
        noted: dict[str, Any] = json.loads((self.host_only / NOTES).read_text())
        return noted

    def restore_permissions(self) -> None:
        """Called before each command: one that closed the workspace to itself is no end of the
        session. It cannot be a link to something else, for it is a folder in one of ours."""
        with contextlib.suppress(OSError):
            (self.host_path / "work").chmod(0o755)

    def unfreeze_index(self) -> None:
        """Called before the first command of a stranger. Git reads a file again when its second is
        that of the index, so right after a checkout all of them: 5,000 files take 400 ms. When that
        second has passed with nobody in the workspace, a change can no longer hide in it, and the
        index may say so."""
        index = self.host_only / INDEX
        next_second = int(index.lstat().st_mtime) + 1
        if time.time() > next_second + COARSE_CLOCK:
            os.utime(index, (next_second, next_second), follow_symlinks=False)


def run_host_program(argv: Sequence[str], cwd: Path = Path("/")) -> None:
    """Run a program of the host for a disk. Raises Unavailable."""
    try:
        done = subprocess.run(
            argv,
            env={"LC_ALL": "C.UTF-8"},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        raise LocalTimeout(
            f"the session's disk: {Path(argv[0]).name} gave no answer in 60 seconds"
        ) from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise Unavailable(f"the session's disk: {Path(argv[0]).name}: {words[-300:]}")


async def finish_in_thread(work: Callable[..., T], *args: object) -> T:
    """Return what `work` does in a thread, which also who is cancelled waits for.

    Else the next one would find, fill or remove a disk that the thread is still at.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        working.exception()  # nobody else asks for it
        raise


class HostDiskFull(Unavailable):
    """The host has no room for a disk now."""


class NoRoomYet(HostDiskFull, Occupied):
    """It has none because other disks may still grow; there is room once they are removed."""


def probe_size_limit(disk: Disk, size: int) -> str:
    """Empty when a disk takes less than `size` bytes, else what went wrong."""
    with contextlib.suppress(OSError):
        (disk.host_path / "tmp" / "fill").write_bytes(bytes(size))
        return "a disk took more than its size"
    return ""
