"""Disks of a root worker: ext4 images of a limited size, of which one may lie over another.

An image takes 13 ms to make and 4 ms to throw away, and stops a fill at its size. Laid over a
checkout that is kept in another one, a workspace of 8,000 files takes 17 ms instead of 400.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from osiris.core.errors import Unavailable
from osiris.core.ports.sandbox import MIB, SandboxLimits
from osiris.tools.sandbox.disks import mounts
from osiris.tools.sandbox.disks.disk import (
    DEVICES,
    DEVPTS,
    ETC,
    USR,
    Disk,
    HostDiskFull,
    NoRoomYet,
    probe_size_limit,
    run_host_program,
)
from osiris.tools.sandbox.jail.orphans import kill_orphans
from osiris.tools.sandbox.users import USERS, assert_can_claim

MKFS: Final = ("/usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal")
# nobarrier: else every unmount and every fsync inside waits for the host's disk, and a session need
# not outlive a power cut. redirect_dir: else a folder of the disk below could not be renamed, which
# `git mv` takes for a failure.
IMAGE: Final = "loop,nosuid,nodev,noatime,nobarrier"
OVERLAY: Final = "redirect_dir=on,index=off,metacopy=off"
GONE: Final = 3.0  # seconds
_FINDING = threading.RLock()  # two that find the same disk unmounted would mount it twice
# s_state in the ext4 superblock
STATE_OFFSET = 1024 + 58
CLEAN = b"\1\0"
TRIAL: Final = "@trial-"
HOUR: Final = 3600  # seconds
HOST_USR: Final = Path("/usr")
KEPT: Final = "@checkout-"  # begins the names of disks that nothing is written to any more
OWN, AUXILIARY = "own", "auxiliary"  # what overlayfs calls the upper and the work folder
# where the workspace of the disk below is shown as this session's, until it is laid
LOWER: Final = "lower"


class ImageDisk(Disk):
    """A disk in an image file."""

    def __init__(self, root: Path, name: str, *, uid: int | None, etc: Path | None = None) -> None:
        super().__init__(root, name, uid=uid, etc=etc)
        self.image = root / "@disks" / f"{name}.img"

    @property
    def host_path(self) -> Path:
        return self.folder

    @property
    def nsenter_prefix(self) -> Sequence[str]:
        return ()

    @property
    def _base_file(self) -> Path:
        """Names the disk that it lies over; no jail ever sees it, so none could name another."""
        return self.folder / "over"

    def create(self, limits: SandboxLimits) -> None:
        self._make_image(limits)
        self._mount_image()
        self._make_folders()
        self._mount_private()

    def create_over(self, layer: "ImageDisk", limits: SandboxLimits) -> None:
        """The same, with the workspace of another disk seen below its own files."""
        self.create(limits)
        (self.folder / LOWER).mkdir(mode=0o700)
        for part in (OWN, AUXILIARY):
            (self.folder / part).mkdir(mode=0o755)
            if self.uid is not None:
                os.chown(self.folder / part, self.uid, self.uid)
        self._base_file.write_text(layer.folder.name)
        if not self._mount_overlay():
            raise Unavailable(
                "the checkout that the workspace was to lie over is gone, and is made anew"
            )

    def find_sealed(self) -> bool:
        """An image that was put away cleanly (a restart) is mounted again."""
        with _FINDING:
            if self._has_image() and not self.folder.is_mount():
                if not self._wait_until_clean():
                    return False
                self._mount_image()
            if not self.is_sealed:
                return False
            self._mount_private()
            return self._mount_overlay()

    def remove(self) -> None:
        """With all that is mounted on it. Never shutil.rmtree: 3,000 nested folders are too deep
        for it."""
        if self.folder.is_mount():
            run_host_program(["/usr/bin/umount", "-l", str(self.folder)])
        self.image.unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            mounts.unmount_below(self.folder)
            run_host_program(["/usr/bin/rm", "-rf", "--one-file-system", "--", str(self.folder)])

    def reserve_paths(self) -> None:
        """Make the folder and the place of the image. By its folder a killed worker's image is
        found."""
        self.folder.mkdir(mode=0o711, exist_ok=True)
        self.image.parent.mkdir(mode=0o700, exist_ok=True)

    def _make_image(self, limits: SandboxLimits) -> None:
        self.reserve_paths()
        _check_free_space(self.image, limits.disk)
        with self.image.open("wb") as file:
            file.truncate(limits.disk)
        self.image.chmod(0o600)
        owner = f"lazy_itable_init=1,nodiscard,root_owner={os.geteuid()}:{os.getegid()}"
        run_host_program([*MKFS, "-E", owner, "-N", str(limits.inodes), str(self.image)])

    def _mount_image(self) -> None:
        self.folder.mkdir(mode=0o711, exist_ok=True)
        run_host_program(["/usr/bin/mount", "-o", IMAGE, str(self.image), str(self.folder)])

    def _mount_overlay(self) -> bool:
        """Lay it over the disk that was noted, where that is not done; False when that is gone."""
        if not self._base_file.exists() or (self.folder / "work").is_mount():
            return True
        layer = ImageDisk(self.folder.parent, self._base_file.read_text(), uid=None)
        if not layer.find_sealed():
            return False
        try:
            with self._map_owner(layer.folder / "work") as lower:
                folders = {"lowerdir": lower, "upperdir": self.folder / OWN}
                folders["workdir"] = self.folder / AUXILIARY
                flags = mounts.NO_SETUID | mounts.NO_DEVICES | mounts.NO_ATIME
                mounts.mount_overlay(self.folder / "work", folders, OVERLAY, flags)
        except OSError as error:
            raise Unavailable(f"the session's disk: it cannot be laid: {error}") from None
        return True

    @contextlib.contextmanager
    def _map_owner(self, folder: Path) -> Iterator[Path]:
        """Give a place where the files of another disk belong to this session's user.

        The overlay keeps what it was made of, so that is out of sight afterwards.
        """
        if self.uid is None or folder.stat().st_uid == self.uid:
            yield folder
            return
        lower = self.folder / LOWER
        mounts.mount_with_owner(folder, lower, self.uid)
        try:
            yield lower
        finally:
            mounts.unmount(lower)

    def _mount_private(self) -> None:
        """Mount what the session's jails have of their own.

        A session that is found again gets /usr and /etc as they are now. Where the kernel cannot,
        jails see the host's.
        """
        if self.etc is None:
            return
        for name, source in ((USR, HOST_USR), (ETC, self.etc)):
            with contextlib.suppress(OSError):
                (self.folder / name).mkdir(mode=0o755, exist_ok=True)
                with contextlib.suppress(OSError):  # nothing is mounted there
                    mounts.unmount(self.folder / name)
                mounts.mount_read_only_overlay(source, self.folder / name)
        if self.get_private_path(DEVICES) is None:
            with contextlib.suppress(OSError):
                (self.folder / DEVICES).mkdir(mode=0o755, exist_ok=True)
                mounts.mount_devices(self.folder / DEVICES, DEVPTS)

    def _has_image(self) -> bool:
        """Return whether it was made: an empty one only claims a user."""
        return self.image.exists() and self.image.stat().st_size > 0

    def _wait_until_clean(self) -> bool:
        """The kernel lets go of a disk a moment after it was unmounted, when the last jail's
        namespace has gone."""
        until = time.monotonic() + GONE
        while not self._is_clean():
            kill_orphans()
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def _is_clean(self) -> bool:
        with self.image.open("rb") as file:
            file.seek(STATE_OFFSET)
            return file.read(2) == CLEAN


def _check_free_space(new: Path, size: int) -> None:
    """Images are sparse, and what is written to one for which there is no room is lost without a
    word.

    Raises NoRoom when that could come to pass, and NoRoomYet when only other images that may still
    grow stand in the way; a trial takes next to nothing, and they do not.
    """
    room = os.statvfs(new.parent)
    free = room.f_bavail * room.f_frsize
    promised = 0
    for image in [] if new.name.startswith(TRIAL) else new.parent.glob("*.img"):
        with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
            found = image.stat()
            promised += (
                0 if image.name.startswith(KEPT) else max(0, found.st_size - found.st_blocks * 512)
            )
    if free - promised < size:
        full = HostDiskFull if free < size else NoRoomYet
        raise full(
            f"this machine's disk has no room for one more workspace: it may take {size >> 20} MiB,"
            f" {free >> 20} are free, and others may take {promised >> 20} of them; make room, or"
            " set OSIRIS_SANDBOX_DISK_GIB lower"
        )


def _remove_stale_trials(root: Path) -> None:
    """Remove the disks of trials that a killed worker has left."""
    for image in (root / "@disks").glob(f"{TRIAL}*.img"):
        with contextlib.suppress(FileNotFoundError):  # somebody else's trial has just ended
            if image.stat().st_mtime < time.time() - HOUR:
                ImageDisk(root, image.stem, uid=None).remove()


def probe_mount(root: Path) -> str:
    """Try small ones, one over the other; empty when it works, else what went wrong. Raises
    NoRoom."""
    if os.geteuid() != 0:
        return "only root may mount a disk image"
    _remove_stale_trials(root)
    small = SandboxLimits(disk=4 * MIB, inodes=64)
    first, second = (ImageDisk(root, f"{TRIAL}{secrets.token_hex(8)}", uid=None) for _ in range(2))
    try:
        first.create(small)
        first.finalize({})
        first.seal()
        second.create_over(first, small)
        return probe_size_limit(second, 8 * MIB)
    except HostDiskFull:
        raise
    except (OSError, Unavailable) as error:
        return str(error)
    finally:
        second.remove()
        first.remove()


def probe_separate_users(root: Path, etc: Path) -> tuple[str, list[str]]:
    """Try whether each session can have a user of its own over a kept checkout.

    Returns what went wrong, empty when it works; and what a session has to share all the same.
    Raises NoRoom.
    """
    small = SandboxLimits(disk=4 * MIB, inodes=64)
    first, second = (f"{TRIAL}{secrets.token_hex(8)}" for _ in range(2))
    layer = ImageDisk(root, first, uid=USERS[0])
    session = ImageDisk(root, second, uid=USERS[1], etc=etc)
    try:
        assert_can_claim()
        layer.create(small)
        (layer.folder / "work" / "seen").touch()
        os.chown(layer.folder / "work" / "seen", USERS[0], USERS[0])
        layer.finalize({})
        layer.seal()
        session.create_over(layer, small)
        shared = [
            f"/{name}" for name in (USR, ETC, DEVICES) if session.get_private_path(name) is None
        ]
        seen = (session.folder / "work" / "seen").stat().st_uid
        return ("" if seen == USERS[1] else "files keep their owner"), shared
    except HostDiskFull:
        raise
    except (OSError, Unavailable) as error:
        return str(error), []
    finally:
        session.remove()
        layer.remove()
