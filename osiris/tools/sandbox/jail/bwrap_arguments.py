"""The part of the host that a jail sees, and the options of bubblewrap for it: a pure function from
values to a list."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from osiris.core.ports.sandbox import SandboxLimits
from osiris.tools.sandbox.guest.proxy_bridge import FOLDER as PROXY_FOLDER
from osiris.tools.sandbox.guest.proxy_bridge import PORT

SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
TMP: Final = "/tmp"  # noqa: S108  (inside a jail, which has no other users)
SHM: Final = "/dev/shm"  # noqa: S108
ENVIRONMENT: Final[Mapping[str, str]] = {
    "HOME": "/home/agent",
    "USER": "agent",
    "LOGNAME": "agent",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "TMPDIR": TMP,
    "CI": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "PAGER": "cat",
    # leak detection needs ptrace, which is refused: every ASan program would fail at its end
    "ASAN_OPTIONS": "detect_leaks=0",
    # else the work of an agent that ran tests would contain compiled files
    "PYTHONPYCACHEPREFIX": f"{TMP}/pycache",
}


PROXY: Final = f"http://127.0.0.1:{PORT}"
BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
PROXIED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "CARGO_HTTP_PROXY"), PROXY
    ),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1"),
    # the certificates that this machine trusts, for tools that ship with others
    **dict.fromkeys(
        ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), BUNDLE
    ),
    **dict.fromkeys(("CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO"), BUNDLE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JailSpec:
    """The specification of a jail: what it sees of the host, and its limits.

    Without `home` or `tmp` the jail gets a fresh tmpfs of `limits.scratch` bytes there.
    `proxy_folder` is the folder with the socket of the egress proxy, `cargo` one with a
    configuration file of cargo. `nsenter_prefix` are the words before a command that must see these
    paths, and `uid` is the host user of a root worker's session. `devices` is a read-only /dev of
    the session, and `terminals` a separate devpts; without them bubblewrap makes both.
    """

    etc: Path
    usr: Path = Path("/usr")
    devices: Path | None = None
    terminals: Path | None = None
    uid: int | None = None
    work: Path
    work_writable: bool = True
    tmp: Path | None = None
    home: Path | None = None
    mirror: Path | None = None
    extra: Sequence[tuple[Path, str, bool]] = ()  # (on the host, inside, writable)
    toolchains: Sequence[Path] = ()
    proxy_folder: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    cargo: Path | None = None
    nsenter_prefix: Sequence[str] = ()
    limits: SandboxLimits = field(default_factory=SandboxLimits)


def build_arguments(spec: JailSpec) -> list[str]:
    """Return bwrap's options for a jail: a pure function, so that the whole policy can be read and
    tested as a list."""
    return [
        *_build_namespaces(),
        *_build_environment(spec),
        *_mount_system(spec),
        *_mount_folders(spec),
        *_remount_read_only(spec),
    ]


def _build_namespaces() -> list[str]:
    spaces = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    spaces += [
        "--unshare-cgroup-try",
        "--disable-userns",
        "--uid",
        "1000",
        "--gid",
        "1000",
        "--hostname",
        "sandbox",
    ]
    return [*spaces, "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]


def _build_environment(spec: JailSpec) -> list[str]:
    path = ":".join([*(str(chain / "bin") for chain in spec.toolchains), SYSTEM_PATH])
    told = {
        "PATH": path,
        **ENVIRONMENT,
        **(PROXIED if spec.proxy_folder else {}),
        **spec.environment,
    }
    return [word for name, value in told.items() for word in ("--setenv", name, value)]


def _mount_system(spec: JailSpec) -> list[str]:
    options = ["--ro-bind", str(spec.usr), "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            options += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            options += ["--ro-bind", f"/{name}", f"/{name}"]
    options += ["--ro-bind", str(spec.etc), "/etc", "--proc", "/proc"]
    if spec.devices:
        return [*options, "--dev-bind", str(spec.devices), "/dev"]
    options += ["--dev", "/dev"]
    return [*options, *(("--dev-bind", str(spec.terminals), "/dev/pts") if spec.terminals else ())]


def _mount_folders(spec: JailSpec) -> list[str]:
    limits = spec.limits
    options = _mount_tmpfs(SHM, limits.shared_memory, "1777")
    for path, inside, mode in ((spec.tmp, TMP, "1777"), (spec.home, "/home/agent", "0700")):
        options += (
            ["--bind", str(path), inside] if path else _mount_tmpfs(inside, limits.scratch, mode)
        )
    options += ["--bind" if spec.work_writable else "--ro-bind", str(spec.work), "/workspace"]
    if spec.mirror:
        options += ["--ro-bind", str(spec.mirror), "/base.git"]
    for chain in spec.toolchains:
        options += ["--ro-bind", str(chain), str(chain)]
    if spec.proxy_folder:
        options += ["--ro-bind", str(spec.proxy_folder), PROXY_FOLDER]
    if spec.cargo:
        # cargo looks here for the configuration of all folders below /
        options += ["--ro-bind", str(spec.cargo), "/.cargo"]
    for path, inside, writable in spec.extra:
        options += ["--bind" if writable else "--ro-bind", str(path), inside]
    return options


def _mount_tmpfs(path: str, size: int, mode: str) -> list[str]:
    # without a size a tmpfs may take half of the host's memory
    return ["--size", str(size), "--perms", mode, "--tmpfs", path]


def _remount_read_only(spec: JailSpec) -> list[str]:
    # remounting a bound /dev would make its devices unusable
    folders = ["/proc", "/"] if spec.devices else ["/proc", "/dev", "/"]
    return [
        *(word for folder in folders for word in ("--remount-ro", folder)),
        "--chdir",
        "/workspace",
    ]
