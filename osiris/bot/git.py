"""Git on the host, in the proven safe way: it never opens a workspace, and takes work as a stranger's push."""

import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from osiris.bot import processes
from osiris.errors import Mendable, Refused, TooSlow, Unavailable

_ENV = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "LANG": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "/bin/false",
    "GIT_NO_REPLACE_OBJECTS": "1",
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


class GitFailed(Exception):
    """git ended with an error; `told` is the end of what it said, on both its outputs."""

    def __init__(self, command: str, told: str) -> None:
        super().__init__(f"git {command}: {told}")
        self.told = told


async def git(
    repo: Path,
    *args: str,
    stdin: bytes | IO[bytes] = b"",
    env: Mapping[str, str] | None = None,
    config: Mapping[str, str] | None = None,
    timeout: float = 120,
    memory: int | None = None,
    most: int | None = None,
) -> bytes:
    """Run git on a repository of our own; what it printed. Raises GitFailed, or TooSlow after `timeout` seconds.

    `memory` is how many bytes it may fill; of what it prints only `most` bytes are the answer.
    Configuration goes through the environment, so that no token is ever in an argv.
    """
    argv = ["git", *args] if memory is None else ["prlimit", f"--data={memory}", "--", "git", *args]
    environ = {**_ENV, **_settings({**_CONFIG, **(config or {})}), "GIT_DIR": str(repo), **(env or {})}
    try:
        code, out, told = await processes.run(argv, env=environ, stdin=stdin, timeout=timeout, most=most)
    except TimeoutError:
        raise TooSlow(f"git {args[0]} gave no answer in {timeout:g} seconds") from None
    if most is not None and len(out) >= most:
        return out
    if code == -signal.SIGKILL:
        raise TooSlow(f"git {args[0]} was cut off; this machine may be short of memory")
    if code < 0:
        raise GitFailed(args[0], f"ended by signal {-code}")
    if code:
        raise GitFailed(args[0], (told + out[:2000]).decode("utf-8", "replace")[-3000:].strip())
    return out


def _settings(config: Mapping[str, str]) -> dict[str, str]:
    """git's configuration as environment variables."""
    pairs = {"GIT_CONFIG_COUNT": str(len(config))}
    for i, (key, value) in enumerate(config.items()):
        pairs |= {f"GIT_CONFIG_KEY_{i}": key, f"GIT_CONFIG_VALUE_{i}": value}
    return pairs


async def has(repo: Path, what: str) -> bool:
    """Whether a repository has an object."""
    try:
        await git(repo, "cat-file", "-e", what)
    except GitFailed:
        return False
    return True


def shown(path: bytes) -> str:
    """A file name as text; what is no UTF-8 or not printable is escaped."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


OVERTAKEN = re.compile(r"non-fast-forward|fetch first|stale info|Updates were rejected")
"""What git says when the end of a branch is not the one it knew."""


def outage(error: GitFailed, what: str) -> Refused | Unavailable:
    """What a failed fetch or push means: for good, or only now."""
    told = error.told
    if OVERTAKEN.search(told):
        return Refused("somebody else pushed to the branch while I worked, and I never force a push")
    if re.search(r"cannot lock ref|Internal Server Error|unpacker error", told):
        return Unavailable(f"git could not {what}: GitHub had a fault of its own")
    if match := re.search(r"\[remote rejected\][^\n]*", told):
        return Mendable(f"GitHub rejected the {what}: {match[0]}")
    if re.search(r"returned error: 40[134]|Authentication failed|not found|could not read Username", told):
        return Mendable(f"GitHub does not let Osiris {what} here; the App needs Contents: write on this repository")
    return Unavailable(f"git could not {what}: {told.splitlines()[0][:200] if told else 'no answer'}")
