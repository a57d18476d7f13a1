"""Where a session's files are: a place of limited size, with `work`, `home` and `tmp`, which the jail sees, and `keep`,
which it does not. `image_disk.py` makes it for root, `tmpfs_disk.py` for an ordinary user."""

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

from osiris.core.errors import Occupied, TooSlow, Unavailable
from osiris.core.ports.sandbox import Limits

T = TypeVar("T")
SHOWN: Final = ("work", "home", "tmp")
COARSE_CLOCK: Final = 0.05  # seconds; the time stamps of files run up to a tick behind
INDEX, NOTES, OWN, LEFT = "index", "notes.json", "own", "left"
UNSEALED, SEALED = "unsealed", "ready"
USR, ETC, DEVICES, TERMINALS = "usr", "etc", "dev", "pts"
"""What a session's jails have of their own, and would else share with those of all others."""
MOST_TERMINALS: Final = 64  # of the 3072 that kernel.pty.max leaves to all sessions of a machine
DEVPTS: Final = f"newinstance,ptmxmode=0666,mode=0620,max={MOST_TERMINALS}"


class Disk(ABC):
    """The disk `name` below `root`; what is on it belongs to user `uid` (None: to ours).

    With a prepared `etc` it is one of a session, and has a /usr, an /etc and terminals of its own, where the kernel
    can.
    """

    def __init__(self, root: Path, name: str, *, uid: int | None, etc: Path | None = None) -> None:
        self.folder = root / name
        """Where jails are told to look for it."""
        self.uid = uid
        self.etc = etc

    @property
    @abstractmethod
    def here(self) -> Path:
        """Where this process finds the same."""

    @property
    @abstractmethod
    def enter(self) -> Sequence[str]:
        """The words before a command that has to see the disk."""

    @property
    def keep(self) -> Path:
        return self.here / "keep"

    def own(self, name: str) -> Path | None:
        """Return where jails find the session's own `usr`, `etc`, `dev` or `pts`; None where it has none."""
        with contextlib.suppress(OSError), os.scandir(self.here / name) as entries:
            if any(entries):
                return self.folder / name
        return None

    @abstractmethod
    def make(self, limits: Limits) -> None:
        """Make it anew. Raises Unavailable."""

    @abstractmethod
    def find(self) -> bool:
        """True when it is there, and sealed."""

    @abstractmethod
    def remove(self) -> None:
        """Throw it away; fine when it is not there. Raises Unavailable."""

    def _fill(self) -> None:
        for name in (*SHOWN, "keep"):
            path = self.here / name
            path.mkdir(mode=0o755)
            if self.uid is not None:
                os.chown(path, self.uid, self.uid)
        self.here.chmod(0o711)

    def close(self, notes: dict[str, Any]) -> None:
        """Close `keep` to the jail's user. What seals the disk is made now, while there is room for it."""
        if self.uid is not None:
            os.chown(self.keep, 0, 0)
            for entry in self.keep.iterdir():
                os.chown(entry, 0, 0, follow_symlinks=False)
        (self.keep / NOTES).write_text(json.dumps(notes))
        (self.keep / UNSEALED).touch(mode=0o600)

    def seal(self) -> None:
        """Mark it as complete: from now on it is found. It takes no room: the agent may have left none."""
        with contextlib.suppress(FileNotFoundError):  # it is sealed
            (self.keep / UNSEALED).rename(self.keep / SEALED)

    @property
    def sealed(self) -> bool:
        return (self.keep / SEALED).is_file()

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted when it was closed."""
        noted: dict[str, Any] = json.loads((self.keep / NOTES).read_text())
        return noted

    def open_up(self) -> None:
        """Called before each command: one that closed the workspace to itself is no end of the session. It cannot be a
        link to something else, for it is a folder in one of ours."""
        with contextlib.suppress(OSError):
            (self.here / "work").chmod(0o755)

    def settle(self) -> None:
        """Called before the first command of a stranger. Git reads a file again when its second is that of the index,
        so right after a checkout all of them: 5,000 files take 400 ms. When that second has passed with nobody in the
        workspace, a change can no longer hide in it, and the index may say so."""
        index = self.keep / INDEX
        next_second = int(index.lstat().st_mtime) + 1
        if time.time() > next_second + COARSE_CLOCK:
            os.utime(index, (next_second, next_second), follow_symlinks=False)


def run(argv: Sequence[str], cwd: Path = Path("/")) -> None:
    """Run a program of the host for a disk. Raises Unavailable."""
    try:
        done = subprocess.run(
            argv, env={"LC_ALL": "C.UTF-8"}, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        raise TooSlow(f"the session's disk: {Path(argv[0]).name} gave no answer in 60 seconds") from None
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


class NoRoom(Unavailable):
    """The host has no room for a disk now."""


class NoRoomYet(NoRoom, Occupied):
    """It has none because other disks may still grow; there is room once they are removed."""


def fills_up(disk: Disk, size: int) -> str:
    """Empty when a disk takes less than `size` bytes, else what went wrong."""
    with contextlib.suppress(OSError):
        (disk.here / "tmp" / "fill").write_bytes(bytes(size))
        return "a disk took more than its size"
    return ""
