"""Ends a server of the tests when whoever started it is gone.

It runs beside the server (`python keeper.py FOLDER SIGNAL`) and reads from a pipe that nobody
writes to. The pipe ends when its other end is closed, also by `kill -9`; then every process that is
at home in the folder is ended, and the folder removed.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def at_home(folder: Path) -> set[int]:
    """The processes whose working directory is the folder or below it: a server of ours and all it
    started."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # ended as we looked, or not ours to look at
                if (entry / "cwd").readlink().is_relative_to(folder):
                    found.add(int(entry.name))
    return found - {os.getpid()}


def signal_all(folder: Path, number: signal.Signals) -> None:
    """Send a signal to every process at home in the folder, also to those that appear meanwhile."""
    told: set[int] = set()
    while new := at_home(folder) - told:
        for pid in new:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        told |= new


def end(folder: Path, number: signal.Signals) -> None:
    """End what is at home in the folder, frozen or not: by a signal that it knows how to end by, or
    by force."""
    signal_all(folder, number)
    signal_all(folder, signal.SIGCONT)
    until = time.monotonic() + 2
    while at_home(folder):
        if time.monotonic() > until:
            signal_all(folder, signal.SIGKILL)
        time.sleep(0.005)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end(Path(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    shutil.rmtree(sys.argv[1])
