"""Ends a server of the tests when the process that started it has ended.

It runs beside the server (`python server_reaper.py FOLDER SIGNAL`) and reads from a pipe that
nothing writes to. The pipe is closed when its owner ends, even by `kill -9`. Then every process
whose working directory is in the folder is ended, and the folder is removed.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path


def find_processes(folder: Path) -> set[int]:
    """Return the processes whose working directory is the folder or below it: a server and
    everything it started."""
    pids = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has just ended, or belongs to another user
                if (entry / "cwd").readlink().is_relative_to(folder):
                    pids.add(int(entry.name))
    return pids - {os.getpid()}


def signal_processes(folder: Path, number: signal.Signals) -> None:
    """Send a signal to every process in the folder, including those that start meanwhile."""
    signalled: set[int] = set()
    while unsignalled := find_processes(folder) - signalled:
        for pid in unsignalled:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        signalled |= unsignalled


def end_processes(folder: Path, number: signal.Signals) -> None:
    """End the processes in the folder, also frozen ones: with the given signal, and with SIGKILL
    after two seconds."""
    signal_processes(folder, number)
    signal_processes(folder, signal.SIGCONT)
    deadline = time.monotonic() + 2
    while find_processes(folder):
        if time.monotonic() > deadline:
            signal_processes(folder, signal.SIGKILL)
        time.sleep(0.005)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_processes(Path(sys.argv[1]), signal.Signals(int(sys.argv[2])))
    shutil.rmtree(sys.argv[1])
