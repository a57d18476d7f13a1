"""Orphaned jails: jails whose worker was killed in the one moment in which they do not notice.

bubblewrap's monitor dies with its worker, and the jail with the monitor. But a jail that has just
been started waits for the monitor on an eventfd, which has no end of file: when the monitor is
killed in that millisecond, the jail waits for ever. No command has begun in it, but it holds a copy
of all mounts, so the kernel releases no disk that is unmounted later.
"""

import contextlib
import os
import signal
from pathlib import Path

from osiris.tools.sandbox.jail.first_program import MARK
from osiris.tools.sandbox.jail.process import BWRAP

_BEGINS = f"{BWRAP}\0".encode()
_MARK = MARK.encode()


def kill_orphans() -> None:
    """Kill every jail on this machine that has lost its monitor, of whichever worker."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(
                OSError, ValueError
            ):  # it ended meanwhile, or belongs to another user
                _kill_orphan(entry)


def _kill_orphan(process: Path) -> None:
    if not _is_own_jail(process):
        return
    # checked again with the pidfd open: another process may have the number by now
    pidfd = os.pidfd_open(int(process.name))
    try:
        if _is_orphan(process):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def _is_orphan(process: Path) -> bool:
    """Return whether it is process 1 of an Osiris jail, and its parent is not a monitor."""
    about = dict(
        line.split(":\t", 1)
        for line in (process / "status").read_text().splitlines()
        if ":\t" in line
    )
    is_first = len(inside := about["NSpid"].split()) > 1 and inside[-1] == "1"
    return is_first and _is_own_jail(process) and not _is_own_jail(process.parent / about["PPid"])


def _is_own_jail(process: Path) -> bool:
    command = (process / "cmdline").read_bytes()
    return command.startswith(_BEGINS) and _MARK in command
