"""The host's users that a root worker's sessions run as: each session has one that no other living
session has.

What the kernel counts by user (inotify, epoll, message queues, descriptors under way) it then
counts by session, and a process that got out of its namespaces could still not touch another
session's files or processes.

The owner of a session's image is its user, so a session that is found again keeps it. A link for
each user in a folder of the machine names the image, so that workers with other data folders take
other users. A link is void when its image is gone or has another owner, and is then taken away as
soon as no process of that user is left.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from osiris.core.errors import Unavailable

# of jails that have no session, and of all where the kernel cannot show files as another user's
SHARED: Final = 61000
FIRST, LAST = 60706, 61183  # those that systemd leaves free: above are its dynamic users
USERS: Final = tuple(uid for uid in range(FIRST, LAST + 1) if uid != SHARED)
CLAIMS = Path("/run/osiris-users")


class SessionUsers:
    """The users of the sessions whose images are in one folder."""

    def __init__(self, images: Path) -> None:
        self._images = images
        seed = hashlib.sha256(os.fsencode(images)).digest()
        self._next = int.from_bytes(seed[:4], "big") % len(USERS)  # so that workers seldom meet
        self._restored = False

    def claim_user(self, image: Path) -> int:
        """Return a user for the session of this image, which is made to belong to it. Raises
        Unavailable."""
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
            # a user who is gone rests for as long as can be
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
        """Claim again what sessions have that are older than the folder of claims, which a restart
        empties."""
        _remove_void_links()
        for image in self._images.glob("*.img"):
            # it is gone; its user is claimed
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                if (uid := image.stat().st_uid) in USERS:
                    _get_link(uid).symlink_to(image)
        self._restored = True


def assert_can_claim() -> None:
    """Raise OSError where no user can be claimed."""
    with _lock_claims():
        pass


def read_owner(image: Path) -> int:
    """Return the user that the session of this image runs as."""
    try:
        return image.stat().st_uid or SHARED
    except FileNotFoundError:
        return SHARED


def release_user(image: Path) -> None:
    """Have the image belong to no session any more: nothing will run on it."""
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
    """Take the void links away whose users have no process."""
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
    """Return the users of all processes, by all four of their ids: proc_pid_status(5)."""
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
