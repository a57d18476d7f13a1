"""Name what a run of the tests has left on this machine.

    left_behind.py save FILE       note what there is before
    left_behind.py compare FILE    print what has come since; exit 1 when there is anything

It looks for processes, mounts, loop devices, cgroups and temporary folders of Osiris. A cgroup is
free a moment after its last process is dead, so `compare` looks again for up to ten seconds.
"""

import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = 10.0  # seconds
PROCESSES = re.compile(r"osiris|tests[./](attacks|server_reaper|forkserver)|fake_internet")


def list_processes() -> set[str]:
    """Return the command lines of processes that have to do with Osiris, by their id."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if PROCESSES.search(words) and int(folder.name) not in own_processes():
            found.add(f"process {folder.name}: {words.strip()[:120]}")
    return found


def own_processes() -> set[int]:
    """Return this process and those that started it."""
    process = os.getpid()
    found = set()
    while process > 1:
        found.add(process)
        status = Path(f"/proc/{process}/status").read_text()
        process = int(re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)[1])
    return found


def list_mounts() -> set[str]:
    lines = Path("/proc/mounts").read_text().splitlines()
    return {f"mount: {line.split()[1]}" for line in lines if "osiris" in line}


def list_loop_devices() -> set[str]:
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    names = [file.read_text().strip() for file in files]
    return {f"loop device of {name}" for name in names if "osiris" in name}


def list_cgroups() -> set[str]:
    walked = os.walk("/sys/fs/cgroup")
    return {
        f"cgroup: {top}/{name}"
        for top, names, _ in walked
        for name in names
        if name.startswith("osiris-")
    }


def list_folders() -> set[str]:
    return {f"folder: {path}" for path in Path(tempfile.gettempdir()).glob("osiris-*")}


def list_all() -> set[str]:
    return {
        *list_processes(),
        *list_mounts(),
        *list_loop_devices(),
        *list_cgroups(),
        *list_folders(),
    }


def main() -> int:
    action, file = sys.argv[1], Path(sys.argv[2])
    if action == "save":
        file.write_text(json.dumps(sorted(list_all())))
        return 0
    before = set(json.loads(file.read_text()))
    until = time.monotonic() + PATIENCE
    while (left := list_all() - before) and time.monotonic() < until:
        time.sleep(0.2)
    for line in sorted(left):
        print(f"left behind: {line}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
