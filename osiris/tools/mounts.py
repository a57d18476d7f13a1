"""What root's workspaces leave mounted."""

import re
from pathlib import Path

from osiris.tools.disk import run

OCTAL = re.compile(r"\\([0-7]{3})")  # a space is \040 in the kernel's list: proc_pid_mounts(5)


def unmount_below(folder: Path) -> None:
    """Take out of sight what is mounted below a folder, so that the folder can be removed. Sessions are found again."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):  # the last is the innermost
        where = OCTAL.sub(lambda octal: chr(int(octal[1], 8)), line.split(" ")[1])
        if where.startswith(f"{folder}/"):
            run(["/usr/bin/umount", "-l", where])
