"""The disks of an ordinary user: a tmpfs of a limited size, held by a process that does nothing
else.

Only root may mount, but an ordinary user may do so in separate namespaces. These exist as long as a
process is in them, so one process stays there; it outlives its worker, and so does the disk. The
content counts as memory of this machine.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from osiris.core.errors import Unavailable
from osiris.core.ports.sandbox import MIB, SandboxLimits
from osiris.tools.sandbox.disks.disk import DEVPTS, Disk, probe_size_limit

NSENTER: Final = "/usr/bin/nsenter"
# Not a child of the worker, and without its streams: the worker may end.
HOLD: Final = (
    "/usr/bin/setsid",
    "--fork",
    "/usr/bin/unshare",
    "--map-root-user",
    "--mount",
    "/bin/sh",
    "-c",
)
# instances of inotify for one session, of the 128 that a user has in most cases
INOTIFY: Final = 32
# It writes its process id and start time by itself: the worker may be killed before the answer. The
# start time is the 20th word after the name: proc_pid_stat(5), field 22.
HELD: Final = """
mount -t tmpfs -o "size=$2,nr_inodes=$3,mode=0711,nosuid,nodev" osiris "$1" || exit
if [ "$5" ]; then (
    cd "$1" && umask 022 && mkdir usr etc pts && mount --bind "$5" etc
    mount -t overlay -o ro,nosuid,nodev,lowerdir=usr:/usr osiris usr
    mount -t overlay -o ro,nosuid,nodev,lowerdir=pts:etc osiris etc
    mount -t devpts -o "nosuid,noexec,$6" osiris pts
    echo "$7" >/proc/sys/user/max_inotify_instances
) 2>/dev/null; fi
set -- "$4" $(sed 's/.*) //' /proc/$$/stat)
printf '[%d, "%s"]' $$ "${21}" >"$1" || exit
echo held
exec /usr/bin/sleep infinity <&- >/dev/null 2>&1
"""
END_TIMEOUT: Final = 5.0  # seconds that a killed process may take to end


class TmpfsDisk(Disk):
    """A disk that a process holds; a file contains the process id."""

    def __init__(self, root: Path, name: str, *, uid: int | None, etc: Path | None = None) -> None:
        super().__init__(root, name, uid=uid, etc=etc)
        self._pid_file = root / "@held" / name

    @property
    def host_path(self) -> Path:
        return Path(f"/proc/{self._find_process()}/root{self.folder}")

    @property
    def nsenter_prefix(self) -> Sequence[str]:
        return (
            NSENTER,
            "--user",
            "--mount",
            "--preserve-credentials",
            f"--target={self._find_process()}",
            "--",
        )

    def create(self, limits: SandboxLimits) -> None:
        self.folder.mkdir(mode=0o711, exist_ok=True)
        self._pid_file.parent.mkdir(mode=0o700, exist_ok=True)
        words = [*HOLD, HELD, "hold", str(self.folder), str(limits.disk), str(limits.most_files)]
        words += [str(self._pid_file), str(self.etc or ""), DEVPTS, str(INOTIFY)]
        said = subprocess.run(
            words,
            env={"PATH": "/usr/bin:/bin"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        if said.stdout != b"held\n":
            raise Unavailable(
                "the session's disk:"
                f" {os.fsdecode(said.stderr)[-300:].strip() or 'no process holds it'}"
            )
        self._make_folders()

    def find_sealed(self) -> bool:
        return self._find_process() > 0 and self.is_sealed

    def remove(self) -> None:
        if (pid := self._find_process()) > 0:
            os.kill(pid, signal.SIGKILL)
            until = time.monotonic() + END_TIMEOUT
            while self._find_process() and time.monotonic() < until:
                time.sleep(0.001)
        self._pid_file.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.folder.rmdir()

    def _find_process(self) -> int:
        """Return the id of the process; 0 when there is none, also when another process has the id
        now."""
        try:
            pid, started = json.loads(self._pid_file.read_text())
        except (OSError, ValueError):
            return 0
        return int(pid) if started and _read_start_time(pid) == started else 0


def _read_start_time(pid: int) -> str:
    """Return the start time of a process; "" when there is none, or a dead one. See
    proc_pid_stat(5), fields 3 and 22."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def probe_tmpfs(root: Path) -> str:
    """Try a small disk. Return "" when it works, else the problem."""
    trial = TmpfsDisk(root, f"@trial-{secrets.token_hex(8)}", uid=None)
    try:
        trial.create(SandboxLimits(disk=4 * MIB, inodes=64))
        return probe_size_limit(trial, 8 * MIB)
    except (OSError, Unavailable, subprocess.SubprocessError) as error:
        return str(error)
    finally:
        trial.remove()
