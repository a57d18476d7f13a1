"""What a jail sees of the host, and how bubblewrap is told so: values in, a list of options out."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from osiris.core.ports.sandbox import SandboxLimits
from osiris.tools.sandbox.guest.proxy_bridge import FOLDER as WAY_OUT
from osiris.tools.sandbox.guest.proxy_bridge import PORT

SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
TMP: Final = "/tmp"  # noqa: S108  (inside a jail, where nobody else is)
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
    # that wants ptrace; without it every program built so fails at its end
    "ASAN_OPTIONS": "detect_leaks=0",
    # or the work of an agent that ran tests would hold compiled files
    "PYTHONPYCACHEPREFIX": f"{TMP}/pycache",
}


PROXY: Final = f"http://127.0.0.1:{PORT}"
BUNDLE: Final = "/etc/ssl/certs/ca-certificates.crt"
PROXIED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "CARGO_HTTP_PROXY"), PROXY
    ),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "localhost,127.0.0.1,::1"),
    # the certificates that this machine trusts, for tools that bring some of their own
    **dict.fromkeys(
        ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"), BUNDLE
    ),
    **dict.fromkeys(("CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO"), BUNDLE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JailSpec:
    """What a jail sees of the host; a missing `home` or `tmp` is a fresh tmpfs of `limits.scratch`
    bytes.

    `proxy_folder` is a folder with the socket of a proxy, `cargo` one with a file of cargo's;
    `enter` are the words before a command that has to see all this, and `uid` is the host's user of
    a root worker's session. `devices` is a read-only /dev of the session's, and `terminals` a
    devpts of its own; without them bubblewrap makes both.
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


def build_arguments(view: JailSpec) -> list[str]:
    """The view as bwrap's options: a pure function, so that the whole policy can be read and tested
    as a list."""
    return [
        *_build_namespaces(),
        *_build_environment(view),
        *_mount_system(view),
        *_mount_folders(view),
        *_remount_read_only(view),
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


def _build_environment(view: JailSpec) -> list[str]:
    path = ":".join([*(str(chain / "bin") for chain in view.toolchains), SYSTEM_PATH])
    told = {
        "PATH": path,
        **ENVIRONMENT,
        **(PROXIED if view.proxy_folder else {}),
        **view.environment,
    }
    return [word for name, value in told.items() for word in ("--setenv", name, value)]


def _mount_system(view: JailSpec) -> list[str]:
    options = ["--ro-bind", str(view.usr), "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if os.path.islink(f"/{name}"):
            options += ["--symlink", f"usr/{name}", f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            options += ["--ro-bind", f"/{name}", f"/{name}"]
    options += ["--ro-bind", str(view.etc), "/etc", "--proc", "/proc"]
    if view.devices:
        return [*options, "--dev-bind", str(view.devices), "/dev"]
    options += ["--dev", "/dev"]
    return [*options, *(("--dev-bind", str(view.terminals), "/dev/pts") if view.terminals else ())]


def _mount_folders(view: JailSpec) -> list[str]:
    limits = view.limits
    options = _mount_tmpfs(SHM, limits.shared_memory, "1777")
    for path, inside, mode in ((view.tmp, TMP, "1777"), (view.home, "/home/agent", "0700")):
        options += (
            ["--bind", str(path), inside] if path else _mount_tmpfs(inside, limits.scratch, mode)
        )
    options += ["--bind" if view.work_writable else "--ro-bind", str(view.work), "/workspace"]
    if view.mirror:
        options += ["--ro-bind", str(view.mirror), "/base.git"]
    for chain in view.toolchains:
        options += ["--ro-bind", str(chain), str(chain)]
    if view.proxy_folder:
        options += ["--ro-bind", str(view.proxy_folder), WAY_OUT]
    if view.cargo:
        # cargo looks there for what holds below
        options += ["--ro-bind", str(view.cargo), "/.cargo"]
    for path, inside, writable in view.extra:
        options += ["--bind" if writable else "--ro-bind", str(path), inside]
    return options


def _mount_tmpfs(path: str, size: int, mode: str) -> list[str]:
    # without a size it is half of the host's memory
    return ["--size", str(size), "--perms", mode, "--tmpfs", path]


def _remount_read_only(view: JailSpec) -> list[str]:
    # it would take the devices from a bound /dev
    folders = ["/proc", "/"] if view.devices else ["/proc", "/dev", "/"]
    return [
        *(word for folder in folders for word in ("--remount-ro", folder)),
        "--chdir",
        "/workspace",
    ]
