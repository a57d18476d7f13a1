"""Where a session lives on disk: a size-limited ext4 image when we are root, a plain folder otherwise.

The image takes 13 ms to make and 4 ms to throw away, and stopped a fill at its size. Either way the folder holds
`work`, `home` and `tmp`, which the jail sees, and `keep`, which it does not.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from osiris.errors import TooSlow, Unavailable
from osiris.tools.limits import MIB, Limits

SHOWN = ("work", "home", "tmp")
MKFS = ("/usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal")
COARSE_CLOCK = 0.05  # seconds; the time stamps of files run up to a tick behind
STATE_OFFSET, CLEAN = 1024 + 58, b"\1\0"  # s_state in the ext4 superblock


class Disk:
    """The disk of session `name` below `root`, given to user `uid` (None: ours)."""

    def __init__(self, root: Path, name: str, *, uid: int | None) -> None:
        self.folder = root / name
        self.image = root / "@disks" / f"{name}.img"
        self.keep = self.folder / "keep"
        self._uid = uid

    def make(self, limits: Limits, *, bounded: bool) -> None:
        """Make it anew, of at most `limits.disk` bytes when `bounded`. Raises Unavailable."""
        self.folder.mkdir(mode=0o711, exist_ok=True)
        if bounded:
            self._make_image(limits)
            self._mount()
        for name in (*SHOWN, "keep"):
            path = self.folder / name
            path.mkdir(mode=0o755)
            if self._uid is not None:
                os.chown(path, self._uid, self._uid)
        self.folder.chmod(0o711)

    def find(self) -> bool:
        """True when the session is there; an image that was put away cleanly (a restart) is mounted again."""
        if self.image.exists() and not self.folder.is_mount():
            if not self._is_clean():
                return False
            self._mount()
        return (self.keep / "ready").is_file()

    def close(self) -> None:
        """Close `keep` to the jail's user. What seals the session is made now, while the disk has room for it."""
        if self._uid is not None:
            os.chown(self.keep, 0, 0)
            os.chown(self.keep / "index", 0, 0, follow_symlinks=False)
        (self.keep / "unsealed").touch(mode=0o600)

    def seal(self) -> None:
        """Mark the session as complete: from now on it is found. It takes no room: the agent may have left none."""
        with contextlib.suppress(FileNotFoundError):  # it is sealed
            (self.keep / "unsealed").rename(self.keep / "ready")

    def settle(self) -> None:
        """Called before the first command of a stranger. Git reads a file again when its second is that of the index,
        so right after a checkout all of them: 5,000 files take 400 ms. When that second has passed with nobody in the
        workspace, a change can no longer hide in it, and the index may say so."""
        index = self.keep / "index"
        next_second = int(index.lstat().st_mtime) + 1
        if time.time() > next_second + COARSE_CLOCK:
            os.utime(index, (next_second, next_second), follow_symlinks=False)

    def remove(self) -> None:
        """Throw it away; fine when it is not there. Never shutil.rmtree: 3,000 nested folders are too deep for it."""
        if self.folder.is_mount():
            _run(["/usr/bin/umount", "-l", str(self.folder)])
        self.image.unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if self._uid is None:  # it is all ours, but the agent may have closed a folder even to us
                _run(["/usr/bin/chmod", "-R", "u+rwX", "--", str(self.folder)])
            _run(["/usr/bin/rm", "-rf", "--one-file-system", "--", str(self.folder)])

    def _make_image(self, limits: Limits) -> None:
        self.image.parent.mkdir(mode=0o700, exist_ok=True)
        with self.image.open("wb") as file:
            file.truncate(limits.disk)
        self.image.chmod(0o600)
        owner = f"lazy_itable_init=1,nodiscard,root_owner={os.geteuid()}:{os.getegid()}"
        _run([*MKFS, "-E", owner, "-N", str(limits.inodes), str(self.image)])

    def _mount(self) -> None:
        self.folder.mkdir(mode=0o711, exist_ok=True)
        # nobarrier: else every unmount and every fsync inside waits for the host's disk, and a session need not outlive
        # a power cut.
        _run(["/usr/bin/mount", "-o", "loop,nosuid,nodev,noatime,nobarrier", str(self.image), str(self.folder)])

    def _is_clean(self) -> bool:
        with self.image.open("rb") as file:
            file.seek(STATE_OFFSET)
            return file.read(2) == CLEAN


def can_bound(root: Path) -> str:
    """Try a small image; empty when it works, else what went wrong."""
    if os.geteuid() != 0:
        return "only root may mount a disk image"
    trial = Disk(root, f"@trial-{os.getpid()}", uid=None)
    try:
        trial.make(Limits(disk=4 * MIB, inodes=64), bounded=True)
    except (OSError, Unavailable) as error:
        return str(error)
    finally:
        trial.remove()
    return ""


def _run(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            argv, env={"LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        raise TooSlow(f"the session's disk: {Path(argv[0]).name} gave no answer in 60 seconds") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise Unavailable(f"the session's disk: {Path(argv[0]).name}: {words[-300:]}")
