"""The host users that the sessions of a root worker run as: each session has a user that no other
existing session has.

The kernel then counts per session what it counts per user (inotify, epoll, message queues,
descriptors in flight), and a process that escaped its namespaces could still not touch the files or
processes of another session.

The owner of a session's disk image is its user, so a session that is reopened keeps it. In a folder
of the machine, a link for each claimed user names the image, so that workers with other data
folders use other users. A link is void when its image is gone or has another owner; it is removed
as soon as that user has no process left.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from osiris.core.errors import Unavailable

# the user of jails without a session, and of all jails where the kernel cannot map file owners
SHARED: Final = 61000
FIRST, LAST = 60706, 61183  # a range that systemd leaves free: its dynamic users follow it
USERS: Final = tuple(uid for uid in range(FIRST, LAST + 1) if uid != SHARED)
CLAIMS = Path("/run/osiris-users")


class SessionUsers:
    """The users of the sessions whose disk images are in one folder."""

    def __init__(self, images: Path) -> None:
        self._images = images
        seed = hashlib.sha256(os.fsencode(images)).digest()
        self._next = int.from_bytes(seed[:4], "big") % len(
            USERS
        )  # so that workers rarely try the same
        self._restored = False

    def claim_user(self, image: Path) -> int:
        """Claim a user for the session of this image, make it the owner of the image, and return
        it. Raises Unavailable."""
        try:
            with _lock_claims():
                return self._claim_next_free(image)
        except OSError as error:
            raise Unavailable(f"no user for a session could be claimed: {error}") from None

    def _claim_next_free(self, image: Path) -> int:
        if not self._restored:
            self._restore_claims()
        swept = False
        for _ in USERS:
            uid = USERS[self._next]
            # a released user is not used again for as long as possible
            self._next = (self._next + 1) % len(USERS)
            if os.path.lexists(_get_link(uid)):
                if not swept:
                    _remove_void_links()
                swept = True
                if os.path.lexists(_get_link(uid)):
                    continue
            image.touch(mode=0o600)
            os.chown(image, uid, 0)
            _get_link(uid).symlink_to(image)
            return uid
        raise Unavailable(f"this machine has {len(USERS)} sessions, and no user for one more")

    def _restore_claims(self) -> None:
        """Claim the users of the sessions that are older than the folder of claims, which a restart
        of the machine empties."""
        _remove_void_links()
        for image in self._images.glob("*.img"):
            # the image is gone, or its user is claimed already
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                if (uid := image.stat().st_uid) in USERS:
                    _get_link(uid).symlink_to(image)
        self._restored = True


def assert_can_claim() -> None:
    """Raise OSError when no user can be claimed."""
    with _lock_claims():
        pass


def read_owner(image: Path) -> int:
    """Return the user that the session of this image runs as."""
    try:
        return image.stat().st_uid or SHARED
    except FileNotFoundError:
        return SHARED


def release_user(image: Path) -> None:
    """Give the image back to root: no session will run on it any more."""
    os.chown(image, 0, 0)


@contextlib.contextmanager
def _lock_claims() -> Iterator[None]:
    CLAIMS.mkdir(mode=0o700, exist_ok=True)
    with (CLAIMS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _get_link(uid: int) -> Path:
    return CLAIMS / str(uid)


def _remove_void_links() -> None:
    """Remove the void links whose users have no process."""
    void = [link for link in CLAIMS.iterdir() if link.is_symlink() and not _is_valid(link)]
    living = _list_live_users() if void else set()
    for link in void:
        if int(link.name) not in living:
            link.unlink()


def _is_valid(link: Path) -> bool:
    try:
        return link.stat().st_uid == int(link.name)
    except OSError:
        return False


def _list_live_users() -> set[int]:
    """Return the users of all processes, by all four of their user ids: proc_pid_status(5)."""
    found = set[int]()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                lines = Path(entry.path, "status").read_text(errors="replace").splitlines()
                found |= {
                    int(word)
                    for line in lines
                    if line.startswith("Uid:")
                    for word in line.split()[1:]
                }
    return found
