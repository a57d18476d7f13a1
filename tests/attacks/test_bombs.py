"""Hostile commands that want all of the machine. While each goes off, another session goes on
working.

The controls take a little more than a session may have, unprotected: no bomb goes off outside of a
jail.
"""

import os
import secrets
import shlex
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attacks.attack import Attack, each, known, python, won
from tests.attacks.conftest import MIB, SMALL
from tests.attacks.test_survivors import kill, living

ALIVE = ("run", ("other", ["/bin/bash", "-c", "sleep 0.05; echo alive"]), {"timeout": 30})
# seconds that a command of a neighbour may take on a busy machine; alone it takes 0.02
PATIENCE = 6
MORE = SMALL.memory // MIB + 64
FORK = """
import os, time
for n in range({many}):
    try:
        if os.fork() == 0: time.sleep(1); os._exit(0)
    except OSError as error: print(n, error); break
else: print("won")
"""
THREADS = """
import threading
end = threading.Event()
try:
    for n in range({many}): threading.Thread(target=end.wait).start()
    print("won")
except RuntimeError as error: print(n, error)
end.set()
"""
DOUBLE = (
    "double() { [ $1 -gt 0 ] && { double $(($1 - 1)) | double $(($1 - 1)) & wait; }; }; double $0;"
    " true"
)
OPEN = """
import os, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
try:
    for n in range(1100): os.dup(0)
    print("won")
except OSError as error: print(n, error)
"""
CRASH = """
import os, resource, signal
try: resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
except (ValueError, OSError) as error: print(error)
if os.fork() == 0: os.kill(os.getpid(), signal.SIGSEGV)
if os.WCOREDUMP(os.wait()[1]): print("won")
"""
FILES = (
    "import os\nos.makedirs('many')\ntry:\n  for n in range({many}): open(f'many/{{n}}',"
    " 'x').close()\n  print('won')\n"
)
FILES += "except OSError as error: print(n, error)"


def fill(*folders: str) -> str:
    """Write more than a disk may hold, in files that are not too large; what was written is taken
    away again."""
    parts = " ".join(f"{folder}/part$n" for folder in folders)
    return (
        f"for n in 1 2 3 4 5 6 7; do for f in {parts}; do head -c 14000000 /dev/zero >$f || full=1;"
        f" done; done; [ $(du -scm {' '.join(f'{folder}/part*' for folder in folders)} | tail -1 |"
        f" cut -f1) -ge 80 ] && echo won; rm -f {' '.join(f'{folder}/part*' for folder in folders)}"
    )


BOMBS = (
    Attack(
        name="processes",
        script=python(FORK.format(many=SMALL.processes + 50)),
        held="refused at the limit",
        shows="as many could be started",
    ),
    Attack(
        name="threads",
        script=python(THREADS.format(many=SMALL.processes + 50)),
        held="refused at the limit",
        shows="as many could be started",
    ),
    Attack(
        name="processes that double",
        script=(
            f"bash -c {shlex.quote(DOUBLE)} 12 2>/dev/null & until=$((SECONDS + 2)); while ["
            " $SECONDS -lt $until ]; do found=(/proc/[0-9]*); [ ${#found[@]} -gt 150 ] && echo"
            " won && break; done"
        ),
        held="refused at the limit",
        shows="a small tree grew",
        easier=f"bash -c {shlex.quote(DOUBLE)} 4 && echo won",
    ),
    Attack(
        name="open files",
        script=python(OPEN),
        held="refused at the limit",
        shows="as many could be opened",
    ),
    Attack(
        name="a file of 5 GB with holes",
        script="truncate -s 5G large && echo won; rm -f large",
        held="file too large",
        shows="it could be made",
    ),
    Attack(
        name="a file of 5 GB",
        script=(
            "head -c 5000000000 /dev/zero >large; [ $(stat -c %s large) -gt 60000000 ] && echo won;"
            " rm -f large"
        ),
        held="file too large",
        shows="a larger one than allowed could be made",
        easier=(
            "head -c 68000000 /dev/zero >large; [ $(stat -c %s large) -gt 60000000 ] && echo won;"
            " rm -f large"
        ),
    ),
    Attack(
        name="files of all room",
        script="fallocate -l 40M one && fallocate -l 40M two && echo won; rm -f one two",
        held="no space left",
        shows="as much could be taken",
    ),
    Attack(
        name="the workspace",
        script=fill("."),
        held="no space left",
        shows="as much could be written",
    ),
    Attack(
        name="/tmp",
        script=fill("/tmp"),
        held="no space left",
        shows="as much could be written",
        easier=fill("."),
    ),
    Attack(
        name="the home",
        script=fill("$HOME"),
        held="no space left",
        shows="as much could be written",
        easier=fill("."),
    ),
    Attack(
        name="all three folders together",
        script=fill("/tmp", "$HOME", "."),
        held="they are one disk, and it is full",
        shows="as much could be written",
        easier=fill("."),
    ),
    Attack(
        name="/dev/shm",
        script=(
            "head -c 20000000 /dev/zero >/dev/shm/f; [ $(stat -c %s /dev/shm/f) -gt 18000000 ] &&"
            " echo won"
        ),
        held="no space left",
        shows="as much could be written",
        easier=(
            "head -c 20000000 /dev/zero >f; [ $(stat -c %s f) -gt 18000000 ] && echo won; rm -f f"
        ),
    ),
    Attack(
        name="small files",
        script=f"{python(FILES.format(many=SMALL.inodes + 100))}; rm -rf many",
        held="no space left",
        shows="many could be made",
        easier=f"{python(FILES.format(many=500))}; rm -rf many",
    ),
    Attack(
        name="higher limits",
        script="for kind in c f n t u; do (ulimit -H -$kind unlimited) && echo won; done",
        held="no limit can be raised",
        shows="some could be",
    ),
)


def beside(attacked, script: str, timeout: float = 20):
    """Run it in session "s" while session "other" works; what it printed, and what the other's
    commands came to."""
    bomb = ("run", ("s", ["/bin/bash", "-c", known(attacked, script)]), {"timeout": timeout})
    result, others = attacked.ask("beside", bomb, ALIVE)
    assert {other.output for other in others} == {b"alive\n"}
    assert max(other.seconds for other in others) < PATIENCE
    assert attacked.bash("echo alive").output == b"alive\n"
    return result


@pytest.fixture
def neighbour(attacked):
    attacked.create("other")
    yield attacked
    attacked.ask("destroy", "other")


@pytest.fixture(scope="session")
def controls(worker):
    """Tries the same script once."""
    tried = set()

    def attempt(script: str) -> None:
        if script not in tried:
            free = worker.unprotected(known(worker, script))
            assert won(free), f"the attack itself is broken: {free[-2000:]}"
            tried.add(script)

    return attempt


@each(*BOMBS)
def test_bomb(attack, neighbour, controls, verdict):
    """As many, as much, or as large as it can be."""
    controls(attack.easier or attack.script)
    result = beside(neighbour, attack.script)
    seen = result.output.decode(errors="replace")
    assert "over" in seen
    assert not won(seen), seen[-2000:]
    verdict(attack.held, attack.shows)


def _crash() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            ["/bin/bash", "-c", python(CRASH)], cwd=folder, capture_output=True, text=True
        ).stdout


CRASHED = _crash()
"""The control, tried while tests are collected: a process that had a sandbox once leaves no core
files any more."""


def test_a_core_file(lasting, verdict):
    assert won(CRASHED), f"the attack itself is broken: {CRASHED}"
    assert not won(lasting.bash(python(CRASH), name="lasting").output.decode())
    assert lasting.bash("ls core*", name="lasting").exit_code == 2
    verdict("none is written", "it was written")


def test_the_program_of_the_host_that_takes_core_files(lasting, verdict):
    """Where core_pattern names a program, the kernel starts it as root of the host, with the
    agent's data, whatever the limit is: core(5). Only for a limit of one byte it does not:
    fs/coredump.c."""
    limit = python("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")
    [others] = [
        line
        for line in Path(f"/proc/{os.getppid()}/limits").read_text().splitlines()
        if "core file" in line
    ]
    assert others.split()[4:6] != ["1", "1"]
    assert lasting.bash(limit, name="lasting").output == b"(1, 1)\n"
    verdict("the limit is one byte", "the tests' own is another")


MEMORY = {
    "anonymous memory": f"held = [bytearray(b'x') * (1 << 20) for _ in range({MORE})]",
    "files in memory": (
        "files = [os.memfd_create('x') for _ in range(10)]\n"
        f"for n in range({MORE}): os.pwrite(files[n % 10], b'x' * (1 << 20), n // 10 << 20)"
    ),
    "System V shared memory": (
        "libc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\n"
        f"for n in range({MORE // 32}):\n"
        "  one = libc.shmget(0, 32 << 20, 0o1600)\n"
        "  at = libc.shmat(one, None, 0)\n"
        "  libc.shmctl(one, 0, None)\n"
        "  ctypes.memset(at, 1, 32 << 20)"
    ),
    "memory shared by children": (
        f"held = mmap.mmap(-1, {MORE} << 20)\n"
        f"for n in range({MORE // 16}):\n"
        "  if not os.fork(): held[n << 24 : n + 1 << 24] = b'x' * (1 << 24); os._exit(0)\n"
        f"if any([os.wait()[1] for n in range({MORE // 16})]): sys.exit()"
    ),
    "what sockets hold": (
        f"held, total = [], 0\nwhile total < {MORE} << 20:\n  pair = socket.socketpair()\n "
        " held.append(pair)\n  pair[0].setblocking(False)\n  pair[0].setsockopt(socket.SOL_SOCKET,"
        " socket.SO_SNDBUF, 1 << 24)\n  with contextlib.suppress(BlockingIOError):\n    while"
        " True: total += pair[0].send(bytes(60000))"
    ),
}
SLOW_TO_FREE = """
import mmap, os, sys, time
size = 400 << 20
page = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
page.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, size, 4096): page[at] = 1
for n in range(150):
    if os.fork() == 0: break
time.sleep(60)
"""
"""Memory that 150 processes have in common: the kernel walks through it once for each of them when
they end."""


def test_a_jail_that_takes_the_kernel_long_to_end(worker, verdict):
    """The worker's event loop goes on meanwhile: `Attacked` looks at it."""
    worker.create("heavy", limits=replace(SMALL, memory=1 << 30, processes=200))
    try:
        assert worker.ask("cut_off", "heavy", ["/usr/bin/python3", "-c", SLOW_TO_FREE], 150) >= 150
        assert worker.bash("echo alive", name="heavy").output == b"alive\n"
    finally:
        worker.ask("destroy", "heavy")
    verdict("a thread waits for it", "its end takes the kernel a second")


GOES_FIRST = (
    "f=/proc/self/oom_score_adj; [ $(cat $f) = 1000 ] && ! (echo 0 >$f) 2>/dev/null && echo goes"
    " first"
)


@pytest.mark.parametrize("name", MEMORY)
def test_memory_bomb(name, neighbour, verdict):
    """An ordinary user has no cgroup here, and so no limit: what can be had then is that the jail
    goes first."""
    bomb = python(f"import contextlib, ctypes, mmap, os, socket, sys\n{MEMORY[name]}\nprint('won')")
    assert won(neighbour.unprotected(bomb)), "the attack itself is broken"
    result = beside(neighbour, bomb)
    assert neighbour.bash(GOES_FIRST).output == b"goes first\n"
    if neighbour.who == "ordinary" and won(result.output.decode()):
        verdict(
            "weak: no limit, but the first to go when the machine has none left",
            "as much could be had",
        )
        return
    assert not won(result.output.decode())
    assert result.out_of_memory
    verdict("killed at the limit", "as much could be had")


BUFFERS = {
    "TCP": (
        """
import socket, time
listening = socket.create_server(("127.0.0.1", 0), backlog=200)
pairs = []
for n in range(90):
    sends = socket.create_connection(listening.getsockname())
    sends.setblocking(False)
    pairs.append((sends, listening.accept()[0]))
held, quiet = 0, 0
while quiet < 5 and held < 320 << 20:
    before = held
    for sends, takes in pairs:
        try:
            while True: held += sends.send(bytes(1 << 16))
        except BlockingIOError: pass
    quiet = 0 if held > before else quiet + 1
    time.sleep(0.05)
"""
    ),
    "UDP": (
        """
import resource, socket
many = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 50
pairs = [socket.socket(type=socket.SOCK_DGRAM) for n in range(min(many, 950))]
for one in pairs:
    one.bind(("127.0.0.1", 0))
    one.setblocking(False)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for n in range(9): one.sendto(bytes(60000), one.getsockname())
held = 0
for one in pairs:
    try:
        while True: held += len(one.recv(1 << 16))
    except BlockingIOError: pass
"""
    ),
}
"""They fill what nobody reads; `held` is how many bytes that is."""
MOST_HELD = 120
"""MiB. The bound is half of it, and the kernel lets each socket have a little at any time."""


@pytest.mark.parametrize("name", BUFFERS)
def test_what_buffers_of_a_network_hold(name, neighbour, verdict):
    """They are one pool of the machine, and in version 1 of cgroups no memory that a cgroup
    counts."""
    judged = f"print('held', held >> 20, flush=True)\nif held > {MOST_HELD} << 20: print('won')"
    bomb = python(f"{BUFFERS[name]}\n{judged}")
    free = neighbour.unprotected(bomb)
    assert won(free), f"the attack itself is broken: {free[-2000:]}"
    result = beside(neighbour, bomb)
    seen = result.output.decode(errors="replace")
    if neighbour.who == "ordinary" and won(seen):
        verdict("weak: no cgroup, so only the machine's pool is a bound", "as much could be held")
        return
    assert not won(seen), seen
    assert "held" in seen or result.out_of_memory, seen
    verdict(
        f"{' '.join(seen.split()[:2])} MiB, then senders wait", f"{' '.join(free.split()[:2])} MiB"
    )


def test_a_neighbour_of_a_fork_bomb_that_runs_many_short_commands(neighbour, verdict):
    """What the kernel still counts for jails that are gone must not keep the next one from being
    made."""
    grows = (
        f"bash -c {shlex.quote(DOUBLE)} 12 2>/dev/null & sleep 3; found=(/proc/[0-9]*); echo"
        " ${#found[@]}"
    )
    bomb = ("run", ("s", ["/bin/bash", "-c", grows]), {})
    short = ("run", ("other", ["/bin/echo", "alive"]), {})
    grown, others = neighbour.ask("beside", bomb, short)
    assert int(grown.output) > 50, "the attack itself is broken"
    assert {other.output for other in others} == {b"alive\n"}
    verdict(f"all of its {len(others)} commands ran", "the bomb grew to its limit")


def test_processes_of_two_commands_together(attacked, verdict):
    """Each has fewer than the session may have; they begin when both are there."""
    meet = (
        "mktemp meet-XXXXXX >/dev/null; until [ $(ls meet-* | wc -l) -ge 2 ]; do sleep 0.01; done"
    )
    # they stay as long as their shell
    many = f"{meet}; {python(FORK.format(many=SMALL.processes - 10))}; sleep 0.5"
    assert won(attacked.unprotected(f"rm -f meet-*; ({many}) & ({many}); wait")), (
        "the attack itself is broken"
    )
    both = attacked.ask("together", [("run", ("s", ["/bin/bash", "-c", many]), {})] * 2)
    winners = sum(won(result.output.decode()) for result in both)
    if attacked.who == "ordinary" and winners == 2:
        verdict(
            "weak: no cgroup, so each command has the limit for itself", "as many could be started"
        )
        return
    assert winners < 2
    verdict("they share the session's limit", "as many could be started")


# ── the processor ─────────────────────────────────────────────────────────────────────────────────

BUSY = "for n in $(seq 30); do setsid bash -c 'while :; do :; done' & done; wait"
"""Every process in a session of its own: the kernel shares a processor out to those first."""
WORK = (
    "import time\nbegan = time.monotonic()\nfor n in range(2_000_000): pass\nprint(time.monotonic()"
    " - began)"
)


def test_busy_processes_leave_a_share_to_others(neighbour, verdict):
    work = ("run", ("other", ["/usr/bin/python3", "-I", "-S", "-c", WORK]), {})
    alone = min(float(neighbour.bash(python(WORK)).output) for _ in range(3))
    result, others = neighbour.ask(
        "beside", ("run", ("s", ["/bin/bash", "-c", BUSY]), {"timeout": 1.5}), work
    )
    assert result.timed_out
    among_equals = float(neighbour.bash(f"({BUSY}) & {python(WORK)}").output.split()[0])
    assert among_equals > 5 * alone, "the attack itself is broken"
    usual = statistics.median(float(other.output) for other in others)
    if neighbour.who == "root":
        assert usual < among_equals / 2
        verdict(
            "a neighbour has its share",
            f"in the same jail it is {among_equals / alone:.0f} times slower",
        )
    else:
        verdict(
            f"weak: a neighbour was {usual / alone:.0f} times slower, until the time was over",
            "the same",
        )


def test_a_command_that_never_ends_has_so_much_of_a_processor(worker, verdict):
    """`timeout` apart: one that is started again and again has a limit for each."""
    endless = "exec python3 -I -S -c 'while True: pass'"
    assert worker.unprotected(f"timeout 1.2 bash -c {endless!r}; echo $?").split() == ["124"]
    worker.create("brief", limits=replace(SMALL, cpu_seconds=1))
    result = worker.bash(f"({endless}); echo $?", name="brief", timeout=10)
    worker.ask("destroy", "brief")
    assert result.output.split()[-1] in (b"137", b"152")  # SIGKILL, SIGXCPU
    verdict("killed after its second", "it went on")


# ── what the kernel counts by user ────────────────────────────────────────────────────────────────

COUNTED = {
    "inotify instances": "libc.inotify_init1(0)",
    "descriptors under way": "give(n)",
    "message queues": "libc.mq_open(b'/%d' % n, 0o102, 0o600, None)",
    "terminals": "terminal()",
}
SHARED_BY_AN_ORDINARY_USER = {"descriptors under way", "message queues"}
TAKE = """
import array, ctypes, os, socket, sys, time
libc, pairs = ctypes.CDLL(None), []
def terminal():
    try: return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    except OSError: return -1
def give(n):
    if n % 100 == 0: pairs.append(socket.socketpair())
    try: return pairs[-1][0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 10))])
    except OSError: return -1
def take(one): return next((n for n in range(int(sys.argv[1])) if one(n) < 0), int(sys.argv[1]))
print(*(take(one) for one in (WAYS)), flush=True)
time.sleep(float(sys.argv[2]))
""".replace("WAYS", ", ".join(f"lambda n: {one}" for one in COUNTED.values()))


@pytest.fixture(scope="session")
def counts(worker):
    """How many of each could be had: by whom nothing is in the way, by a greedy command, by others
    meanwhile, and by one of them afterwards."""
    for name in ("greedy", "modest"):
        worker.create(name)
    greedy, modest = (
        ["/usr/bin/python3", "-I", "-S", "-c", TAKE, *words]
        for words in (("9999", "1"), ("1", "0"))
    )
    free = worker.namespaced(python(TAKE, "3", "0"))
    taken, others = worker.ask(
        "beside", ("run", ("greedy", greedy), {}), ("run", ("modest", modest), {})
    )
    for _ in range(200):  # the kernel takes some back a moment after the process is gone
        if (after := worker.ask("run", "modest", modest)).output.split() == [b"1"] * len(COUNTED):
            break
    for name in ("greedy", "modest"):
        worker.ask("destroy", name)
    rows = [[int(word) for word in text.split()] for text in (free, taken.output, after.output)]
    return *rows, [[int(word) for word in other.output.split()] for other in others]


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_of_the_jails_user(name, counts, worker, verdict):
    """Each session of a root worker has a user of its own. An ordinary user's sessions share what
    the kernel counts by user, as long as a command holds it; for some of that a session has a limit
    of its own."""
    free, taken, after, others = counts
    which = list(COUNTED).index(name)
    assert free[which] == 3, "the attack itself is broken"
    assert 0 < taken[which] < 9999
    assert after[which] == 1
    starved = any(other[which] == 0 for other in others)
    if worker.who == "ordinary" and name in SHARED_BY_AN_ORDINARY_USER:
        verdict(
            "weak: others have none while the command runs" if starved else "others have theirs",
            "it counts",
        )
        return
    assert not starved
    assert name != "terminals" or taken[which] <= 64
    verdict(f"{taken[which]} for one session, and others have theirs", "it counts")


def test_epoll_watches_are_counted_for_each_session(worker, verdict):
    """Some gigabytes of memory would be needed to use them up, so the test asks for the user that
    they are counted by (`epoll_watches` in the kernel's include/linux/sched/user.h). The control:
    commands of one session have one user."""
    for name in ("one", "another"):
        worker.create(name)
    seen = {name: _users_of(worker, name) for name in ("one", "another")}
    again = _users_of(worker, "one")
    for name in ("one", "another"):
        worker.ask("destroy", name)
    assert len(again) == 1
    assert again == seen["one"], "the attack itself is broken"
    if worker.who == "ordinary":
        assert seen["one"] == seen["another"]
        verdict(
            "weak: all sessions run as the worker's user", "commands of one session have one user"
        )
        return
    assert not seen["one"] & seen["another"]
    assert not (seen["one"] | seen["another"]) & {0, 61000, 61999}
    verdict("each session has a user of its own", "commands of one session have one user")


def _users_of(worker, name):
    """The host's users of a command's processes, asked by a file that each of them makes."""
    tag = f"osiris-{secrets.token_hex(8)}"
    worker.tell("run", name, ["/bin/bash", "-c", f"exec -a {tag} sleep 30"], timeout=15)
    found = set()
    try:
        until = time.monotonic() + 14
        while not found and time.monotonic() < until:
            found = {about for pid in living(tag) if (about := _uid(pid)) is not None}
            time.sleep(0.01)
    finally:
        kill(tag)
        worker._answer()
    return found


def _uid(pid):
    """Of a process that is inside already."""
    try:
        words = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
    except OSError:
        return None
    return int(words["Uid"].split()[0]) if len(words["NSpid"].split()) > 1 else None
