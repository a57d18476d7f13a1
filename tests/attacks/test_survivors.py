"""Hostile commands that do not want to end: daemons, deaf and stopped processes, and those whose
worker is killed."""

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path

import pytest

from tests.attacks.attack import python
from tests.attacks.conftest import STALLS, start
from tests.attacks.worker import STALL
from tests.conftest import a_place

DEAF = "for s in (1, 2, 3, 10, 12, 15): signal.signal(s, signal.SIG_IGN)\n"
QUIET = "null = os.open('/dev/null', 2); [os.dup2(null, n) for n in (0, 1, 2)]\n"
SLEEP = "time.sleep(30)\n"
DAEMONS = {
    "a daemon that forked twice and left its session": (
        DEAF + "if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n" + QUIET + SLEEP
    ),
    "a daemon that holds the output": "if os.fork(): os._exit(0)\nos.setsid()\n" + SLEEP,
    "a daemon that is another one every moment": (
        DEAF
        + QUIET
        + "end = time.monotonic() + 3\nwhile time.monotonic() < end:\n  if os.fork(): os._exit(0)\n"
        "  time.sleep(0.01)\n"
    ),
    "a stopped child": (
        "if os.fork(): os._exit(0)\n" + QUIET + "os.kill(os.getpid(), signal.SIGSTOP)\n"
    ),
    "a sibling, not a child": (
        QUIET
        + "libc = ctypes.CDLL(None)\nif libc.syscall(56, 0x8000 | 17, 0, 0, 0, 0): os._exit(0)\n"
        + SLEEP
    ),
    "a child that has no signal of its parent's death": (
        "if os.fork(): os._exit(0)\n" + QUIET + "ctypes.CDLL(None).prctl(1, 0)\n" + SLEEP
    ),
}
STAYERS = {
    "a command that is deaf": DEAF + SLEEP,
    "a command that closed its output": "os.closerange(0, 3)\n" + SLEEP,
    "a command that stopped itself": "os.kill(os.getpid(), signal.SIGSTOP)\n" + SLEEP,
    "a command that stopped all others": "os.fork()\nos.kill(-1, signal.SIGSTOP)\n" + SLEEP,
    "a command that traps its end and begins anew": DEAF + "os.fork()\nwhile True:\n  pass\n",
    "a command that waits for nothing": "os.read(os.pipe()[0], 1)\n",
    "a tree of deaf sessions": (
        DEAF + "for _ in range(4):\n  if not os.fork(): os.setsid()\n" + SLEEP
    ),
}


PROCESSES_APART = "bwrap --unshare-pid --dev-bind / / --proc /proc --"
"""A process that signals all others may do that to those in here."""


def script(code: str, tag: str) -> str:
    return python(f"import ctypes, os, signal, sys, time\n{code}", tag)


def living(tag: str) -> list[int]:
    """The processes of this machine that have the tag in their words; dead ones that wait to be
    fetched have none."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if tag.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def within(seconds, holds) -> bool:
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def kill(tag: str) -> None:
    """All that have it, also one that is another one every moment, and so may be missed for
    some."""
    missed = 0
    while missed < 5:
        pids = living(tag)
        missed = 0 if pids else missed + 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _tag():
    tag = f"osiris-{secrets.token_hex(8)}"
    yield tag
    kill(tag)


tag = pytest.fixture(_tag, name="tag")
free = pytest.fixture(_tag, name="free")


@pytest.mark.parametrize("name", DAEMONS)
def test_survivor(name, lasting, tag, free, verdict):
    """It is started by a command that ends at once."""
    started = script(DAEMONS[name], tag)
    lasting.unprotected(f"{script(DAEMONS[name], free)} >/dev/null 2>&1")
    assert within(5, lambda: living(free)), "the attack itself is broken"
    kill(free)
    result = lasting.bash(f"{started}; echo over", name="lasting", timeout=10)
    assert result.output == b"over\n"
    assert result.seconds < 5
    assert living(tag) == []
    verdict("gone with its command", "it lived on")


@pytest.mark.parametrize("name", STAYERS)
def test_overstaying(name, lasting, tag, verdict):
    """It is stopped when its time is over."""
    stays = script(STAYERS[name], tag)
    lasting.unprotected(f"setsid {PROCESSES_APART} {stays} </dev/null >/dev/null 2>&1 &")
    assert within(5, lambda: living(tag)), "the attack itself is broken"
    kill(tag)
    result = lasting.bash(stays, name="lasting", timeout=0.4)
    assert (result.timed_out, result.exit_code) == (True, None)
    assert result.seconds < 5
    assert living(tag) == []
    assert lasting.bash("echo alive", name="lasting").output == b"alive\n"
    verdict("killed with all it started", "it stayed when its shell had ended")


def test_a_command_whose_worker_is_killed(worker, tag, free, verdict):
    deaf = f"{DEAF}ctypes.CDLL(None).prctl(1, 0)\nos.fork(); os.setsid()\n"
    inside = script(deaf + SLEEP, tag)
    outside = script(deaf + QUIET + SLEEP, free)
    with a_place() as place:
        doomed = start(worker.who, place, worker.repo, worker.base)
        doomed.create("s")
        calls = [("run", ("s", _bash(inside)), {}), ("plain", (_bash(outside),), {})]
        doomed.tell("together", calls)
        assert within(5, lambda: living(tag) and living(free))
        os.kill(doomed.pid, signal.SIGKILL)
        assert within(5, lambda: not living(tag))
        assert living(free), "the attack itself is broken"
        doomed.close()
        heir = start(worker.who, place, worker.repo, worker.base)
        heir.ask("remove", "s")
        heir.close()
        assert not (place / "own/sandboxes/s").exists()
        assert f"{place}/own/sandboxes/s" not in Path("/proc/self/mounts").read_text()
    verdict("it dies with its worker, and the next one cleans up", "an unprotected one lived on")


def _bash(text):
    return ["/bin/bash", "-c", text]


def test_a_worker_whose_loop_stands_still_is_seen(worker, verdict):
    """The guard of every attack: a stall is the worker's, unless the machine stood still too."""
    with pytest.raises(AssertionError, match="the worker's event loop stood still for"):
        worker.ask("hold_loop", 2 * STALL + 1)
    STALLS.pop()  # it is none that the report should name
    verdict("seen", "the loop was held on purpose")
