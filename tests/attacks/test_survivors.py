"""Hostile commands that do not end: daemons, processes that ignore signals or are stopped, and
commands whose worker is killed."""

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.attack import quote_python
from tests.attacks.conftest import STALLS, start_worker
from tests.attacks.worker import STALL_LIMIT
from tests.conftest import create_test_folder

IGNORE_SIGNALS = "for s in (1, 2, 3, 10, 12, 15): signal.signal(s, signal.SIG_IGN)\n"
DISCARD_OUTPUT = "null = os.open('/dev/null', 2); [os.dup2(null, n) for n in (0, 1, 2)]\n"
SLEEP = "time.sleep(30)\n"
DAEMONS = {
    "a daemon that forked twice and left its session": (
        IGNORE_SIGNALS
        + "if os.fork(): os._exit(0)\nos.setsid()\nif os.fork(): os._exit(0)\n"
        + DISCARD_OUTPUT
        + SLEEP
    ),
    "a daemon that holds the output": "if os.fork(): os._exit(0)\nos.setsid()\n" + SLEEP,
    "a daemon that is another one every moment": (
        IGNORE_SIGNALS
        + DISCARD_OUTPUT
        + "end = time.monotonic() + 3\nwhile time.monotonic() < end:\n  if os.fork(): os._exit(0)\n"
        "  time.sleep(0.01)\n"
    ),
    "a stopped child": (
        "if os.fork(): os._exit(0)\n" + DISCARD_OUTPUT + "os.kill(os.getpid(), signal.SIGSTOP)\n"
    ),
    "a sibling, not a child": (
        DISCARD_OUTPUT
        + "libc = ctypes.CDLL(None)\nif libc.syscall(56, 0x8000 | 17, 0, 0, 0, 0): os._exit(0)\n"
        + SLEEP
    ),
    "a child that has no signal of its parent's death": (
        "if os.fork(): os._exit(0)\n" + DISCARD_OUTPUT + "ctypes.CDLL(None).prctl(1, 0)\n" + SLEEP
    ),
}
ENDLESS_COMMANDS = {
    "a command that is deaf": IGNORE_SIGNALS + SLEEP,
    "a command that closed its output": "os.closerange(0, 3)\n" + SLEEP,
    "a command that stopped itself": "os.kill(os.getpid(), signal.SIGSTOP)\n" + SLEEP,
    "a command that stopped all others": "os.fork()\nos.kill(-1, signal.SIGSTOP)\n" + SLEEP,
    "a command that traps its end and begins anew": IGNORE_SIGNALS
    + "os.fork()\nwhile True:\n  pass\n",
    "a command that waits for nothing": "os.read(os.pipe()[0], 1)\n",
    "a tree of deaf sessions": (
        IGNORE_SIGNALS + "for _ in range(4):\n  if not os.fork(): os.setsid()\n" + SLEEP
    ),
}


PROCESS_NAMESPACE = "bwrap --unshare-pid --dev-bind / / --proc /proc --"
"""The jail of a control: a process in it that signals all others reaches only those in it."""


def build_script(code: str, tag: str) -> str:
    """Return a shell command that runs Python code in a process with the tag."""
    return quote_python(f"import ctypes, os, signal, sys, time\n{code}", tag)


def find_processes(tag: str) -> list[int]:
    """Return the processes of this machine that have the tag in their command lines. Zombies have
    no command line."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if tag.encode() in (entry / "cmdline").read_bytes():
                pids.append(int(entry.name))
    return pids


WAIT_TIMEOUT = 60  # seconds, of a busy machine


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    """Wait until a condition holds, and return whether it did within so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def kill_processes(tag: str) -> None:
    """Kill all processes with the tag. A process that forks and exits all the time may be missed,
    so the search is repeated until it finds none several times."""
    missed = 0
    while missed < 5:
        pids = find_processes(tag)
        missed = 0 if pids else missed + 1
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _provide_tag():
    tag = f"osiris-{secrets.token_hex(8)}"
    yield tag
    kill_processes(tag)


tag = pytest.fixture(_provide_tag, name="tag")
control_tag = pytest.fixture(_provide_tag, name="control_tag")


@pytest.mark.parametrize("name", DAEMONS)
def test_survivor(name, worker, shared_session, tag, control_tag, record_verdict):
    """A command starts the daemon, and ends at once."""
    command = build_script(DAEMONS[name], tag)
    worker.run_unprotected(f"{build_script(DAEMONS[name], control_tag)} >/dev/null 2>&1")
    assert wait_until(lambda: find_processes(control_tag), WAIT_TIMEOUT), (
        "the attack itself is broken"
    )
    kill_processes(control_tag)
    result = worker.run_script(f"{command}; echo over", name=shared_session, timeout=10)
    assert result.output == b"over\n"
    assert result.seconds < 5
    assert find_processes(tag) == []
    record_verdict("gone with its command", "it lived on")


@pytest.mark.parametrize("name", ENDLESS_COMMANDS)
def test_overstaying(name, worker, shared_session, tag, record_verdict):
    """The command is stopped at its timeout."""
    command = build_script(ENDLESS_COMMANDS[name], tag)
    worker.run_unprotected(f"setsid {PROCESS_NAMESPACE} {command} </dev/null >/dev/null 2>&1 &")
    assert wait_until(lambda: find_processes(tag), WAIT_TIMEOUT), "the attack itself is broken"
    kill_processes(tag)
    result = worker.run_script(command, name=shared_session, timeout=0.4)
    assert (result.timed_out, result.exit_code) == (True, None)
    assert result.seconds < 5
    assert find_processes(tag) == []
    assert worker.run_script("echo alive", name=shared_session).output == b"alive\n"
    record_verdict("killed with all it started", "it stayed when its shell had ended")


def test_a_command_whose_worker_is_killed(worker, tag, control_tag, record_verdict):
    code = f"{IGNORE_SIGNALS}ctypes.CDLL(None).prctl(1, 0)\nos.fork(); os.setsid()\n"
    inside_command = build_script(code + SLEEP, tag)
    outside_command = build_script(code + DISCARD_OUTPUT + SLEEP, control_tag)
    with create_test_folder() as folder:
        killed_worker = start_worker(worker.user, folder, worker.repo, worker.base)
        killed_worker.create_session("s")
        calls = [
            ("run_command", ("s", _build_argv(inside_command)), {}),
            ("run_unprotected", (_build_argv(outside_command),), {}),
        ]
        killed_worker.send_call("run_together", calls)
        assert wait_until(lambda: find_processes(tag) and find_processes(control_tag), WAIT_TIMEOUT)
        os.kill(killed_worker.pid, signal.SIGKILL)
        assert wait_until(lambda: not find_processes(tag), WAIT_TIMEOUT)
        assert find_processes(control_tag), "the attack itself is broken"
        killed_worker.close()
        next_worker = start_worker(worker.user, folder, worker.repo, worker.base)
        next_worker.call("remove_session", "s")
        next_worker.close()
        assert not (folder / "own/sandboxes/s").exists()
        assert f"{folder}/own/sandboxes/s" not in Path("/proc/self/mounts").read_text()
    record_verdict(
        "it dies with its worker, and the next one cleans up", "an unprotected one lived on"
    )


def _build_argv(script):
    return ["/bin/bash", "-c", script]


def test_a_worker_whose_loop_stands_still_is_seen(worker, record_verdict):
    """The check of every attack: a stall is the worker's fault, unless the machine stood still."""
    with pytest.raises(AssertionError, match="the worker's event loop stood still for"):
        worker.call("block_loop", 2 * STALL_LIMIT + 1)
    STALLS.pop()  # the report should not name this stall
    record_verdict("seen", "the loop was held on purpose")
