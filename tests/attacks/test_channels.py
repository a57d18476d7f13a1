"""Channels from one session to another through files that both see: locks, and notifications of
opened files."""

import pytest

from tests.attacks.attack import has_won, quote_python

HOLD_LOCKS = """
import fcntl, sys, time
files = [open(path) for path in sys.argv[2:]]
for file in files: fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(float(sys.argv[1]))
"""
TRY_LOCKS = """
import fcntl, sys
for path in sys.argv[1:]:
    file = open(path)
    try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: print("won", path)
print("felt")
"""
WATCH_FOLDER = """
import ctypes, os, select, sys, time
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
for path in sys.argv[3:]: assert libc.inotify_add_watch(fd, path.encode(), 0x20) >= 0
print("watching", flush=True)
until = time.monotonic() + float(sys.argv[1])
while (left := until - time.monotonic()) > 0:
    if select.select([fd], [], [], left)[0] and sys.argv[2].encode() in os.read(fd, 1 << 16):
        print("won")
        break
"""
SHARED_FILES = ("/usr/bin/env", "/etc/passwd")
HOLD_SECONDS = 1.5


@pytest.fixture
def two_sessions(worker):
    """Provide sessions "one" and "another"."""
    for name in ("one", "another"):
        worker.create_session(name)
    yield
    for name in ("one", "another"):
        worker.destroy_session(name)


def run_scripts(worker, first, other):
    """Run two scripts, each given with its session: the other again and again, until the first has
    ended. Return the output of the first, and the outputs of the other."""
    calls = [
        ("run_command", (name, ["/bin/bash", "-c", script]), {"timeout": 20})
        for name, script in (first, other)
    ]
    first_result, other_results = worker.call("run_beside", *calls)
    assert len(other_results) >= 3
    return first_result.output.decode(), [result.output.decode() for result in other_results]


def test_a_lock_on_a_file_that_all_sessions_see(worker, two_sessions, record_verdict):
    """An ordinary user cannot create device files, so its jails have those of the host."""
    files = SHARED_FILES if worker.user == "ordinary" else (*SHARED_FILES, "/dev/null")
    hold = quote_python(HOLD_LOCKS, str(HOLD_SECONDS), *files)
    try_lock = quote_python(TRY_LOCKS, *files)
    control_script = f"exec 3< <({hold}); read -u 3; {try_lock}"
    control_output = worker.run_unprotected(control_script)
    assert has_won(control_output), f"the attack itself is broken: {control_output}"
    control_output = worker.run_script(control_script, name="one").output.decode()
    assert has_won(control_output), f"the attack itself is broken: {control_output}"
    hold_output, try_outputs = run_scripts(worker, ("one", hold), ("another", try_lock))
    assert hold_output == "locked\n"
    assert set(try_outputs) == {"felt\n"}
    record_verdict("each session has inodes of its own", "it was felt, also in the same session")


def test_news_of_a_program_that_another_session_starts(worker, two_sessions, record_verdict):
    watch = quote_python(WATCH_FOLDER, str(HOLD_SECONDS), "env", "/usr/bin")
    start = "/usr/bin/env true"
    control_script = f"exec 3< <({watch}); read -u 3; {start}; cat <&3"
    for control_output in (
        worker.run_unprotected(control_script),
        worker.run_script(control_script, name="one").output.decode(),
    ):
        assert has_won(control_output), f"the attack itself is broken: {control_output}"
    output, _ = run_scripts(worker, ("one", watch), ("another", start))
    assert output == "watching\n"
    record_verdict("each session has inodes of its own", "it was seen, also in the same session")
