"""Hostile commands that use the kernel: system calls, sockets, devices, settings, privileges.

The numbers are those of x86_64. One run asks all questions, each in a process of its own. The
control asks the same questions on the machine itself, so the arguments are such that the kernel
rejects them in the end, and nothing is harmed.
"""

import json
from dataclasses import dataclass

import pytest

from tests.attacks.attack import Attack, has_won, judge_attack, parametrize_attacks, quote_python

REFUSED = {"EPERM", "ENOSYS"}
ABSENT = {"ENOENT", "EROFS", "EACCES", "EPERM"}
NO_FAMILY = {"EAFNOSUPPORT", "EPERM"}

ASK_KERNEL = r"""
import ctypes, errno, fcntl, json, mmap, os, stat, sys, termios
libc = ctypes.CDLL(None, use_errno=True)
BUFFER, NOWHERE, HERE, SIGCHLD = ctypes.create_string_buffer(4096), b"/nowhere", os.getpid(), 17

def call(number, *arguments):
    longs = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *longs)
    if result == -1: raise OSError(ctypes.get_errno(), "")
    return result

def clone(flags):
    if call(56, flags | SIGCHLD, 0, 0, 0, 0) == 0: os._exit(0)

def clone3(flags):
    arguments = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, SIGCHLD)
    if call(435, arguments, 88) == 0: os._exit(0)

def terminal():
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
    return theirs

def machine_code(code):
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

def write(path):
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

def read(path):
    with open(path, "rb") as file:
        if not file.read(1): raise OSError(errno.EACCES, "")

def node(mode, device):
    os.mknod(f"/tmp/node-{os.getpid()}", mode | 0o600, device)
    os.unlink(f"/tmp/node-{os.getpid()}")

def answer(code):
    try: exec(code)
    except OSError as error: return errno.errorcode.get(error.errno, str(error.errno))
    return "done"

for name, code in json.loads(sys.argv[1]).items():
    ours, theirs = os.pipe()
    if (child := os.fork()) == 0:
        os.setsid()
        os.write(theirs, answer(code).encode())
        os._exit(0)
    os.close(theirs)
    status = os.waitpid(child, 0)[1]
    reply = os.read(ours, 99).decode() or f"signal {status & 127}"
    os.close(ours)
    print(name, reply, sep=": ", flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class KernelQuestion:
    """A question to the kernel: code that succeeds or raises an OSError. With `root_only` the
    kernel refuses it to all ordinary users. Then the control of an ordinary user's worker is only
    that the kernel knows the question."""

    name: str
    code: str
    refused: frozenset[str] | set[str] = frozenset(REFUSED)
    root_only: bool = False


def parse_calls(*rows: str) -> list[KernelQuestion]:
    """Return the questions for system calls, each given as a name, a number and arguments. " root"
    after a name stands for `root_only`."""
    questions = []
    for row in rows:
        name, _, arguments = row.partition(": ")
        call = name.removesuffix(" root")
        questions.append(
            KernelQuestion(name=call, code=f"call({arguments})", root_only=call != name)
        )
    return questions


MOUNT_CALLS = parse_calls(
    "mount a tmpfs: 165, b'x', b'/dev/shm', b'tmpfs', 0, 0",
    "mount to bind: 165, b'/usr', b'/dev/shm', 0, 4096, 0",
    "umount2: 166, NOWHERE, 0xff00",
    "pivot_root: 155, b'/', b'/'",
    "chroot: 161, b'/usr'",
    "open_tree: 428, -100, b'/usr', 1",
    "move_mount: 429, -1, b'', -1, b'', 4",
    "fsopen: 430, b'tmpfs', 0",
    "fsconfig: 431, -1, 0, 0, 0, 0",
    "fsmount: 432, -1, 0, 0",
    "fspick: 433, -100, b'/dev/shm', 0",
    "mount_setattr: 442, -100, NOWHERE, 0, BUFFER, 32",
    "statmount: 457, 0, BUFFER, 0, 0",
    "listmount: 458, 0, BUFFER, 0, 0",
    "open_tree_attr: 467, -1, b'', 0x1000, BUFFER, 32",
)
PROCESS_CALLS = parse_calls(
    "ptrace to be traced: 101, 0, 0, 0, 0",
    "ptrace process 1: 101, 0x4206, 1, 0, 0",
    "process_vm_readv: 310, HERE, BUFFER, 0, BUFFER, 0, 0",
    "process_vm_writev: 311, HERE, BUFFER, 0, BUFFER, 0, 0",
    "process_madvise: 440, -1, BUFFER, 0, 0, 0",
    "pidfd_getfd: 438, -1, 0, 0",
    "kcmp: 312, HERE, HERE, 0, 0, 0",
    "move_pages: 279, 0, 0, 0, 0, 0, 0",
    "migrate_pages: 256, 0, 0, 0, 0",
    "add_key: 248, b'user', b'osiris', b'x', 1, -1",
    "request_key: 249, b'user', b'osiris', 0, -1",
    "keyctl: 250, 0, -1, 1",
    "name_to_handle_at: 303, -100, b'/usr', BUFFER, BUFFER, 0",
    "open_by_handle_at: 304, -1, BUFFER, 0",
    "fanotify_init: 300, 0x200, 0",
    "fanotify_mark: 301, -1, 0, 0, 0, 0",
    "lookup_dcookie: 212, 0, BUFFER, 10",
    "lsm_get_self_attr: 459, 0, BUFFER, BUFFER, 0",
    "lsm_set_self_attr: 460, 0, BUFFER, 0, 0",
    "lsm_list_modules: 461, BUFFER, BUFFER, 0",
)
MACHINE_CALLS = parse_calls(
    "bpf: 321, 0, BUFFER, 64",
    "perf_event_open: 298, BUFFER, 0, -1, -1, 0",
    "userfaultfd: 323, 1",
    "io_uring_setup: 425, 4, BUFFER",
    "io_uring_enter: 426, -1, 0, 0, 0, 0",
    "io_uring_register: 427, -1, 0, 0, 0",
    "kexec_load root: 246, 0, 17, 0, 0",
    "kexec_file_load root: 320, -1, -1, 0, 0, 0",
    "init_module root: 175, 0, 0, 0",
    "finit_module root: 313, -1, b'', 0",
    "delete_module root: 176, b'nowhere', 0",
    "swapon: 167, NOWHERE, 0xff0000",
    "swapoff root: 168, NOWHERE",
    "acct root: 163, NOWHERE",
    "reboot: 169, 1, 2, 3, 0",
    "syslog root: 103, 10, 0, 0",
    "quotactl: 179, 0x80000100, 0, 0, 0",
    "quotactl_fd: 443, -1, 0, 0, 0",
    "settimeofday: 164, 1, 0",
    "clock_settime: 227, 0, 1",
    "clock_adjtime: 305, 0, 1",
    "adjtimex: 159, 1",
    "sethostname: 170, 1, 3",
    "setdomainname: 171, 1, 3",
    "iopl root: 172, 9",
    "ioperm root: 173, 1, 0, 1",
    "modify_ldt: 154, 0, BUFFER, 16",
    "vhangup root: 153",
    "uselib: 134, NOWHERE",
    "sysfs: 139, 9, 0, 0",
    "ustat: 136, 0, BUFFER",
    "nfsservctl: 180, 0, 0, 0",
    "mbind: 237, 0, 0, 0, 0, 0, 0",
    "set_mempolicy: 238, 0, 0, 0",
    "set_mempolicy_home_node: 450, 0, 0, 0, 0",
    "memfd_secret: 447, 0",
    "remap_file_pages: 216, 0, 0, 0, 0, 0",
    "vmsplice: 278, -1, BUFFER, 0, 0",
)
AIO_CALLS = parse_calls(
    "io_setup: 206, 1, BUFFER",
    "io_destroy: 207, 0",
    "io_submit: 209, 0, 0, 0",
    "io_cancel: 210, 0, BUFFER, BUFFER",
    "io_getevents: 208, 0, 0, 0, BUFFER, 0",
    "io_pgetevents: 333, 0, 0, 0, BUFFER, 0, 0",
)
NAMESPACE_FLAGS = {
    "NEWNS": 0x20000,
    "NEWCGROUP": 0x2000000,
    "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000,
}
NAMESPACE_FLAGS |= {"NEWUSER": 0x10000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000}
NAMESPACES = [
    *(
        KernelQuestion(name=f"clone {name}", code=f"clone({flag})")
        for name, flag in NAMESPACE_FLAGS.items()
    ),
    *(
        KernelQuestion(name=f"clone3 {name}", code=f"clone3({flag})")
        for name, flag in NAMESPACE_FLAGS.items()
    ),
    *(
        KernelQuestion(name=f"unshare {name}", code=f"call(272, {flag})")
        for name, flag in NAMESPACE_FLAGS.items()
    ),
    KernelQuestion(name="unshare NEWTIME", code="call(272, 0x80)"),
    KernelQuestion(
        name="clone NEWUSER with high bits", code=f"clone({1 << 40 | NAMESPACE_FLAGS['NEWUSER']})"
    ),
    *(
        KernelQuestion(
            name=f"setns {kind}", code=f"call(308, os.open('/proc/self/ns/{kind}', 0), 0)"
        )
        for kind in ("user", "mnt", "net", "pid", "uts", "ipc")
    ),
    KernelQuestion(name="setns process 1", code="call(308, os.pidfd_open(1), 0x20000)"),
]
NETLINK = {
    "sock_diag": 4,
    "xfrm": 6,
    "audit": 9,
    "connector": 11,
    "netfilter": 12,
    "uevent": 15,
    "generic": 16,
}
FAMILIES = {
    "VSOCK": (40, 1),
    "PACKET": (17, 3),
    "ALG": (38, 5),
    "KEY": (15, 3),
    "XDP": (44, 3),
    "TIPC": (30, 5),
}
FAMILIES |= {
    "CAN": (29, 3),
    "BLUETOOTH": (31, 1),
    "RDS": (21, 5),
    "SMC": (43, 1),
    "NFC": (39, 3),
    "QIPCRTR": (42, 2),
}
SOCKETS = [
    *(
        KernelQuestion(
            name=f"a socket of AF_{name}", code=f"call(41, {family}, {kind}, 0)", refused=NO_FAMILY
        )
        for name, (family, kind) in FAMILIES.items()
    ),
    *(
        KernelQuestion(name=f"netlink {name}", code=f"call(41, 16, 3, {number})", refused=NO_FAMILY)
        for name, number in NETLINK.items()
    ),
    KernelQuestion(
        name="a vsock with high bits", code="call(41, 1 << 32 | 40, 1, 0)", refused=NO_FAMILY
    ),
    KernelQuestion(name="a pair of vsocks", code="call(53, 40, 1, 0, BUFFER)", refused=NO_FAMILY),
    KernelQuestion(name="a raw socket", code="call(41, 2, 3, 1)", refused=NO_FAMILY),
]
ODD_CALLS = [
    KernelQuestion(name="TIOCSTI", code="call(16, terminal(), 0x5412, b'x')"),
    KernelQuestion(
        name="TIOCSTI with high bits", code="call(16, terminal(), 1 << 32 | 0x5412, b'x')"
    ),
    KernelQuestion(name="TIOCLINUX", code="call(16, terminal(), 0x541C, b'\\6')"),
    KernelQuestion(name="personality with READ_IMPLIES_EXEC", code="call(135, 0x400000)"),
    KernelQuestion(name="personality of 32 bits", code="call(135, 8)"),
    KernelQuestion(name="personality with high bits", code="call(135, 0x400000 | 0x40000)"),
    KernelQuestion(
        name="int 0x80",
        code="machine_code(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')",
        refused={"signal 31"},
    ),
    KernelQuestion(name="x32", code="call(0x40000000 | 39)", refused={"signal 31"}),
    KernelQuestion(
        name="a number of the future", code="call(463, -100, NOWHERE, 0, NOWHERE, BUFFER, 0)"
    ),
]
SYSTEM = "/proc/sys"
SETTINGS = [
    *(
        KernelQuestion(
            name=f"writing {path}", code=f"write({path!r})", refused=ABSENT, root_only=True
        )
        for path in (
            "/proc/sysrq-trigger",
            *(
                f"{SYSTEM}/kernel/{name}"
                for name in ("core_pattern", "modprobe", "hostname", "poweroff_cmd")
            ),
            *(
                f"{SYSTEM}/{name}"
                for name in ("vm/drop_caches", "fs/file-max", "user/max_user_namespaces")
            ),
            f"{SYSTEM}/net/ipv4/ip_forward",
        )
    ),
    *(
        KernelQuestion(
            name=f"writing /proc/self/{name}", code=f"write('/proc/self/{name}')", refused=ABSENT
        )
        for name in (
            "oom_score_adj",
            "uid_map",
            "gid_map",
            "setgroups",
            "mem",
            "clear_refs",
            "coredump_filter",
        )
    ),
    *(
        KernelQuestion(
            name=f"reading {path}", code=f"read({path!r})", refused=ABSENT, root_only=True
        )
        for path in ("/proc/kcore", "/proc/kpagecount", "/proc/vmallocinfo", "/proc/timer_list")
    ),
    *(
        KernelQuestion(
            name=f"opening {path}",
            code=f"os.close(os.open({path!r}, os.O_NONBLOCK | os.O_NOCTTY))",
            refused=ABSENT,
            root_only=root_only,
        )
        for path, root_only in (
            *(
                (f"/dev/{name}", True)
                for name in ("kmsg", "mem", "loop-control", "net/tun", "fuse", "kvm", "vsock")
            ),
            *(
                (f"/dev/{name}", True)
                for name in ("console", "tty0", "userfaultfd", "vhost-vsock", "ptp0", "hwrng")
            ),
            ("/sys/fs/cgroup", False),
            ("/sys/kernel", False),
            ("/sys/class/net", False),
        )
    ),
]
PRIVILEGES = [
    KernelQuestion(name="to be user 0", code="os.setuid(0)", refused={"EPERM", "EINVAL"}),
    KernelQuestion(name="to be group 0", code="os.setgid(0)", refused={"EPERM", "EINVAL"}),
    KernelQuestion(
        name="to have group 0",
        code="os.setgroups([0])",
        refused={"EPERM", "EINVAL"},
        root_only=True,
    ),
    KernelQuestion(
        name="a device of memory", code="node(stat.S_IFCHR, os.makedev(1, 3))", root_only=True
    ),
    KernelQuestion(
        name="a device of a disk", code="node(stat.S_IFBLK, os.makedev(7, 250))", root_only=True
    ),
    KernelQuestion(
        name="a higher priority", code="os.nice(-5)", refused={"EPERM", "EACCES"}, root_only=True
    ),
    KernelQuestion(
        name="real time",
        code="os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        root_only=True,
    ),
    KernelQuestion(name="real time of a disk", code="call(251, 1, 0, 1 << 13)", root_only=True),
]
FLUSHES = [
    KernelQuestion(name="syncfs of nothing", code="call(306, -1)", refused={"done"}),
]
QUESTIONS = [
    *MOUNT_CALLS,
    *PROCESS_CALLS,
    *MACHINE_CALLS,
    *AIO_CALLS,
    *FLUSHES,
    *NAMESPACES,
    *SOCKETS,
    *ODD_CALLS,
    *SETTINGS,
    *PRIVILEGES,
]
UNKNOWN_TO_KERNEL = {
    "ENOSYS",
    "EAFNOSUPPORT",
    "EPROTONOSUPPORT",
    "ESOCKTNOSUPPORT",
    "ENODEV",
    "ENXIO",
}


@pytest.fixture(scope="session")
def answers(worker):
    """Provide the kernel's answers to all questions, by name: (in the jail, [in each of the
    controls])."""
    worker.create_session("kernel")
    command = quote_python(
        ASK_KERNEL, json.dumps({question.name: question.code for question in QUESTIONS})
    )
    outputs = [
        worker.run_script(command, name="kernel", timeout=60).output.decode(),
        worker.run_unprotected(command),
        worker.run_in_namespaces(command),
        worker.run_in_naive_jail(command),
    ]
    worker.destroy_session("kernel")
    answers, *control_answers = (
        dict(line.split(": ", 1) for line in output.splitlines() if ": " in line)
        for output in outputs
    )
    return answers, control_answers


@pytest.mark.parametrize("question", QUESTIONS, ids=[question.name for question in QUESTIONS])
def test_asking_for(question, answers, worker, record_verdict):
    jail_answers, control_answers = answers
    answer = jail_answers[question.name]
    assert answer in question.refused, answer
    record_verdict(
        answer,
        _judge_control(
            question, [by_name[question.name] for by_name in control_answers], worker.user
        ),
    )


def _judge_control(question, answers, user):
    """Assert that the controls show that the kernel knows the question, as far as this machine can,
    and return that as the control's outcome."""
    reached = [answer for answer in answers if answer not in question.refused | UNKNOWN_TO_KERNEL]
    if reached:
        return f"reached the kernel: {reached[0]}"
    if question.root_only and user == "ordinary":
        return "closed to an ordinary user"
    assert set(answers) & {*UNKNOWN_TO_KERNEL, "ENOENT"}, f"the attack itself is broken: {answers}"
    return "not in this kernel"


COUNT_DIRTY_PAGES = """
import ctypes, os, sys
libc, place = ctypes.CDLL(None, use_errno=True), sys.argv[1]

def dirty(fd):
    found = (ctypes.c_uint64 * 5)()
    if libc.syscall(451, fd, (ctypes.c_uint64 * 2)(0, 0), found, 0): raise OSError(ctypes.get_errno(), "cachestat")
    return found[1]

def left(flush):
    most = 0
    for n in range(9):
        fd = os.open(f"{place}/flushed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(fd, bytes(1 << 16))
        flush(fd)
        most = max(most, dirty(fd))
        os.close(fd)
    os.unlink(f"{place}/flushed")
    return most

by_sync, by_file = left(lambda fd: os.sync()), left(os.fsync)
print("dirty", by_sync, by_file)
if by_sync == 0: print("won")
"""


def test_sync_writes_out_nothing_and_fsync_does(shared_session, worker, record_verdict):
    """The script counts the pages that are still dirty after a flush. A real sync would flush all
    disks, and everything else on the machine would wait for it.

    A kernel may write pages at any time, so the script tries several times, and the highest count
    decides.
    """
    control_output = worker.run_unprotected(quote_python(COUNT_DIRTY_PAGES, "."))
    assert has_won(control_output), f"the attack itself is broken: {control_output}"
    output = worker.run_script(
        quote_python(COUNT_DIRTY_PAGES, "/tmp"), name=shared_session
    ).output.decode()
    if worker.user == "ordinary":  # its files are in memory, and are never written to a disk
        assert output.startswith("dirty"), output
        record_verdict("answered, and nothing done", "its files lie in memory: see syncfs")
        return
    assert not has_won(output), output
    assert output.split()[2] == "0", output
    record_verdict("answered, and nothing done", "all was written out")


# ── what a process may use ────────────────────────────────────────────────────────────────────────

START_SU = """
import subprocess, time
one = subprocess.Popen(["/usr/bin/su"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
for _ in range(200):
    status = open(f"/proc/{one.pid}/status").read()
    if "Name:\\tsu\\n" in status: break
    time.sleep(0.005)
if status.split("Uid:")[1].split()[1] == "0": print("won")
one.kill()
"""
FIND_WRITABLE_MOUNTS = """awk '$6 ~ /^rw/ && $5 !~ "^/(tmp|home/agent|workspace|dev/[a-z]+)$" {print "won", $5}' /proc/self/mountinfo"""
WRITE_CORE_PATTERN = """f=/proc/sys/kernel/core_pattern; v=$(cat $f); (echo "$v" >$f) && echo won"""
BECOME_ORDINARY = "setpriv --reuid=65534 --regid=65534 --clear-groups"


@parametrize_attacks(
    Attack(
        name="the host's core_pattern written",
        script=WRITE_CORE_PATTERN,
        outcome="permission denied",
        control_outcome="a naive jail of root's wrote it",
        control="run_in_naive_jail",
        ordinary_control_script="echo core >pattern && echo won",
    ),
    Attack(
        name="a program of the system with a setuid bit",
        script=quote_python(START_SU),
        outcome="the bit does nothing",
        control_outcome="su was root",
        control_script=f'$([ "$(id -u)" = 0 ] && echo {BECOME_ORDINARY}) {quote_python(START_SU)}',
    ),
    Attack(
        name="a capability",
        script="grep Cap /proc/self/status | grep -qv 0000000000000000 && echo won",
        outcome="all five sets are empty",
        control_outcome="some are left",
    ),
    Attack(
        name="a process that may gain privileges",
        script="grep -E 'NoNewPrivs:.0|Seccomp:.[01]' /proc/self/status && echo won",
        outcome="no new privileges, and a filter",
        control_outcome="it may",
    ),
    Attack(
        name="a device besides those of every jail",
        script=(
            "ls /dev | grep -vxE 'core|fd|full|null|ptmx|pts|u?random|shm|std(in|out|err)|tty|zero'"
            " && echo won"
        ),
        outcome="there is none",
        control_outcome="there are others",
        control_script="touch dev-x; (ls /dev; ls) | grep -vxE 'null|zero|full|tty' && echo won",
    ),
    Attack(
        name="the controlling terminal",
        script="(: >/dev/tty) && echo won; tty -s && echo won",
        outcome="there is none",
        control_outcome="one can be had",
        control_script=quote_python(
            "import pty; pty.spawn(['/bin/bash', '-c', '(: >/dev/tty) && echo won'])"
        ),
    ),
    Attack(
        name="a writable mount besides the session's",
        script=FIND_WRITABLE_MOUNTS,
        outcome="all others are read-only",
        control_outcome="a naive jail has some",
        control="run_in_naive_jail",
    ),
    Attack(
        name="the addresses of the kernel",
        script="grep -qv '^0000000000000000' /proc/kallsyms && echo won",
        outcome="all are zero",
        control_outcome="they can be read",
        ordinary_control_script="grep -q '^0000000000000000' /proc/kallsyms && echo won",
    ),
    Attack(
        name="a jail in the jail",
        script=(
            "bwrap --unshare-all --ro-bind / / /bin/echo won; unshare -r echo won; nsenter -t 1 -m"
            " echo won"
        ),
        outcome="operation not permitted",
        control_outcome="it could be made",
    ),
)
def test_getting(attack, worker, shared_session, record_verdict):
    judge_attack(attack, worker, record_verdict, name=shared_session)
