"""The probes of what this machine can do for a sandbox: each tries the feature itself, none relies
on a version number."""

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from osiris.core.ports.sandbox import MIB, Probe, SandboxLimits
from osiris.tools.sandbox.disks.disk import HostDiskFull
from osiris.tools.sandbox.disks.image_disk import probe_mount, probe_separate_users
from osiris.tools.sandbox.disks.tmpfs_disk import probe_tmpfs
from osiris.tools.sandbox.jail import cgroup, seccomp
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec
from osiris.tools.sandbox.jail.jail_user import resolve_jail_uid
from osiris.tools.sandbox.jail.process import BWRAP
from osiris.tools.sandbox.probes.attempt import (
    AttemptResult,
    attempt_bwrap,
    attempt_command,
    attempt_jail,
)

SYSTEM: Final = [
    *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
    *("--symlink", "usr/lib64", "/lib64"),
]
SPACES: Final = [
    *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
    *("--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--new-session"),
]
UNMASK: Final = (
    "In a container /proc is masked: --security-opt systempaths=unconfined with a non-root USER"
    " (Docker), --security-opt unmask=ALL (Podman), procMount: Unmasked with hostUsers: false"
    " (Kubernetes)."
)

# Runs inside a complete jail; every line of the output is one probe that succeeded.
QUESTIONS: Final = r"""
import ctypes, os, socket, subprocess
def says(word, holds):
    if holds: print(word, flush=True)
def writable(path):
    try: os.close(os.open(path, os.O_WRONLY)); return True
    except OSError: return False
def opens(family):
    try: socket.socket(family).close(); return True
    except OSError: return False
status = open("/proc/self/status").read()
says("python", True)
says("settings", not any(map(writable, ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger"))))
says("environ", not open("/proc/1/environ", "rb").read())
says("vsock", not opens(40))
unshared = ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0
says("seccomp", "\nSeccomp:\t2" in status and opens(socket.AF_INET) and not unshared)
says("git", subprocess.run(["git", "--version"], capture_output=True).returncode == 0)
"""

DISK, MEMORY = "size-limited disk", "memory and process limits"
APART: Final = "a user for each session"
SMALL: Final = SandboxLimits(memory=48 * MIB, processes=16)
# Runs in a cgroup with these limits, which must stop 32 more processes, and 160 MiB.
GREEDY: Final = """
import os, time
forks = 0
try:
    for forks in range(32):
        if os.fork() == 0: os.closerange(0, 3); time.sleep(9); os._exit(0)
except OSError: pass
print(forks, flush=True)
bytearray(160 << 20)
"""


def run_probes(root: Path, etc: Path, *, weak: bool, bounds: Sequence[Probe] = ()) -> list[Probe]:
    """Run all probes, except those of the `bounds` that held before. `weak`: the operator allows
    runs without a memory limit."""
    found = [*_probe_host(root, etc), *_probe_profile(etc), *(bounds or _probe_bounds(root, weak))]
    return found if resolve_jail_uid() is None else [*found, _probe_separate_users(root, etc)]


def select_held_bounds(found: Sequence[Probe]) -> list[Probe]:
    """Return the probes of limits in `found`, when all of them hold; else an empty list.

    They are not repeated: each time a process that takes too much memory is killed, which operators
    see in the kernel's log.
    """
    bounds = [probe for probe in found if probe.name in (DISK, MEMORY)]
    return bounds if all(probe.ok for probe in bounds) else []


def _probe_host(root: Path, etc: Path) -> Iterator[Probe]:
    trial = attempt_command([BWRAP, "--version"])
    yield _build_probe(
        "bubblewrap installed", trial, trial.output[:100], "Install it: apt-get install bubblewrap."
    )
    uid = resolve_jail_uid()
    if uid is not None:
        trial = attempt_command(["/usr/bin/true"])
        fix = (
            "Run the worker as an ordinary user, or give it CAP_SETUID and CAP_SETGID (and"
            " util-linux's setpriv)."
        )
        yield _build_probe(
            "drop to an unprivileged user", trial, trial.output[:100] or f"uid {uid}", fix
        )
    trial = attempt_command(["/usr/bin/test", "-r", str(etc / "passwd")])
    fix = f"Make every folder above {root} searchable for others: chmod 711."
    yield _build_probe("data folder reachable", trial, trial.output[:100] or str(root), fix)
    trial = attempt_bwrap([*SPACES, *SYSTEM], ["/usr/bin/true"])
    yield _build_probe(
        "namespaces", trial, trial.output[:160], "" if trial.ok else _suggest_namespace_fix()
    )
    trial = attempt_bwrap([*SPACES, *SYSTEM, "--proc", "/proc"], ["/usr/bin/true"])
    yield _build_probe("private /proc", trial, trial.output[:160], UNMASK)


def _build_probe(name: str, trial: AttemptResult, detail: str, fix: str) -> Probe:
    return Probe(name=name, ok=trial.ok, detail=detail, fix=fix, passing=trial.passing)


def _probe_profile(etc: Path) -> Iterator[Probe]:
    trial = _attempt_profile(etc)
    held = trial.output.split() if trial.ok else []
    never_root = "Never start bubblewrap with host uid 0."
    filtered = "It needs CONFIG_SECCOMP_FILTER and an x86_64 or aarch64 processor."
    rows: Sequence[tuple[str, str, str]] = (
        ("settings", "the host's core_pattern not writable", never_root),
        ("environ", "pid 1's environment empty", never_root),
        ("vsock", "vsock closed", filtered),
        ("seccomp", "system-call filter", filtered),
        (
            "python",
            "python3 inside",
            "Install it: apt-get install python3 (jails see /usr, not /usr/local alone).",
        ),
        ("git", "git inside", "Install it: apt-get install git."),
    )
    for word, name, fix in rows:
        detail = "" if word in held else trial.output[-200:]
        yield Probe(name=name, ok=word in held, detail=detail, fix=fix, passing=trial.passing)


def _attempt_profile(etc: Path) -> AttemptResult:
    if not seccomp.is_supported():
        return AttemptResult(ok=False, output="no system-call filter for this processor")
    spec = JailSpec(etc=etc, work=etc, work_writable=False)
    return attempt_jail(spec, ["/usr/bin/python3", "-I", "-S", "-c", QUESTIONS])


def _probe_bounds(root: Path, weak: bool) -> Iterator[Probe]:
    yield _probe_disk(root)
    trial = _attempt_limits()
    yield Probe(
        name=MEMORY,
        ok=trial.ok,
        needed=not weak,
        detail=trial.output[:160],
        fix=(
            "They need a cgroup that the worker may write to (systemd: Delegate=yes). To go"
            " without, limit the memory of the whole worker and set OSIRIS_SANDBOX=weak; every pull"
            " request will say so."
        ),
        passing=trial.passing,
    )


def _probe_disk(root: Path) -> Probe:
    fix = "Run the worker as an ordinary user, or as root with loop devices and CAP_SYS_ADMIN."
    try:
        trouble = probe_mount(root) if resolve_jail_uid() is not None else probe_tmpfs(root)
    except HostDiskFull as full:
        return Probe(name=DISK, ok=False, detail=str(full), fix="Make room.", passing=True)
    return Probe(name=DISK, ok=not trouble, detail=trouble[:160], fix=fix)


def _probe_separate_users(root: Path, etc: Path) -> Probe:
    """Probe whether each session of a root worker can have a separate user. Without that all
    sessions are processes of one user."""
    fix = (
        "It needs Linux 5.19, and overlayfs in the kernel. Without it sessions share what is"
        " counted by user."
    )
    try:
        trouble, shared = probe_separate_users(root, etc)
    except HostDiskFull as full:
        return Probe(
            name=APART, ok=False, needed=False, detail=str(full), fix="Make room.", passing=True
        )
    detail = trouble[:160] or (f"shared: {', '.join(shared)}" if shared else "")
    return Probe(name=APART, ok=not trouble, needed=False, detail=detail, fix=fix)


def _attempt_limits() -> AttemptResult:
    """Try whether a cgroup can be created here, and stops a program that takes too much."""
    cgroup.remove_stale_cgroups("osiris-probe-")
    group = cgroup.make_cgroup(name := f"osiris-probe-{os.getpid()}-{secrets.token_hex(4)}", SMALL)
    if group is None:
        return AttemptResult(ok=False, output="no cgroup can be made here")
    try:
        join = "".join(f"echo $$ >'{folder}/cgroup.procs' && " for folder in group.folders)
        words = ["/bin/sh", "-c", join + 'exec "$@"', "join"]
        trial = attempt_command(["/usr/bin/python3", "-I", "-S", "-c", GREEDY], before=words)
        stopped = group.count_oom_kills() > 0
    finally:
        _remove_cgroup(name, group)
    if trial.passing and not stopped:
        return trial
    few = trial.output.isdecimal() and int(trial.output) < 32
    return AttemptResult(
        ok=few and stopped, output="" if few and stopped else f"they do not hold: {trial.output}"
    )


def _remove_cgroup(name: str, group: cgroup.Cgroup) -> None:
    for _ in range(200):
        if group.remove():
            return
        time.sleep(0.01)


def _suggest_namespace_fix() -> str:
    if _read_setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "Ubuntu: add the AppArmor profile `profile bwrap /usr/bin/bwrap flags=(unconfined) {"
            " userns, }`, or set sysctl kernel.apparmor_restrict_unprivileged_userns=0."
        )
    if _read_setting("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "Debian: set sysctl kernel.unprivileged_userns_clone=1."
    if _read_setting("/proc/sys/user/max_user_namespaces") == "0":
        return "Set sysctl user.max_user_namespaces=10000."
    if "\nSeccomp:\t2" in _read_setting("/proc/self/status"):
        return (
            "The container forbids namespaces: --security-opt seccomp=PROFILE that also allows"
            " clone, unshare, mount, umount2, pivot_root and sethostname, --security-opt"
            " systempaths=unconfined, on AppArmor hosts also --security-opt apparmor=unconfined,"
            " and a non-root USER."
        )
    return "Let ordinary users make user namespaces on this machine."


def _read_setting(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
