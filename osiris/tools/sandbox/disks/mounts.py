"""The mounts of a root worker's workspaces, by system calls: starting a program for each would take
2 ms."""

import ctypes
import os
import re
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from osiris.tools.sandbox.disks.disk import run_host_program

OCTAL = re.compile(r"\\([0-7]{3})")  # a space is \040 in the kernel's list: proc_pid_mounts(5)
UNSHARE: Final = ("/usr/bin/unshare", "--user", "--", "/usr/bin/cat")
# mount(2)
READ_ONLY = 1
NO_SETUID = 2
NO_DEVICES = 4
NO_EXECUTION = 8
REMOUNT = 32
NO_ATIME = 1024
DETACH: Final = 2  # umount2(2)
# the same on x86_64 and aarch64
OPEN_TREE = 428
MOVE_MOUNT = 429
MOUNT_SETATTR = 442
CLONE: Final = 1  # open_tree(2)
EMPTY_PATH, FROM_EMPTY_PATH = 0x1000, 4
ID_MAPPED: Final = 0x100000  # mount_setattr(2)
HERE: Final = -100
NODES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS: Final = {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}  # below /proc/self
SMALL: Final = "mode=755,size=64k,nr_inodes=32"
_LIBC = ctypes.CDLL(None, use_errno=True)


class _MountAttributes(ctypes.Structure):
    """`struct mount_attr` of mount_setattr(2)."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "namespace")]


def mount(kind: str, target: Path, options: str, flags: int) -> None:
    """Mount a file system of this kind. Raises OSError."""
    words = (b"osiris", os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode())
    _check_result(_LIBC.mount(*words))


def mount_overlay(target: Path, folders: Mapping[str, Path], options: str, flags: int) -> None:
    """Mount an overlay; `folders` are its `lowerdir` and the like. Raises OSError.

    The options name the folders by descriptors, because `:` or `,` would end a path.
    """
    opened = {}
    try:
        for name, folder in folders.items():
            opened[name] = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        words = [f"{name}=/proc/self/fd/{fd}" for name, fd in opened.items()]
        mount("overlay", target, ",".join([*words, options]), flags)
    finally:
        for fd in opened.values():
            os.close(fd)


def mount_read_only_overlay(source: Path, target: Path) -> None:
    """Mount a read-only overlay of one folder: its files have separate inodes, but share one page
    cache. Raises OSError.

    An overlay without an upper folder needs two lower ones: the second is the empty `target`. An
    overlay does not show mounts below the folder, so this fails when there are any.
    """
    if any(where.startswith(f"{source}/") for where in _list_mount_points()):
        raise OSError(f"something is mounted below {source}")
    first, second = (os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in (target, source))
    try:
        options = f"lowerdir=/proc/self/fd/{first}:/proc/self/fd/{second}"
        mount("overlay", target, options, READ_ONLY | NO_SETUID | NO_DEVICES)
    finally:
        os.close(first)
        os.close(second)


def mount_devices(target: Path, terminals: str) -> None:
    """Mount a read-only /dev with separate terminals; `terminals` are the options of its devpts.
    Raises OSError.

    Bubblewrap would need six bind mounts for such a /dev, and reads the list of all mounts after
    each.
    """
    flags = NO_SETUID | NO_EXECUTION
    mount("tmpfs", target, SMALL, flags)
    try:
        for name, (major, minor) in NODES.items():
            os.mknod(target / name, stat.S_IFCHR, os.makedev(major, minor))
            (target / name).chmod(0o666)
        for name, source in LINKS.items():
            (target / name).symlink_to(f"/proc/self/{source}")
        (target / "ptmx").symlink_to("pts/ptmx")
        (target / "shm").mkdir()
        (target / "pts").mkdir()
        mount("tmpfs", target, "", REMOUNT | READ_ONLY | flags)
        mount("devpts", target / "pts", terminals, flags)
    except OSError:
        unmount(target)
        raise


def mount_with_owner(source: Path, target: Path, uid: int) -> None:
    """Mount a folder a second time, with its owner's files shown as those of user `uid`. Raises
    OSError.

    This needs Linux 5.12, and 5.19 for a lower layer of an overlay.
    """
    tree = _check_result(_LIBC.syscall(OPEN_TREE, HERE, os.fsencode(source), CLONE | os.O_CLOEXEC))
    try:
        about = source.stat()
        namespace = _open_user_namespace(
            {"uid_map": (about.st_uid, uid), "gid_map": (about.st_gid, uid)}
        )
        try:
            wanted = _MountAttributes(ID_MAPPED, 0, 0, namespace)
            size = ctypes.c_size_t(ctypes.sizeof(wanted))
            _check_result(
                _LIBC.syscall(MOUNT_SETATTR, tree, b"", EMPTY_PATH, ctypes.byref(wanted), size)
            )
        finally:
            os.close(namespace)
        _check_result(
            _LIBC.syscall(MOVE_MOUNT, tree, b"", HERE, os.fsencode(target), FROM_EMPTY_PATH)
        )
    finally:
        os.close(tree)


def unmount(folder: Path) -> None:
    """Detach the mount at a folder. Raises OSError."""
    _check_result(_LIBC.umount2(os.fsencode(folder), DETACH))


def unmount_below(folder: Path) -> None:
    """Detach all mounts below a folder, so that it can be removed: a session that was reopened has
    some there."""
    for where in reversed(_list_mount_points()):  # the last mount is the innermost
        if where.startswith(f"{folder}/"):
            run_host_program(["/usr/bin/umount", "-l", where])


def _list_mount_points() -> list[str]:
    """Return the folders on which something is mounted."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [OCTAL.sub(lambda octal: chr(int(octal[1], 8)), line.split(" ")[1]) for line in lines]


def _open_user_namespace(maps: Mapping[str, tuple[int, int]]) -> int:
    """Return a user namespace that maps one id to another. A process must be in it while it is set
    up."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        UNSHARE, env={}, cwd="/", stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
    ) as process:
        if (
            not process.stdin
            or not process.stdout
            or not _is_answering(process.stdin, process.stdout)
        ):
            raise OSError("no user namespace can be made")
        for name, (shown, real) in maps.items():
            Path(f"/proc/{process.pid}/{name}").write_text(f"{shown} {real} 1")
        return os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY)


def _is_answering(to: IO[bytes], answer: IO[bytes]) -> bool:
    """Return whether the program runs, which means that its namespace exists."""
    try:
        to.write(b"\n")
        to.flush()
    except BrokenPipeError:
        return False
    return answer.readline() == b"\n"


def _check_result(answer: int) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return answer
