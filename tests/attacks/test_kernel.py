"""Hostile commands that turn to the kernel: system calls, sockets, devices, settings, privileges.

The numbers are those of x86_64. All rows are asked in one run, each in a process of its own, which
can harm nothing outside of the jail: the control asks the same of the machine itself, with
arguments that are wrong in the end.
"""

import json
from dataclasses import dataclass

import pytest

from tests.attacks.attack import Attack, each, judge, python, won

REFUSED = {"EPERM", "ENOSYS"}
ABSENT = {"ENOENT", "EROFS", "EACCES", "EPERM"}
NO_FAMILY = {"EAFNOSUPPORT", "EPERM"}

ASK = r"""
import ctypes, errno, fcntl, json, mmap, os, stat, sys, termios
libc = ctypes.CDLL(None, use_errno=True)
BUFFER, NOWHERE, HERE, SIGCHLD = ctypes.create_string_buffer(4096), b"/nowhere", os.getpid(), 17

def call(number, *words):
    long = [ctypes.c_long(word) if isinstance(word, int) else word for word in words]
    ctypes.set_errno(0)
    done = libc.syscall(ctypes.c_long(number), *long)
    if done == -1: raise OSError(ctypes.get_errno(), "")
    return done

def clone(flags):
    if call(56, flags | SIGCHLD, 0, 0, 0, 0) == 0: os._exit(0)

def clone3(flags):
    words = (ctypes.c_uint64 * 11)(flags, 0, 0, 0, SIGCHLD)
    if call(435, words, 88) == 0: os._exit(0)

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
    how = os.waitpid(child, 0)[1]
    said = os.read(ours, 99).decode() or f"signal {how & 127}"
    os.close(ours)
    print(name, said, sep=": ", flush=True)
"""


@dataclass(frozen=True, kw_only=True)
class KernelQuestion:
    """A question to the kernel. `rootly`: it is closed to ordinary users everywhere, so theirs has
    no other control than that the kernel knows the question."""

    name: str
    code: str
    refused: frozenset[str] | set[str] = frozenset(REFUSED)
    rootly: bool = False


def calls(*rows: str) -> list[KernelQuestion]:
    """Rows of a name, a number and arguments; `root` behind a name: only the machine's root is
    asked in earnest."""
    found = []
    for row in rows:
        name, _, words = row.partition(": ")
        plain = name.removesuffix(" root")
        found.append(KernelQuestion(name=plain, code=f"call({words})", rootly=plain != name))
    return found


MOUNTS = calls(
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
OTHERS = calls(
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
MACHINE = calls(
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
COUNTED_FOR_THE_MACHINE = calls(
    "io_setup: 206, 1, BUFFER",
    "io_destroy: 207, 0",
    "io_submit: 209, 0, 0, 0",
    "io_cancel: 210, 0, BUFFER, BUFFER",
    "io_getevents: 208, 0, 0, 0, BUFFER, 0",
    "io_pgetevents: 333, 0, 0, 0, BUFFER, 0, 0",
)
SPACES = {"NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000, "NEWIPC": 0x8000000}
SPACES |= {"NEWUSER": 0x10000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000}
NAMESPACES = [
    *(KernelQuestion(name=f"clone {name}", code=f"clone({flag})") for name, flag in SPACES.items()),
    *(
        KernelQuestion(name=f"clone3 {name}", code=f"clone3({flag})")
        for name, flag in SPACES.items()
    ),
    *(
        KernelQuestion(name=f"unshare {name}", code=f"call(272, {flag})")
        for name, flag in SPACES.items()
    ),
    KernelQuestion(name="unshare NEWTIME", code="call(272, 0x80)"),
    KernelQuestion(
        name="clone NEWUSER with high bits", code=f"clone({1 << 40 | SPACES['NEWUSER']})"
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
SHAPES = [
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
        KernelQuestion(name=f"writing {path}", code=f"write({path!r})", refused=ABSENT, rootly=True)
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
        KernelQuestion(name=f"reading {path}", code=f"read({path!r})", refused=ABSENT, rootly=True)
        for path in ("/proc/kcore", "/proc/kpagecount", "/proc/vmallocinfo", "/proc/timer_list")
    ),
    *(
        KernelQuestion(
            name=f"opening {path}",
            code=f"os.close(os.open({path!r}, os.O_NONBLOCK | os.O_NOCTTY))",
            refused=ABSENT,
            rootly=rootly,
        )
        for path, rootly in (
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
        name="to have group 0", code="os.setgroups([0])", refused={"EPERM", "EINVAL"}, rootly=True
    ),
    KernelQuestion(
        name="a device of memory", code="node(stat.S_IFCHR, os.makedev(1, 3))", rootly=True
    ),
    KernelQuestion(
        name="a device of a disk", code="node(stat.S_IFBLK, os.makedev(7, 250))", rootly=True
    ),
    KernelQuestion(
        name="a higher priority", code="os.nice(-5)", refused={"EPERM", "EACCES"}, rootly=True
    ),
    KernelQuestion(
        name="real time",
        code="os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
        rootly=True,
    ),
    KernelQuestion(name="real time of a disk", code="call(251, 1, 0, 1 << 13)", rootly=True),
]
FLUSHES = [
    KernelQuestion(name="syncfs of nothing", code="call(306, -1)", refused={"done"}),
]
ROWS = [
    *MOUNTS,
    *OTHERS,
    *MACHINE,
    *COUNTED_FOR_THE_MACHINE,
    *FLUSHES,
    *NAMESPACES,
    *SOCKETS,
    *SHAPES,
    *SETTINGS,
    *PRIVILEGES,
]
NOT_HERE = {"ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "ENODEV", "ENXIO"}


@pytest.fixture(scope="session")
def answers(worker):
    """What the kernel says to all rows, by name: (in the jail, [in each of the controls])."""
    worker.create("kernel")
    asking = python(ASK, json.dumps({row.name: row.code for row in ROWS}))
    said = [worker.bash(asking, name="kernel", timeout=60).output.decode()]
    said += [getattr(worker, control)(asking) for control in ("unprotected", "namespaced", "naive")]
    worker.ask("destroy", "kernel")
    inside, *outside = (
        dict(line.split(": ", 1) for line in text.splitlines() if ": " in line) for text in said
    )
    return inside, outside


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_asking_for(row, answers, worker, verdict):
    inside, outside = answers
    free = [said[row.name] for said in outside]
    assert inside[row.name] in row.refused, inside[row.name]
    verdict(inside[row.name], _control(row, free, worker.who))


def _control(row, free, who):
    reached = [said for said in free if said not in row.refused | NOT_HERE]
    if reached:
        return f"reached the kernel: {reached[0]}"
    if row.rootly and who == "ordinary":
        return "closed to an ordinary user"
    assert set(free) & {*NOT_HERE, "ENOENT"}, f"the attack itself is broken: {free}"
    return "not in this kernel"


FLUSH = """
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


def test_sync_writes_out_nothing_and_fsync_does(lasting, worker, verdict):
    """What is still dirty after a flush: all others of the machine would wait for one of all its
    disks.

    A kernel may write pages out at any time, so it is tried some times, and the most counts.
    """
    free = worker.unprotected(python(FLUSH, "."))
    assert won(free), f"the attack itself is broken: {free}"
    seen = lasting.bash(python(FLUSH, "/tmp"), name="lasting").output.decode()
    if worker.who == "ordinary":  # its files are in memory, which is written out nowhere
        assert seen.startswith("dirty"), seen
        verdict("answered, and nothing done", "its files lie in memory: see syncfs")
        return
    assert not won(seen), seen
    assert seen.split()[2] == "0", seen
    verdict("answered, and nothing done", "all was written out")


# ── what a process has ────────────────────────────────────────────────────────────────────────────

SU = """
import subprocess, time
one = subprocess.Popen(["/usr/bin/su"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
for _ in range(200):
    status = open(f"/proc/{one.pid}/status").read()
    if "Name:\\tsu\\n" in status: break
    time.sleep(0.005)
if status.split("Uid:")[1].split()[1] == "0": print("won")
one.kill()
"""
WRITABLE = """awk '$6 ~ /^rw/ && $5 !~ "^/(tmp|home/agent|workspace|dev/[a-z]+)$" {print "won", $5}' /proc/self/mountinfo"""
KEEP = """f=/proc/sys/kernel/core_pattern; v=$(cat $f); (echo "$v" >$f) && echo won"""
BECOME = "setpriv --reuid=65534 --regid=65534 --clear-groups"


@each(
    Attack(
        name="the host's core_pattern written",
        script=KEEP,
        held="permission denied",
        shows="a naive jail of root's wrote it",
        control="naive",
        ordinary="echo core >pattern && echo won",
    ),
    Attack(
        name="a program of the system with a setuid bit",
        script=python(SU),
        held="the bit does nothing",
        shows="su was root",
        easier=f'$([ "$(id -u)" = 0 ] && echo {BECOME}) {python(SU)}',
    ),
    Attack(
        name="a capability",
        script="grep Cap /proc/self/status | grep -qv 0000000000000000 && echo won",
        held="all five sets are empty",
        shows="some are left",
    ),
    Attack(
        name="a process that may gain privileges",
        script="grep -E 'NoNewPrivs:.0|Seccomp:.[01]' /proc/self/status && echo won",
        held="no new privileges, and a filter",
        shows="it may",
    ),
    Attack(
        name="a device besides those of every jail",
        script=(
            "ls /dev | grep -vxE 'core|fd|full|null|ptmx|pts|u?random|shm|std(in|out|err)|tty|zero'"
            " && echo won"
        ),
        held="there is none",
        shows="there are others",
        easier="touch dev-x; (ls /dev; ls) | grep -vxE 'null|zero|full|tty' && echo won",
    ),
    Attack(
        name="the controlling terminal",
        script="(: >/dev/tty) && echo won; tty -s && echo won",
        held="there is none",
        shows="one can be had",
        easier=python("import pty; pty.spawn(['/bin/bash', '-c', '(: >/dev/tty) && echo won'])"),
    ),
    Attack(
        name="a writable mount besides the session's",
        script=WRITABLE,
        held="all others are read-only",
        shows="a naive jail has some",
        control="naive",
    ),
    Attack(
        name="the addresses of the kernel",
        script="grep -qv '^0000000000000000' /proc/kallsyms && echo won",
        held="all are zero",
        shows="they can be read",
        ordinary="grep -q '^0000000000000000' /proc/kallsyms && echo won",
    ),
    Attack(
        name="a jail in the jail",
        script=(
            "bwrap --unshare-all --ro-bind / / /bin/echo won; unshare -r echo won; nsenter -t 1 -m"
            " echo won"
        ),
        held="operation not permitted",
        shows="it could be made",
    ),
)
def test_getting(attack, lasting, verdict):
    judge(attack, lasting, verdict, name="lasting")
