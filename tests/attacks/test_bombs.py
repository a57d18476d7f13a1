"""Hostile commands that try to use up the machine ("bombs"). While each one runs, another session
continues to work.

The controls use only a little more than a session may have, without protection: no bomb runs
outside of a jail.
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

from tests.attacks.attack import Attack, complete_script, has_won, parametrize_attacks, quote_python
from tests.attacks.conftest import MIB, SMALL_LIMITS
from tests.attacks.test_survivors import find_processes, kill_processes

NEIGHBOUR_CALL = (
    "run_command",
    ("other", ["/bin/bash", "-c", "sleep 0.05; echo alive"]),
    {"timeout": 30},
)
# seconds that a command of the neighbour may take on a busy machine; alone it takes 0.02
NEIGHBOUR_TIMEOUT = 6
MIB_ABOVE_LIMIT = SMALL_LIMITS.memory // MIB + 64
START_PROCESSES = """
import os, time
for n in range({many}):
    try:
        if os.fork() == 0: time.sleep(1); os._exit(0)
    except OSError as error: print(n, error); break
else: print("won")
"""
START_THREADS = """
import threading
end = threading.Event()
try:
    for n in range({many}): threading.Thread(target=end.wait).start()
    print("won")
except RuntimeError as error: print(n, error)
end.set()
"""
DOUBLE_PROCESSES = (
    "double() { [ $1 -gt 0 ] && { double $(($1 - 1)) | double $(($1 - 1)) & wait; }; }; double $0;"
    " true"
)
OPEN_FILES = """
import os, resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
try:
    for n in range(1100): os.dup(0)
    print("won")
except OSError as error: print(n, error)
"""
DUMP_CORE = """
import os, resource, signal
try: resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
except (ValueError, OSError) as error: print(error)
if os.fork() == 0: os.kill(os.getpid(), signal.SIGSEGV)
if os.WCOREDUMP(os.wait()[1]): print("won")
"""
CREATE_FILES = (
    "import os\nos.makedirs('many')\ntry:\n  for n in range({many}): open(f'many/{{n}}',"
    " 'x').close()\n  print('won')\n"
)
CREATE_FILES += "except OSError as error: print(n, error)"


def fill_folders(*folders: str) -> str:
    """Return a script that writes more than a disk may hold, in files below the size limit, and
    removes them."""
    parts = " ".join(f"{folder}/part$n" for folder in folders)
    return (
        f"for n in 1 2 3 4 5 6 7; do for f in {parts}; do head -c 14000000 /dev/zero >$f || full=1;"
        f" done; done; [ $(du -scm {' '.join(f'{folder}/part*' for folder in folders)} | tail -1 |"
        f" cut -f1) -ge 80 ] && echo won; rm -f {' '.join(f'{folder}/part*' for folder in folders)}"
    )


BOMBS = (
    Attack(
        name="processes",
        script=quote_python(START_PROCESSES.format(many=SMALL_LIMITS.processes + 50)),
        outcome="refused at the limit",
        control_outcome="as many could be started",
    ),
    Attack(
        name="threads",
        script=quote_python(START_THREADS.format(many=SMALL_LIMITS.processes + 50)),
        outcome="refused at the limit",
        control_outcome="as many could be started",
    ),
    Attack(
        name="processes that double",
        script=(
            f"bash -c {shlex.quote(DOUBLE_PROCESSES)} 12 2>/dev/null & until=$((SECONDS + 2)); while ["
            " $SECONDS -lt $until ]; do found=(/proc/[0-9]*); [ ${#found[@]} -gt 150 ] && echo"
            " won && break; done"
        ),
        outcome="refused at the limit",
        control_outcome="a small tree grew",
        control_script=f"bash -c {shlex.quote(DOUBLE_PROCESSES)} 4 && echo won",
    ),
    Attack(
        name="open files",
        script=quote_python(OPEN_FILES),
        outcome="refused at the limit",
        control_outcome="as many could be opened",
    ),
    Attack(
        name="a file of 5 GB with holes",
        script="truncate -s 5G large && echo won; rm -f large",
        outcome="file too large",
        control_outcome="it could be made",
    ),
    Attack(
        name="a file of 5 GB",
        script=(
            "head -c 5000000000 /dev/zero >large; [ $(stat -c %s large) -gt 60000000 ] && echo won;"
            " rm -f large"
        ),
        outcome="file too large",
        control_outcome="a larger one than allowed could be made",
        control_script=(
            "head -c 68000000 /dev/zero >large; [ $(stat -c %s large) -gt 60000000 ] && echo won;"
            " rm -f large"
        ),
    ),
    Attack(
        name="files of all room",
        script="fallocate -l 40M one && fallocate -l 40M two && echo won; rm -f one two",
        outcome="no space left",
        control_outcome="as much could be taken",
    ),
    Attack(
        name="the workspace",
        script=fill_folders("."),
        outcome="no space left",
        control_outcome="as much could be written",
    ),
    Attack(
        name="/tmp",
        script=fill_folders("/tmp"),
        outcome="no space left",
        control_outcome="as much could be written",
        control_script=fill_folders("."),
    ),
    Attack(
        name="the home",
        script=fill_folders("$HOME"),
        outcome="no space left",
        control_outcome="as much could be written",
        control_script=fill_folders("."),
    ),
    Attack(
        name="all three folders together",
        script=fill_folders("/tmp", "$HOME", "."),
        outcome="they are one disk, and it is full",
        control_outcome="as much could be written",
        control_script=fill_folders("."),
    ),
    Attack(
        name="/dev/shm",
        script=(
            "head -c 20000000 /dev/zero >/dev/shm/f; [ $(stat -c %s /dev/shm/f) -gt 18000000 ] &&"
            " echo won"
        ),
        outcome="no space left",
        control_outcome="as much could be written",
        control_script=(
            "head -c 20000000 /dev/zero >f; [ $(stat -c %s f) -gt 18000000 ] && echo won; rm -f f"
        ),
    ),
    Attack(
        name="small files",
        script=f"{quote_python(CREATE_FILES.format(many=SMALL_LIMITS.inodes + 100))}; rm -rf many",
        outcome="no space left",
        control_outcome="many could be made",
        control_script=f"{quote_python(CREATE_FILES.format(many=500))}; rm -rf many",
    ),
    Attack(
        name="higher limits",
        script="for kind in c f n t u; do (ulimit -H -$kind unlimited) && echo won; done",
        outcome="no limit can be raised",
        control_outcome="some could be",
    ),
)


def run_bomb(worker, script: str, timeout: float = 20):
    """Run a script in session "s" while session "other" works. Assert that all commands of both
    sessions still work, and return the result of the script."""
    argv = ["/bin/bash", "-c", complete_script(worker, script)]
    bomb = ("run_command", ("s", argv), {"timeout": timeout})
    result, neighbour_results = worker.call("run_beside", bomb, NEIGHBOUR_CALL)
    assert {result.output for result in neighbour_results} == {b"alive\n"}
    assert max(result.seconds for result in neighbour_results) < NEIGHBOUR_TIMEOUT
    assert worker.run_script("echo alive").output == b"alive\n"
    return result


@pytest.fixture
def neighbour_session(worker, fresh_session):
    """Provide a session "other" beside session "s"."""
    worker.create_session("other")
    yield "other"
    worker.destroy_session("other")


@pytest.fixture(scope="session")
def check_control(worker):
    """Provide a function that asserts that a control succeeds. It tries each script only once."""
    tried = set()

    def check(script: str) -> None:
        if script not in tried:
            control_output = worker.run_unprotected(complete_script(worker, script))
            assert has_won(control_output), f"the attack itself is broken: {control_output[-2000:]}"
            tried.add(script)

    return check


@parametrize_attacks(*BOMBS)
def test_bomb(attack, worker, neighbour_session, check_control, record_verdict):
    """The command creates as many or as large things as it can."""
    check_control(attack.control_script or attack.script)
    result = run_bomb(worker, attack.script)
    output = result.output.decode(errors="replace")
    assert "over" in output
    assert not has_won(output), output[-2000:]
    record_verdict(attack.outcome, attack.control_outcome)


def _dump_core() -> str:
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            ["/bin/bash", "-c", quote_python(DUMP_CORE)], cwd=folder, capture_output=True, text=True
        ).stdout


CORE_CONTROL_OUTPUT = _dump_core()
"""The output of the control. It runs while tests are collected, because a process that has had a
sandbox leaves no core files."""


def test_a_core_file(worker, shared_session, record_verdict):
    assert has_won(CORE_CONTROL_OUTPUT), f"the attack itself is broken: {CORE_CONTROL_OUTPUT}"
    assert not has_won(
        worker.run_script(quote_python(DUMP_CORE), name=shared_session).output.decode()
    )
    assert worker.run_script("ls core*", name=shared_session).exit_code == 2
    record_verdict("none is written", "it was written")


def test_the_program_of_the_host_that_takes_core_files(worker, shared_session, record_verdict):
    """If core_pattern names a program, the kernel starts it as root of the host, with the agent's
    data, at any limit (core(5)) except a limit of one byte (fs/coredump.c)."""
    limit = quote_python("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))")
    [core_limit] = [
        line
        for line in Path(f"/proc/{os.getppid()}/limits").read_text().splitlines()
        if "core file" in line
    ]
    assert core_limit.split()[4:6] != ["1", "1"]
    assert worker.run_script(limit, name=shared_session).output == b"(1, 1)\n"
    record_verdict("the limit is one byte", "the tests' own is another")


MEMORY_BOMBS = {
    "anonymous memory": f"held = [bytearray(b'x') * (1 << 20) for _ in range({MIB_ABOVE_LIMIT})]",
    "files in memory": (
        "files = [os.memfd_create('x') for _ in range(10)]\n"
        f"for n in range({MIB_ABOVE_LIMIT}): os.pwrite(files[n % 10], b'x' * (1 << 20), n // 10 << 20)"
    ),
    "System V shared memory": (
        "libc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\n"
        f"for n in range({MIB_ABOVE_LIMIT // 32}):\n"
        "  one = libc.shmget(0, 32 << 20, 0o1600)\n"
        "  at = libc.shmat(one, None, 0)\n"
        "  libc.shmctl(one, 0, None)\n"
        "  ctypes.memset(at, 1, 32 << 20)"
    ),
    "memory shared by children": (
        f"held = mmap.mmap(-1, {MIB_ABOVE_LIMIT} << 20)\n"
        f"for n in range({MIB_ABOVE_LIMIT // 16}):\n"
        "  if not os.fork(): held[n << 24 : n + 1 << 24] = b'x' * (1 << 24); os._exit(0)\n"
        f"if any([os.wait()[1] for n in range({MIB_ABOVE_LIMIT // 16})]): sys.exit()"
    ),
    "what sockets hold": (
        f"held, total = [], 0\nwhile total < {MIB_ABOVE_LIMIT} << 20:\n  pair = socket.socketpair()\n "
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
"""Memory that 150 processes share: the kernel walks through it once for each of them when they
end."""


def test_a_jail_that_takes_the_kernel_long_to_end(worker, record_verdict):
    """Meanwhile the worker's event loop is not blocked: `WorkerUnderAttack` checks that."""
    worker.create_session("heavy", limits=replace(SMALL_LIMITS, memory=1 << 30, processes=200))
    try:
        argv = ["/usr/bin/python3", "-c", SLOW_TO_FREE]
        assert worker.call("cancel_command", "heavy", argv, 150) >= 150
        assert worker.run_script("echo alive", name="heavy").output == b"alive\n"
    finally:
        worker.destroy_session("heavy")
    record_verdict("a thread waits for it", "its end takes the kernel a second")


CHECK_OOM_SCORE = (
    "f=/proc/self/oom_score_adj; [ $(cat $f) = 1000 ] && ! (echo 0 >$f) 2>/dev/null && echo goes"
    " first"
)


@pytest.mark.parametrize("name", MEMORY_BOMBS)
def test_memory_bomb(name, worker, neighbour_session, record_verdict):
    """A worker of an ordinary user has no cgroup here, so its sessions have no memory limit. Then
    the kernel must at least kill the jail first."""
    imports = "import contextlib, ctypes, mmap, os, socket, sys"
    bomb = quote_python(f"{imports}\n{MEMORY_BOMBS[name]}\nprint('won')")
    assert has_won(worker.run_unprotected(bomb)), "the attack itself is broken"
    result = run_bomb(worker, bomb)
    assert worker.run_script(CHECK_OOM_SCORE).output == b"goes first\n"
    if worker.user == "ordinary" and has_won(result.output.decode()):
        record_verdict(
            "weak: no limit, but the first to go when the machine has none left",
            "as much could be had",
        )
        return
    assert not has_won(result.output.decode())
    assert result.out_of_memory
    record_verdict("killed at the limit", "as much could be had")


BUFFER_BOMBS = {
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
"""Programs that fill buffers that are never read; `held` is the number of bytes in them."""
BUFFER_LIMIT = 120
"""MiB. The limit of a session is half of it, but the kernel always gives each socket a little."""


@pytest.mark.parametrize("name", BUFFER_BOMBS)
def test_what_buffers_of_a_network_hold(name, worker, neighbour_session, record_verdict):
    """All network buffers come from one pool of the machine. Version 1 of cgroups does not count
    them as memory of a cgroup."""
    judgement = (
        f"print('held', held >> 20, flush=True)\nif held > {BUFFER_LIMIT} << 20: print('won')"
    )
    bomb = quote_python(f"{BUFFER_BOMBS[name]}\n{judgement}")
    control_output = worker.run_unprotected(bomb)
    assert has_won(control_output), f"the attack itself is broken: {control_output[-2000:]}"
    result = run_bomb(worker, bomb)
    output = result.output.decode(errors="replace")
    if worker.user == "ordinary" and has_won(output):
        record_verdict(
            "weak: no cgroup, so only the machine's pool is a bound", "as much could be held"
        )
        return
    assert not has_won(output), output
    assert "held" in output or result.out_of_memory, output
    record_verdict(
        f"{' '.join(output.split()[:2])} MiB, then senders wait",
        f"{' '.join(control_output.split()[:2])} MiB",
    )


def test_a_neighbour_of_a_fork_bomb_that_runs_many_short_commands(
    worker, neighbour_session, record_verdict
):
    """The kernel may still count processes of jails that have ended. That must not prevent new
    jails."""
    grow_script = (
        f"bash -c {shlex.quote(DOUBLE_PROCESSES)} 12 2>/dev/null & sleep 3; found=(/proc/[0-9]*); echo"
        " ${#found[@]}"
    )
    bomb = ("run_command", ("s", ["/bin/bash", "-c", grow_script]), {})
    short = ("run_command", ("other", ["/bin/echo", "alive"]), {})
    bomb_result, neighbour_results = worker.call("run_beside", bomb, short)
    assert int(bomb_result.output) > 50, "the attack itself is broken"
    assert {result.output for result in neighbour_results} == {b"alive\n"}
    record_verdict(
        f"all of its {len(neighbour_results)} commands ran", "the bomb grew to its limit"
    )


def test_processes_of_two_commands_together(worker, fresh_session, record_verdict):
    """Each command has fewer processes than the session may have. They start when both run."""
    wait_for_both = (
        "mktemp meet-XXXXXX >/dev/null; until [ $(ls meet-* | wc -l) -ge 2 ]; do sleep 0.01; done"
    )
    start_processes = quote_python(START_PROCESSES.format(many=SMALL_LIMITS.processes - 10))
    # the processes stay as long as their shell
    script = f"{wait_for_both}; {start_processes}; sleep 0.5"
    assert has_won(worker.run_unprotected(f"rm -f meet-*; ({script}) & ({script}); wait")), (
        "the attack itself is broken"
    )
    both = worker.call(
        "run_together", [("run_command", ("s", ["/bin/bash", "-c", script]), {})] * 2
    )
    winners = sum(has_won(result.output.decode()) for result in both)
    if worker.user == "ordinary" and winners == 2:
        record_verdict(
            "weak: no cgroup, so each command has the limit for itself", "as many could be started"
        )
        return
    assert winners < 2
    record_verdict("they share the session's limit", "as many could be started")


# ── the processor ─────────────────────────────────────────────────────────────────────────────────

BUSY_PROCESSES = "for n in $(seq 30); do setsid bash -c 'while :; do :; done' & done; wait"
"""Each process has a process session of its own, because the kernel first divides a processor
between those."""
TIME_LOOP = (
    "import time\nbegan = time.monotonic()\nfor n in range(2_000_000): pass\nprint(time.monotonic()"
    " - began)"
)


def test_busy_processes_leave_a_share_to_others(worker, neighbour_session, record_verdict):
    work = ("run_command", ("other", ["/usr/bin/python3", "-I", "-S", "-c", TIME_LOOP]), {})
    alone = min(float(worker.run_script(quote_python(TIME_LOOP)).output) for _ in range(3))
    result, neighbour_results = worker.call(
        "run_beside",
        ("run_command", ("s", ["/bin/bash", "-c", BUSY_PROCESSES]), {"timeout": 1.5}),
        work,
    )
    assert result.timed_out
    result_among_equals = worker.run_script(f"({BUSY_PROCESSES}) & {quote_python(TIME_LOOP)}")
    among_equals = float(result_among_equals.output.split()[0])
    assert among_equals > 5 * alone, "the attack itself is broken"
    usual = statistics.median(float(result.output) for result in neighbour_results)
    if worker.user == "root":
        assert usual < among_equals / 2
        record_verdict(
            "a neighbour has its share",
            f"in the same jail it is {among_equals / alone:.0f} times slower",
        )
    else:
        record_verdict(
            f"weak: a neighbour was {usual / alone:.0f} times slower, until the time was over",
            "the same",
        )


def test_a_command_that_never_ends_has_so_much_of_a_processor(worker, record_verdict):
    """A limit of processor time for each command, besides its `timeout`."""
    endless = "exec python3 -I -S -c 'while True: pass'"
    assert worker.run_unprotected(f"timeout 1.2 bash -c {endless!r}; echo $?").split() == ["124"]
    worker.create_session("brief", limits=replace(SMALL_LIMITS, cpu_seconds=1))
    result = worker.run_script(f"({endless}); echo $?", name="brief", timeout=10)
    worker.destroy_session("brief")
    assert result.output.split()[-1] in (b"137", b"152")  # SIGKILL, SIGXCPU
    record_verdict("killed after its second", "it went on")


# ── resources that the kernel counts for each user ────────────────────────────────────────────────

COUNTED_RESOURCES = {
    "inotify instances": "libc.inotify_init1(0)",
    "descriptors under way": "give(n)",
    "message queues": "libc.mq_open(b'/%d' % n, 0o102, 0o600, None)",
    "terminals": "terminal()",
}
SHARED_BY_ORDINARY_SESSIONS = {"descriptors under way", "message queues"}
TAKE_RESOURCES = """
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
""".replace("WAYS", ", ".join(f"lambda n: {one}" for one in COUNTED_RESOURCES.values()))


@pytest.fixture(scope="session")
def resource_counts(worker):
    """Provide how many of each resource could be taken: by a control, by a greedy command, by a
    modest command after it, and by modest commands during it."""
    for name in ("greedy", "modest"):
        worker.create_session(name)
    greedy, modest = (
        ["/usr/bin/python3", "-I", "-S", "-c", TAKE_RESOURCES, *args]
        for args in (("9999", "1"), ("1", "0"))
    )
    control_output = worker.run_in_namespaces(quote_python(TAKE_RESOURCES, "3", "0"))
    taken, modest_results = worker.call(
        "run_beside",
        ("run_command", ("greedy", greedy), {}),
        ("run_command", ("modest", modest), {}),
    )
    for _ in range(200):  # the kernel frees some only a moment after the process has ended
        after = worker.call("run_command", "modest", modest)
        if after.output.split() == [b"1"] * len(COUNTED_RESOURCES):
            break
    for name in ("greedy", "modest"):
        worker.destroy_session(name)
    rows = [
        [int(word) for word in text.split()]
        for text in (control_output, taken.output, after.output)
    ]
    return *rows, [[int(word) for word in result.output.split()] for result in modest_results]


@pytest.mark.parametrize("name", COUNTED_RESOURCES)
def test_a_count_of_the_jails_user(name, resource_counts, worker, record_verdict):
    """Each session of a root worker has a user of its own. The sessions of an ordinary user share
    what the kernel counts for their user, as long as a command holds it. Some of these resources
    have a limit for each session."""
    control_counts, taken, after, modest_counts = resource_counts
    row = list(COUNTED_RESOURCES).index(name)
    assert control_counts[row] == 3, "the attack itself is broken"
    assert 0 < taken[row] < 9999
    assert after[row] == 1
    is_starved = any(counts[row] == 0 for counts in modest_counts)
    if worker.user == "ordinary" and name in SHARED_BY_ORDINARY_SESSIONS:
        record_verdict(
            "weak: others have none while the command runs" if is_starved else "others have theirs",
            "it counts",
        )
        return
    assert not is_starved
    assert name != "terminals" or taken[row] <= 64
    record_verdict(f"{taken[row]} for one session, and others have theirs", "it counts")


def test_epoll_watches_are_counted_for_each_session(worker, record_verdict):
    """To use up the epoll watches would need gigabytes of memory. So the test compares the users
    for which the kernel counts them (`epoll_watches` in include/linux/sched/user.h). The control:
    commands of one session have the same user."""
    for name in ("one", "another"):
        worker.create_session(name)
    users = {name: _find_users(worker, name) for name in ("one", "another")}
    users_again = _find_users(worker, "one")
    for name in ("one", "another"):
        worker.destroy_session(name)
    assert len(users_again) == 1
    assert users_again == users["one"], "the attack itself is broken"
    if worker.user == "ordinary":
        assert users["one"] == users["another"]
        record_verdict(
            "weak: all sessions run as the worker's user", "commands of one session have one user"
        )
        return
    assert not users["one"] & users["another"]
    assert not (users["one"] | users["another"]) & {0, 61000, 61999}
    record_verdict("each session has a user of its own", "commands of one session have one user")


def _find_users(worker, name):
    """Return the users, as the host sees them, of the processes of a command."""
    tag = f"osiris-{secrets.token_hex(8)}"
    worker.send_call(
        "run_command", name, ["/bin/bash", "-c", f"exec -a {tag} sleep 30"], timeout=15
    )
    users = set()
    try:
        until = time.monotonic() + 14
        while not users and time.monotonic() < until:
            users = {
                uid for pid in find_processes(tag) if (uid := _read_user_in_jail(pid)) is not None
            }
            time.sleep(0.01)
    finally:
        kill_processes(tag)
        worker.receive_result()
    return users


def _read_user_in_jail(pid):
    """Return the user of a process that is already in its jail, else None."""
    try:
        fields = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":\t" in line
        )
    except OSError:
        return None
    return int(fields["Uid"].split()[0]) if len(fields["NSpid"].split()) > 1 else None
