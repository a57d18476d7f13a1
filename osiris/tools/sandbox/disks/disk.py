"""The disk of a session: storage of a limited size, with `work`, `home` and `tmp`, which the jail
sees, and `keep`, which it does not. `image_disk.py` implements it for root, `tmpfs_disk.py` for an
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
COARSE_CLOCK: Final = 0.05  # seconds; the time stamps of files lag by up to one tick
_NEARLY_NONE: Final = 100  # a disk with less than this part of it free counts as full
INDEX = "index"
NOTES = "notes.json"
OWN = "own"
LEFT = "left"
UNSEALED, SEALED = "unsealed", "ready"
USR = "usr"
ETC = "etc"
DEVICES = "dev"
TERMINALS = "pts"
"""The folders of private mounts: without them the jails of all sessions would share these parts."""
MOST_TERMINALS: Final = 64  # of the 3072 that kernel.pty.max allows for all sessions of a machine
DEVPTS: Final = f"newinstance,ptmxmode=0666,mode=0620,max={MOST_TERMINALS}"


class Disk(ABC):
    """The disk `name` below `root`; its files belong to user `uid` (None: to this process's user).

    With a prepared `etc` it is the disk of a session, and has a private /usr, /etc and terminals,
    where the kernel supports that.
    """

    def __init__(self, root: Path, name: str, *, uid: int | None, etc: Path | None = None) -> None:
        self.folder = root / name
        """The path of the disk for jails."""
        self.uid = uid
        self.etc = etc

    @property
    @abstractmethod
    def host_path(self) -> Path:
        """The path of the disk for this process."""

    @property
    @abstractmethod
    def nsenter_prefix(self) -> Sequence[str]:
        """The words before a command that must see the disk."""

    @property
    def host_only(self) -> Path:
        return self.host_path / "keep"

    def get_private_path(self, name: str) -> Path | None:
        """Return the path, for jails, of the session's private `usr`, `etc`, `dev` or `pts`; None
        when it has none."""
        with contextlib.suppress(OSError), os.scandir(self.host_path / name) as entries:
            if any(entries):
                return self.folder / name
        return None

    @abstractmethod
    def create(self, limits: SandboxLimits) -> None:
        """Create the disk. Raises Unavailable."""

    @abstractmethod
    def find_sealed(self) -> bool:
        """Return whether the disk exists and is sealed."""

    @abstractmethod
    def remove(self) -> None:
        """Remove the disk, if there is one. Raises Unavailable."""

    def _make_folders(self) -> None:
        for name in (*SHOWN, "keep"):
            path = self.host_path / name
            path.mkdir(mode=0o755)
            if self.uid is not None:
                os.chown(path, self.uid, self.uid)
        self.host_path.chmod(0o711)

    def finalize(self, notes: dict[str, Any]) -> None:
        """Write the notes, and take `keep` from the jail's user. The file that seals the disk is
        created now, while there is room for it."""
        if self.uid is not None:
            os.chown(self.host_only, 0, 0)
            for entry in self.host_only.iterdir():
                os.chown(entry, 0, 0, follow_symlinks=False)
        (self.host_only / NOTES).write_text(json.dumps(notes))
        (self.host_only / UNSEALED).touch(mode=0o600)

    def describe_shortage(self) -> str:
        """Return what the disk has no room for, as the end of a sentence; "" when it has room.

        For a lack of either, programs say "No space left on device", and git not even that.
        """
        room = os.statvfs(self.host_path)
        if room.f_favail * _NEARLY_NONE < room.f_files and room.f_favail < room.f_bavail:
            return f"it has too many files: the session's disk holds {room.f_files:,} at most"
        if room.f_bavail * _NEARLY_NONE < room.f_blocks:
            size = room.f_blocks * room.f_frsize >> 20
            return f"it does not fit on the session's disk of {size} MiB"
        return ""

    def seal(self) -> None:
        """Mark the disk as complete: from now on it is reopened. This needs no room on the disk,
        because the agent may have left none."""
        with contextlib.suppress(FileNotFoundError):  # it is sealed already
            (self.host_only / UNSEALED).rename(self.host_only / SEALED)

    @property
    def is_sealed(self) -> bool:
        return (self.host_only / SEALED).is_file()

    @property
    def notes(self) -> dict[str, Any]:
        """The notes given to `finalize`."""
        noted: dict[str, Any] = json.loads((self.host_only / NOTES).read_text())
        return noted

    def restore_permissions(self) -> None:
        """Make the workspace accessible again before a command, in case the last one removed the
        permissions. The path cannot be a link, because the folder above belongs to Osiris."""
        with contextlib.suppress(OSError):
            (self.host_path / "work").chmod(0o755)

    def unfreeze_index(self) -> None:
        """Set the time of the index to the second after the checkout. Called before the first
        untrusted command.

        Git reads a file again when its time has the second of the index, so right after a checkout
        it reads all of them: 5,000 files take 400 ms. When that second has passed before a command
        ran in the workspace, no change can be hidden in it, and the index may have a later time.
        """
        index = self.host_only / INDEX
        next_second = int(index.lstat().st_mtime) + 1
        if time.time() > next_second + COARSE_CLOCK:
            os.utime(index, (next_second, next_second), follow_symlinks=False)


def run_host_program(argv: Sequence[str], cwd: Path = Path("/")) -> None:
    """Run a program of the host on a disk. Raises Unavailable."""
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
    """Run `work` in a thread and return its result. A cancelled caller waits for the thread, too.

    Otherwise another task could find, fill or remove a disk that the thread still works on.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.wait([working])
        working.exception()  # retrieved, so that asyncio does not report it
        raise


class HostDiskFull(Unavailable):
    """The error of a host without room for another disk."""


class NoRoomYet(HostDiskFull, Occupied):
    """The error of a host on which other disks may still grow; there is room once they are
    removed."""


def probe_size_limit(disk: Disk, size: int) -> str:
    """Return "" when a disk accepts less than `size` bytes, else the problem."""
    with contextlib.suppress(OSError):
        (disk.host_path / "tmp" / "fill").write_bytes(bytes(size))
        return "a disk took more than its size"
    return ""
