"""What root's workspaces leave mounted."""

from pathlib import Path

from osiris.tools.disk import run


def unmount_below(folder: Path) -> None:
    """Take out of sight what is mounted below a folder, so that the folder can be removed. Sessions are found again."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):  # the last is the innermost
        where = line.split(" ")[1].encode().decode("unicode_escape")  # a space is \040 there: proc_pid_mounts(5)
        if where.startswith(f"{folder}/"):
            run(["/usr/bin/umount", "-l", where])
