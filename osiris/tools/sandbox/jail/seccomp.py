"""The system-call filter of the jail: a BPF program for x86_64 and aarch64.

It is generated here and not by libseccomp, because version 2.5.4 of Debian 12 does not know five
newer calls. It costs 33 ns per call. Calls that the kernel adds later are refused too: numbers
above the last known one return ENOSYS.
"""

import platform
import struct
from functools import cache
from typing import Final

from osiris.core.errors import Refused

LOAD = 0x20
EQUAL = 0x15
AT_LEAST = 0x35
ANY_BIT = 0x45
RETURN = 0x06
# offsets in struct seccomp_data; every argument takes eight bytes
NUMBER = 0
ARCH = 4
ARGUMENTS = 16
KILL = 0x80000000
ALLOW = 0x7FFF0000
ERRNO = 0x00050000
DONE: Final = ERRNO  # with error 0: the call does nothing and reports success
EPERM = 1
ENOSYS = 38
EAFNOSUPPORT = 97
LAST_KNOWN: Final = 462  # mseal, Linux 6.10; from 424 on the numbers are the same everywhere
X32: Final = 0x40000000
COLUMN: Final = {"x86_64": 0, "aarch64": 1}
AUDIT: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
Instruction = tuple[int, int, int, int]

# name: its number on (x86_64, aarch64); None where the call does not exist
FORBIDDEN: Final[dict[str, tuple[int | None, int | None]]] = {
    # keyrings belong to the host user, not to a namespace
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # large, often broken kernel surface that no build needs
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "unshare": (272, 97),
    "setns": (308, 268),
    # access to other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # files by handle, and watching whole file systems
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "lookup_dcookie": (212, 18),
    # administration of the machine
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "syslog": (103, 116),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "uselib": (134, None),
    "_sysctl": (156, None),
    "nfsservctl": (180, 42),
    "ustat": (136, None),
    "sysfs": (139, None),
    "vserver": (236, None),
    # memory policies and rarely used memory calls
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "memfd_secret": (447, 447),
    "remap_file_pages": (216, 234),
    "vmsplice": (278, 75),
    "lsm_get_self_attr": (459, 459),
    "lsm_set_self_attr": (460, 460),
    "lsm_list_modules": (461, 461),
}
# The machine has a limited number of contexts for these calls (fs.aio-max-nr), so one session could
# take all of them.
ABSENT: Final[dict[str, tuple[int, int]]] = {
    "io_setup": (206, 0),
    "io_destroy": (207, 1),
    "io_submit": (209, 2),
    "io_cancel": (210, 3),
    "io_getevents": (208, 4),
    "io_pgetevents": (333, 292),
}
# These write out whole file systems, of the host too, while others wait. No session survives a
# power cut, so nothing is lost without them. fsync and sync_file_range write one file: allowed.
VOID: Final[dict[str, tuple[int, int]]] = {"sync": (162, 81), "syncfs": (306, 267)}
CLONE: Final = (56, 220)
CLONE3: Final = (435, 435)
SOCKET: Final = (41, 198)
SOCKETPAIR: Final = (53, 199)
IOCTL: Final = (16, 29)
PERSONALITY: Final = (135, 92)

NEW_NAMESPACES: Final = 0x7E020000  # NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET
AF_UNIX = 1
AF_INET = 2
AF_INET6 = 10
AF_NETLINK = 16
NETLINK_ROUTE = 0
TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # they insert input into another process's terminal
# the default, without address randomisation (debuggers), and the query of the present value
PERSONALITIES: Final = (0, 0x40000, 0xFFFFFFFF)


def is_supported(machine: str = "") -> bool:
    return (machine or platform.machine()) in COLUMN


@cache
def build_program(machine: str = "") -> bytes:
    """Return the filter for `machine` (default: this one) as an array of struct sock_filter. Raises
    Refused for other processors."""
    machine = machine or platform.machine()
    if not is_supported(machine):
        raise Refused(
            f"the sandbox has no system-call filter for {machine} processors (only x86_64 and"
            " aarch64)"
        )
    code = [
        *_require_abi(machine),
        *_refuse_unknown(),
        *_refuse_forbidden(machine),
        *_filter_by_argument(machine),
        _build_return(ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _build_return(value: int) -> Instruction:
    return (RETURN, 0, 0, value)


def _load_argument(index: int) -> Instruction:
    """Return the instruction that loads the low 32 bits, which the kernel uses too: a value cannot
    be hidden by setting a high bit."""
    return (LOAD, 0, 0, ARGUMENTS + 8 * index)


def _build_branch(test: int, value: int, *then: Instruction) -> list[Instruction]:
    return [(test, 0, len(then), value), *then]


def _require_abi(machine: str) -> list[Instruction]:
    """Return the instructions that kill a process which uses 32-bit calls (int 0x80) or x32: these
    have different numbers."""
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCH),
        (EQUAL, 1, 0, AUDIT[machine]),
        _build_return(KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    return code + (_build_branch(AT_LEAST, X32, _build_return(KILL)) if machine == "x86_64" else [])


def _refuse_unknown() -> list[Instruction]:
    return _build_branch(AT_LEAST, LAST_KNOWN + 1, _build_return(ERRNO | ENOSYS))


def _refuse_forbidden(machine: str) -> list[Instruction]:
    tables = ((FORBIDDEN, ERRNO | EPERM), (ABSENT, ERRNO | ENOSYS), (VOID, DONE))
    rows = [(row[COLUMN[machine]], answer) for table, answer in tables for row in table.values()]
    numbers = sorted((number, answer) for number, answer in rows if number is not None)
    return [
        step
        for number, answer in numbers
        for step in _build_branch(EQUAL, number, _build_return(answer))
    ]


def _filter_by_argument(machine: str) -> list[Instruction]:
    """Return the instructions for calls that are allowed or refused by their arguments; inside a
    block the call's number is no longer loaded."""
    here = COLUMN[machine]
    blocks = (
        # its flags are behind a pointer, so they cannot be checked; glibc falls back to clone
        (CLONE3, [_build_return(ERRNO | ENOSYS)]),
        (
            CLONE,
            [
                _load_argument(0),
                *_build_branch(ANY_BIT, NEW_NAMESPACES, _build_return(ERRNO | EPERM)),
                _build_return(ALLOW),
            ],
        ),
        (SOCKET, _filter_socket_families()),
        (
            SOCKETPAIR,
            [
                _load_argument(0),
                *_build_branch(EQUAL, AF_UNIX, _build_return(ALLOW)),
                _build_return(ERRNO | EAFNOSUPPORT),
            ],
        ),
        (IOCTL, [_load_argument(1), *_refuse_values(TIOCSTI, TIOCLINUX), _build_return(ALLOW)]),
        (
            PERSONALITY,
            [_load_argument(0), *_allow_values(*PERSONALITIES), _build_return(ERRNO | EPERM)],
        ),
    )
    return [step for number, body in blocks for step in _build_branch(EQUAL, number[here], *body)]


def _filter_socket_families() -> list[Instruction]:
    """Return the instructions that allow some socket families only.

    A network namespace does not isolate AF_VSOCK before Linux 7.0: on a micro-VM it leads to the
    hypervisor.
    """
    route_only = [
        _load_argument(2),
        *_build_branch(EQUAL, NETLINK_ROUTE, _build_return(ALLOW)),
        _build_return(ERRNO | EAFNOSUPPORT),
    ]
    families = _allow_values(AF_UNIX, AF_INET, AF_INET6)
    return [
        _load_argument(0),
        *families,
        *_build_branch(EQUAL, AF_NETLINK, *route_only),
        _build_return(ERRNO | EAFNOSUPPORT),
    ]


def _allow_values(*values: int) -> list[Instruction]:
    return [step for value in values for step in _build_branch(EQUAL, value, _build_return(ALLOW))]


def _refuse_values(*values: int) -> list[Instruction]:
    return [
        step
        for value in values
        for step in _build_branch(EQUAL, value, _build_return(ERRNO | EPERM))
    ]
