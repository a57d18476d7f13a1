"""What this machine can do for a sandbox, each line found out by doing it, never guessed from a version."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from osiris.ports import Probe
from osiris.tools import cgroup, seccomp
from osiris.tools.bubblewrap import BWRAP, Trial, attempt, attempt_plain, attempt_view, dropped_uid
from osiris.tools.disk import can_bound
from osiris.tools.limits import Limits
from osiris.tools.view import View

BOUNDED_DISK: Final = "size-limited disk"
SYSTEM: Final = [
    *("--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib"),
    *("--symlink", "usr/lib64", "/lib64"),
]
SPACES: Final = [
    *("--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
    *("--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--new-session"),
]
UNMASK: Final = (
    "In a container /proc is masked: --security-opt systempaths=unconfined with a non-root USER (Docker), "
    "--security-opt unmask=ALL (Podman), procMount: Unmasked with hostUsers: false (Kubernetes)."
)

# Asked inside the whole profile; every line of the answer is one probe that held.
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
open_settings = any(map(writable, ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger")))
says("sealed", not open_settings and not open("/proc/1/environ", "rb").read())
unshared = ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0
says("seccomp", "\nSeccomp:\t2" in status and not opens(40) and opens(socket.AF_INET) and not unshared)
says("git", subprocess.run(["git", "--version"], capture_output=True).returncode == 0)
"""


def run(root: Path, etc: Path, limits: Limits) -> list[Probe]:
    """Ask everything; later questions are left out when one they rest on has failed."""
    return [*_ground(root, etc), *_profile(root, etc, limits), *_bounds(root, limits)]


def _ground(root: Path, etc: Path) -> Iterator[Probe]:
    trial = attempt_plain([BWRAP, "--version"])
    yield _probe("bubblewrap installed", trial, trial.said[:100], "Install it: apt-get install bubblewrap.")
    uid = dropped_uid()
    if uid is not None:
        trial = attempt_plain(["/usr/bin/true"])
        fix = "Run the worker as an ordinary user, or give it CAP_SETUID and CAP_SETGID (and util-linux's setpriv)."
        yield _probe("drop to an unprivileged user", trial, trial.said[:100] or f"uid {uid}", fix)
    trial = attempt_plain(["/usr/bin/test", "-r", str(etc / "passwd")])
    fix = f"Make every folder above {root} searchable for others: chmod 711."
    yield _probe("data folder reachable", trial, trial.said[:100] or str(root), fix)
    trial = attempt([*SPACES, *SYSTEM], ["/usr/bin/true"])
    yield _probe("namespaces", trial, trial.said[:160], "" if trial.ok else _namespace_fix())
    trial = attempt([*SPACES, *SYSTEM, "--proc", "/proc"], ["/usr/bin/true"])
    yield _probe("private /proc", trial, trial.said[:160], UNMASK)


def _probe(name: str, trial: Trial, detail: str, fix: str) -> Probe:
    return Probe(name=name, ok=trial.ok, detail=detail, fix=fix, passing=trial.passing)


def _profile(root: Path, etc: Path, limits: Limits) -> Iterator[Probe]:
    trial = _try_profile(etc, limits)
    held = trial.said.split() if trial.ok else []
    rows: Sequence[tuple[str, str, str]] = (
        ("sealed", "host settings not writable, pid 1 without environment", "Never start bubblewrap with host uid 0."),
        ("seccomp", "system-call filter", "It needs CONFIG_SECCOMP_FILTER and an x86_64 or aarch64 processor."),
        ("python", "python3 inside", "Install it: apt-get install python3 (jails see /usr, not /usr/local alone)."),
        ("git", "git inside", "Install it: apt-get install git."),
    )
    for word, name, fix in rows:
        detail = "" if word in held else trial.said[-200:]
        yield Probe(name=name, ok=word in held, detail=detail, fix=fix, passing=trial.passing)


def _try_profile(etc: Path, limits: Limits) -> Trial:
    if not seccomp.supported():
        return Trial(ok=False, said="no system-call filter for this processor")
    view = View(etc=etc, work=etc, work_writable=False, limits=limits)
    return attempt_view(view, ["/usr/bin/python3", "-I", "-S", "-c", QUESTIONS])


def _bounds(root: Path, limits: Limits) -> Iterator[Probe]:
    name = f"osiris-probe-{os.getpid()}"
    group = cgroup.make(name, limits)
    if group:
        group.remove()
    yield Probe(
        name="memory and process limits (cgroup)",
        ok=group is not None,
        needed=False,
        fix="systemd: Delegate=yes; a container: a writable cgroup; or limit the memory of the whole worker.",
    )
    trouble = can_bound(root)
    yield Probe(
        name=BOUNDED_DISK,
        ok=not trouble,
        needed=False,
        detail=trouble[:160],
        fix="Run the worker as root with loop devices and CAP_SYS_ADMIN, or give the data folder a disk of its own.",
    )


def _namespace_fix() -> str:
    if _setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "Ubuntu: add the AppArmor profile `profile bwrap /usr/bin/bwrap flags=(unconfined) { userns, }`, "
            "or set sysctl kernel.apparmor_restrict_unprivileged_userns=0."
        )
    if _setting("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "Debian: set sysctl kernel.unprivileged_userns_clone=1."
    if _setting("/proc/sys/user/max_user_namespaces") == "0":
        return "Set sysctl user.max_user_namespaces=10000."
    if "\nSeccomp:\t2" in _setting("/proc/self/status"):
        return (
            "The container forbids namespaces: --security-opt seccomp=PROFILE that also allows clone, unshare, mount, "
            "umount2, pivot_root and sethostname, --security-opt systempaths=unconfined, on AppArmor hosts also "
            "--security-opt apparmor=unconfined, and a non-root USER."
        )
    return "Let ordinary users make user namespaces on this machine."


def _setting(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
