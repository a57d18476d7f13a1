"""Git on the host, run safely. It never opens a workspace, and imports work as untrusted input."""

import re
import resource
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from osiris.bot.git import subprocesses
from osiris.core.errors import LocalTimeout, Refused, Unavailable
from osiris.core.git_environment import HARDENED
from osiris.core.ports.sandbox import GIB, KIB, MIB

_ENV = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    **HARDENED,
    "GIT_ASKPASS": "/bin/false",
    "GIT_LITERAL_PATHSPECS": "1",
}
_CONFIG = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.sshCommand": "/bin/false",
    "core.alternateRefsCommand": "/bin/false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "credential.helper": "",
    "protocol.allow": "never",
    "http.followRedirects": "false",
    "transfer.fsckObjects": "true",
    "fetch.fsckObjects": "true",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "commit.gpgSign": "false",
    "push.gpgSign": "false",
    "submodule.recurse": "false",
    "safe.bareRepository": "explicit",
    "safe.directory": "*",
}
STREAMING = {"core.bigFileThreshold": "1m"}
"""Configuration with which git streams large files instead of reading them whole into memory."""
_ENDLESS = 1 << 48
_OUT_OF_MEMORY = re.compile(r"(?i)out of memory|cannot allocate|could not allocate|inflateinit")
_REMOTE = re.compile(r"(?m)^remote:.*$")
"""Lines from the remote side, whose memory errors do not concern this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GitLimits:
    """The limits of one git process; a child of it may use as much again.

    No value turns a limit off.

    `seconds` is its wall-clock time and `cpu` its seconds of processor time; `memory`, `output`
    (what it prints) and `file_size` (of each file that it writes) are bytes.
    """

    seconds: float = 120
    cpu: int = 60
    memory: int = 512 * MIB
    output: int = 64 * KIB
    file_size: int = 1 * GIB

    def __post_init__(self) -> None:
        values = (self.seconds, self.cpu, self.memory, self.output, self.file_size)
        if not all(0 < value < _ENDLESS for value in values):
            raise ValueError("each limit of git is a positive number")


DEFAULT_LIMITS = GitLimits()


class GitCommandFailed(Exception):
    """git ended with an error; `output` is the beginning and the end of what it printed."""

    def __init__(self, command: str, output: str) -> None:
        super().__init__(f"git {command}: {output}")
        self.output = output


class LimitReached(Refused):
    """git was ended because it reached one of its limits; `limit` is its name in `GitLimits`."""

    def __init__(self, command: str, limit: str, limits: GitLimits) -> None:
        super().__init__(f"git {command} {_describe_limit(limit, limits)}")
        self.limit = limit


async def run_git(
    repo: Path,
    *args: str,
    stdin: bytes | IO[bytes] = b"",
    env: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    limits: GitLimits = DEFAULT_LIMITS,
    head: bool = False,
    to: IO[bytes] | None = None,
) -> bytes:
    """Run git on a host repository and return its output, or write it to the file `to`.

    Raises GitCommandFailed; LocalTimeout after `limits.seconds`; LimitReached when it exceeded a
    limit. With `head`, too much output is no error: the first `limits.output` bytes are returned.
    Configuration is passed through the environment, so that no token is ever in an argv.
    """
    environ = {
        **_ENV,
        **_encode_config({**_CONFIG, **(config or {})}),
        "GIT_DIR": str(repo),
        **(env or {}),
    }
    argv = [
        *_limit_command(limits, limits.file_size if to is None else limits.output),
        "git",
        *args,
    ]
    try:
        result = await subprocesses.run(
            argv,
            env=environ,
            timeout=limits.seconds,
            most=limits.output,
            stdin=stdin,
            to=to,
        )
    except TimeoutError:
        raise LocalTimeout(f"git {args[0]} gave no answer in {limits.seconds:g} seconds") from None
    if result.is_truncated and head:
        return result.out
    if limit := _limit_reached(result, is_listing=to is not None):
        raise LimitReached(args[0], limit, limits)
    _raise_for_exit(args[0], result)
    return result.out


def _raise_for_exit(command: str, result: subprocesses.ProcessResult) -> None:
    """Raise LocalTimeout when git was killed, and GitCommandFailed when it failed."""
    if result.code == -signal.SIGKILL:
        words = result.err.decode("utf-8", "replace").strip()[-300:]
        before = f"; before, it said: {words}" if words else ""
        raise LocalTimeout(
            f"git {command} was cut off: something on this machine killed it{before}"
        )
    if result.code:
        told = (result.err + result.out[:2000]).decode("utf-8", "replace").strip()
        if result.code < 0:
            told = f"{told}\nfatal: ended by {_name_signal(-result.code)}".strip()
        raise GitCommandFailed(command, told)


def _name_signal(number: int) -> str:
    """Return the name of a signal, such as `SIGSEGV`."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _limit_command(limits: GitLimits, file_size: int) -> list[str]:
    """Return the command prefix that sets the limits and then starts git.

    A lower limit of this process stays in force.
    """
    cpu = _cap_limit(limits.cpu, resource.getrlimit(resource.RLIMIT_CPU)[0])
    killed = _cap_limit(limits.cpu + 5, resource.getrlimit(resource.RLIMIT_CPU)[1])
    memory = _cap_limit(limits.memory, resource.getrlimit(resource.RLIMIT_DATA)[0])
    size = _cap_limit(file_size, resource.getrlimit(resource.RLIMIT_FSIZE)[0])
    return [
        "prlimit",
        f"--cpu={cpu}:{killed}",  # SIGXCPU, which shows why git ended, and then SIGKILL
        f"--data={memory}",
        f"--fsize={size}",
        "--core=0",
        "--",
    ]


def _cap_limit(value: int, now: int) -> int:
    return value if now == resource.RLIM_INFINITY else min(now, value)


def _limit_reached(result: subprocesses.ProcessResult, *, is_listing: bool) -> str:
    """Return the name of the limit that ended git or one of its children; "" if none did."""
    if result.is_truncated:
        return "output"
    if result.code == 0:
        return ""
    told = _REMOTE.sub("", result.err.decode("utf-8", "replace"))
    if result.code == -signal.SIGXCPU or f"died of signal {int(signal.SIGXCPU)}" in told:
        return "cpu"
    if result.code == -signal.SIGXFSZ or f"died of signal {int(signal.SIGXFSZ)}" in told:
        return "output" if is_listing else "file_size"
    if _OUT_OF_MEMORY.search(told):
        return "memory"
    return ""


def _describe_limit(limit: str, limits: GitLimits) -> str:
    match limit:
        case "output":
            return f"printed more than {limits.output >> 10} KiB; Osiris reads no more"
        case "cpu":
            return f"needed more than {limits.cpu} seconds of processor time; Osiris allows no more"
        case "file_size":
            return f"wrote a file of more than {limits.file_size >> 20} MiB; Osiris allows no more"
    return f"needed more than {limits.memory >> 20} MiB of memory; Osiris allows no more"


def _encode_config(config: Mapping[str, str]) -> dict[str, str]:
    """Return git's configuration as environment variables."""
    pairs = {"GIT_CONFIG_COUNT": str(len(config))}
    for i, (key, value) in enumerate(config.items()):
        pairs |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    return pairs


async def has_object(repo: Path, what: str) -> bool:
    """Return whether a repository exists and has an object. Raises Unavailable when git cannot
    tell."""
    if not (repo / "HEAD").exists():
        return False
    asked = f"{what}\n".encode()
    try:
        told = await run_git(repo, "cat-file", "--batch-check=%(objectname)", stdin=asked)
    except GitCommandFailed as error:
        raise Unavailable(
            f"this machine could not read its copy of the repository: {error}"[:300]
        ) from None
    return not told.endswith(b" missing\n")


def escape_path(path: bytes) -> str:
    """Return a file name as text. Bytes that are not UTF-8 or not printable are escaped."""
    text = path.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
