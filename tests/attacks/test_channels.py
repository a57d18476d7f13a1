"""Ways from one session to another through files that both see: locks, and news of what is
opened."""

import pytest

from tests.attacks.attack import python, won

HOLD = """
import fcntl, sys, time
files = [open(path) for path in sys.argv[2:]]
for file in files: fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(float(sys.argv[1]))
"""
FEEL = """
import fcntl, sys
for path in sys.argv[1:]:
    file = open(path)
    try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: print("won", path)
print("felt")
"""
WATCH = """
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
SEEN_BY_ALL = ("/usr/bin/env", "/etc/passwd")
LONG = 1.5


@pytest.fixture
def two(worker):
    for name in ("one", "another"):
        worker.create(name)
    yield worker
    for name in ("one", "another"):
        worker.ask("destroy", name)


def beside(two, first, other):
    """Both scripts, each in a session of its own; the other again and again, until the first is
    over."""
    calls = [
        ("run", (name, ["/bin/bash", "-c", script]), {"timeout": 20})
        for name, script in (first, other)
    ]
    result, others = two.ask("beside", *calls)
    assert len(others) >= 3
    return result.output.decode(), [other.output.decode() for other in others]


def test_a_lock_on_a_file_that_all_sessions_see(two, verdict):
    """An ordinary user cannot make device files, so its jails have those of the host."""
    files = SEEN_BY_ALL if two.who == "ordinary" else (*SEEN_BY_ALL, "/dev/null")
    hold = python(HOLD, str(LONG), *files)
    feel = python(FEEL, *files)
    free = two.unprotected(f"exec 3< <({hold}); read -u 3; {feel}")
    assert won(free), f"the attack itself is broken: {free}"
    same = two.bash(f"exec 3< <({hold}); read -u 3; {feel}", name="one").output.decode()
    assert won(same), f"the attack itself is broken: {same}"
    held, felt = beside(two, ("one", hold), ("another", feel))
    assert held == "locked\n"
    assert set(felt) == {"felt\n"}
    verdict("each session has inodes of its own", "it was felt, also in the same session")


def test_news_of_a_program_that_another_session_starts(two, verdict):
    watch = python(WATCH, str(LONG), "env", "/usr/bin")
    start = "/usr/bin/env true"
    easier = f"exec 3< <({watch}); read -u 3; {start}; cat <&3"
    for free in (two.unprotected(easier), two.bash(easier, name="one").output.decode()):
        assert won(free), f"the attack itself is broken: {free}"
    seen, _ = beside(two, ("one", watch), ("another", start))
    assert seen == "watching\n"
    verdict("each session has inodes of its own", "it was seen, also in the same session")
