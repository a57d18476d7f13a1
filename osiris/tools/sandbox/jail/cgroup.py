"""The cgroup of a session, version 1 or 2: the memory limit that no process inside can evade.

RLIMIT_AS is not such a limit: memfd and SysV memory are not counted, and node and java need more
address space than memory. There is one cgroup per session and not per command, because removing one
after each command took up to a second with 16 sessions at work.
"""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from osiris.core.ports.sandbox import SandboxLimits

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
HOUR = 3600  # seconds
# The buffers of TCP sockets are one pool of the machine (net.ipv4.tcp_mem, a tenth of its memory),
# and version 1 counts them separately from other memory. 64 MiB are enough for thousands of
# connections that are read from; senders on connections that are not read fill the limit and wait.
TCP_BUFFERS = 64 << 20


@dataclass(frozen=True, slots=True)
class Cgroup:
    """The folders of one session's cgroup: one in version 2, one per controller in version 1."""

    folders: tuple[Path, ...]

    @property
    def entry_files(self) -> tuple[Path, ...]:
        """The files by which a process of one thread enters the cgroup by itself: it writes 0.

        In version 1 that is `tasks`, the only write that takes no lock of the whole machine
        (cgroup_procs_write_start in kernel/cgroup/cgroup.c).
        """
        return tuple(
            tasks if (tasks := folder / "tasks").exists() else folder / "cgroup.procs"
            for folder in self.folders
        )

    def count_oom_kills(self) -> int:
        """Return how many processes in here the kernel has killed because memory ran out."""
        for name in ("memory.events", "memory.oom_control"):
            for line in _read_lines(self.folders[0] / name):
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        return 0

    def kill(self) -> bool:
        """Kill all processes in here. Return whether there were none.

        Version 2 kills all of them at once, so that a fork cannot escape.
        """
        pids = [int(line) for line in _read_lines(self.folders[0] / "cgroup.procs")]
        with suppress(OSError):
            if (at_once := self.folders[0] / "cgroup.kill").exists():
                _write_value(at_once, 1)
                return not pids
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    def remove(self) -> bool:
        """Remove the folders. Return False while dead processes are still in them."""
        self.kill()
        for folder in self.folders:
            try:
                folder.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True


def make_cgroup(name: str, limits: SandboxLimits) -> Cgroup | None:
    """Return the cgroup `name`, new or existing, with its limits set; None where this machine does
    not allow to make one."""
    for parents, settings in (
        (_find_parents_v2(), _build_settings_v2(limits)),
        (_find_parents_v1(), _build_settings_v1(limits)),
    ):
        if not parents:
            continue
        folders = tuple(parent / name for parent in parents)
        try:
            _apply_settings(folders, settings)
        except OSError:
            Cgroup(folders).remove()
            return None
        return Cgroup(folders)
    return None


def find_cgroup(name: str) -> Cgroup | None:
    """Return the cgroup `name`, or None when it does not exist."""
    for parents in (_find_parents_v2(), _find_parents_v1()):
        folders = tuple(folder for parent in parents if (folder := parent / name).is_dir())
        if folders:
            return Cgroup(folders)
    return None


def remove_stale_cgroups(prefix: str) -> None:
    """Remove the empty cgroups that a killed worker left, an hour ago or longer."""
    for parent in (*_find_parents_v2(), *_find_parents_v1()):
        for folder in parent.glob(f"{prefix}*"):
            with suppress(OSError):  # the kernel refuses to remove one with processes
                if folder.stat().st_mtime < time.time() - HOUR:
                    folder.rmdir()


def _apply_settings(folders: tuple[Path, ...], settings: tuple[tuple[str, str, bool], ...]) -> None:
    for folder in folders:
        folder.mkdir(exist_ok=True)
    for name, value, needed in settings:
        places = [folder / name for folder in folders if (folder / name).exists()]
        if needed and not places:
            raise FileNotFoundError(name)
        for place in places:
            _write_value(place, value)


def _build_settings_v1(limits: SandboxLimits) -> tuple[tuple[str, str, bool], ...]:
    return (
        # reset first, so that a smaller limit can be set later: memsw may not be below memory
        ("memory.memsw.limit_in_bytes", "-1", False),
        ("memory.limit_in_bytes", str(limits.memory), True),
        ("memory.memsw.limit_in_bytes", str(limits.memory), False),
        ("memory.kmem.tcp.limit_in_bytes", str(min(TCP_BUFFERS, limits.memory // 4)), False),
        ("pids.max", str(_get_process_limit(limits)), True),
    )


def _build_settings_v2(limits: SandboxLimits) -> tuple[tuple[str, str, bool], ...]:
    return (
        ("memory.max", str(limits.memory), True),
        ("memory.swap.max", "0", False),
        ("pids.max", str(_get_process_limit(limits)), True),
    )


def _get_process_limit(limits: SandboxLimits) -> int:
    # 16 more for the jails themselves: bwrap's init, and the prepared next jail
    return limits.processes + 16


def _find_parents_v1() -> tuple[Path, ...]:
    """Return the parent folders of the controllers of memory, processes and the processor.

    The first two are required. That of the processor gives every session the same share of it;
    without it every busy process would get the same share.
    """
    own = {
        name: path
        for line in _read_lines(OWN)
        for names, path in [line.split(":", 2)[1:]]
        for name in names.split(",")
    }
    found = []
    for controller in ("memory", "pids", "cpu"):
        top = CGROUPS / controller
        here = top / own.get(controller, "/").lstrip("/")
        found.append(here if here.is_dir() else top)
    may = [os.access(folder / "cgroup.procs", os.W_OK) for folder in found]
    return tuple(found[: 2 + may[2]]) if all(may[:2]) else ()


def _find_parents_v2() -> tuple[Path, ...]:
    if "memory" not in _read_first_line(CGROUPS / "cgroup.controllers").split():
        return ()
    own = next((line[3:] for line in _read_lines(OWN) if line.startswith("0::")), "/")
    here = CGROUPS / own.lstrip("/").removesuffix("osiris-worker").rstrip("/")
    return (
        (here,) if os.access(here / "cgroup.procs", os.W_OK) and _delegate_controllers(here) else ()
    )


def _delegate_controllers(here: Path) -> bool:
    """Delegate the controllers to the children of a cgroup. Return whether that succeeded.

    A cgroup that contains processes cannot delegate, so this process moves into a child first.
    """
    if {"memory", "pids"} <= set(_read_first_line(here / "cgroup.subtree_control").split()):
        return True
    also = " +cpu" if "cpu" in _read_first_line(here / "cgroup.controllers").split() else ""
    with suppress(OSError):
        if here != CGROUPS:
            (here / "osiris-worker").mkdir(exist_ok=True)
            _write_value(here / "osiris-worker" / "cgroup.procs", os.getpid())
        _write_value(here / "cgroup.subtree_control", f"+memory +pids{also}")
        return True
    return False


def _write_value(path: Path, value: object) -> None:
    with path.open("w") as file:
        file.write(str(value))


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _read_first_line(path: Path) -> str:
    return (_read_lines(path) or [""])[0]
