"""The disks of a root worker: ext4 images of a limited size. One may be an overlay over another.

An image takes 13 ms to create and 4 ms to remove, and cannot be filled beyond its size. As an
overlay over a cached checkout on another disk, a workspace of 8,000 files takes 17 ms instead of
400.
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
# nobarrier: otherwise every unmount and every fsync inside waits for the host's disk, and a session
# need not survive a power cut. redirect_dir: otherwise a folder of the lower disk cannot be
# renamed, which `git mv` treats as a failure.
IMAGE: Final = "loop,nosuid,nodev,noatime,nobarrier"
OVERLAY: Final = "redirect_dir=on,index=off,metacopy=off"
RELEASE_TIMEOUT: Final = 3.0  # seconds
_FINDING = threading.RLock()  # two threads that find the same disk unmounted would mount it twice
# s_state in the ext4 superblock
STATE_OFFSET = 1024 + 58
CLEAN = b"\1\0"
TRIAL: Final = "@trial-"
HOUR: Final = 3600  # seconds
HOST_USR: Final = Path("/usr")
KEPT: Final = "@checkout-"  # begins the names of disks that are never written to again
OWN, AUXILIARY = "own", "auxiliary"  # overlayfs's upper and work folder
# where the workspace of the lower disk is mounted with this session's owner, to make the overlay
LOWER: Final = "lower"


class ImageDisk(Disk):
    """A disk in an ext4 image file."""

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
        """The file with the name of the lower disk. No jail sees it, so none can name another
        disk."""
        return self.folder / "over"

    def create(self, limits: SandboxLimits) -> None:
        self._make_image(limits)
        self._mount_image()
        self._make_folders()
        self._mount_private()

    def create_over(self, layer: "ImageDisk", limits: SandboxLimits) -> None:
        """Create the disk with the workspace of another disk as the lower layer of its own."""
        self.create(limits)
        (self.folder / LOWER).mkdir(mode=0o700)
        for part in (OWN, AUXILIARY):
            (self.folder / part).mkdir(mode=0o755)
            if self.uid is not None:
                os.chown(self.folder / part, self.uid, self.uid)
        self._base_file.write_text(layer.folder.name)
        if not self._mount_overlay():
            raise Unavailable(
                "the cached checkout that the workspace needs was removed; it is made again"
            )

    def find_sealed(self) -> bool:
        """Return whether the disk exists and is sealed; mount it again when it was unmounted
        cleanly (after a restart)."""
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
        """Remove the disk with all that is mounted on it. Not by shutil.rmtree, which fails for
        3,000 nested folders."""
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
        """Create the folder of the disk and the folder of the images. The folder is how the image
        of a killed worker is found."""
        self.folder.mkdir(mode=0o711, exist_ok=True)
        self.image.parent.mkdir(mode=0o700, exist_ok=True)

    def _make_image(self, limits: SandboxLimits) -> None:
        self.reserve_paths()
        _check_free_space(self.image, limits.disk)
        with self.image.open("wb") as file:
            file.truncate(limits.disk)
        self.image.chmod(0o600)
        owner = f"lazy_itable_init=1,nodiscard,root_owner={os.geteuid()}:{os.getegid()}"
        run_host_program([*MKFS, "-E", owner, "-N", str(limits.most_files), str(self.image)])

    def _mount_image(self) -> None:
        self.folder.mkdir(mode=0o711, exist_ok=True)
        run_host_program(["/usr/bin/mount", "-o", IMAGE, str(self.image), str(self.folder)])

    def _mount_overlay(self) -> bool:
        """Mount the overlay over the noted disk, unless it is mounted or there is none. Return
        False when that disk is gone."""
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
            raise Unavailable(f"the session's disk: no overlay can be mounted: {error}") from None
        return True

    @contextlib.contextmanager
    def _map_owner(self, folder: Path) -> Iterator[Path]:
        """Yield a path where the files of another disk belong to this session's user.

        The overlay keeps a reference to that mount, so it is unmounted afterwards.
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
        """Mount the private /usr, /etc and /dev of the session's jails.

        A session that is reopened gets the present /usr and /etc. Where the kernel does not support
        it, jails see the host's.
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
        """Return whether the image was created: an empty file only claims a user."""
        return self.image.exists() and self.image.stat().st_size > 0

    def _wait_until_clean(self) -> bool:
        """Wait until the image is clean, and return whether it is. The kernel releases a disk a
        moment after it was unmounted, when the namespace of the last jail has ended."""
        until = time.monotonic() + RELEASE_TIMEOUT
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
    """Check that the host has room for a new image of this size.

    Images are sparse, and data written to one for which there is no room is lost silently. Raises
    HostDiskFull when that could happen, and NoRoomYet when only other images that may still grow
    need the room. For a trial, which takes almost nothing, these do not count.
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
    """Remove the trial disks that a killed worker left."""
    for image in (root / "@disks").glob(f"{TRIAL}*.img"):
        with contextlib.suppress(FileNotFoundError):  # the trial of another process has just ended
            if image.stat().st_mtime < time.time() - HOUR:
                ImageDisk(root, image.stem, uid=None).remove()


def probe_mount(root: Path) -> str:
    """Try two small disks, one as an overlay over the other. Return "" when it works, else the
    problem. Raises HostDiskFull."""
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
    """Try whether each session can have a separate user over a cached checkout.

    Return the problem ("" when it works), and the folders that sessions must share all the same.
    Raises HostDiskFull.
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
