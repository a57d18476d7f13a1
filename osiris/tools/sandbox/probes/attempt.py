"""Trial commands, run as the jails' user outside of a jail or in a part of one: the probes use them
to find out what this machine can do."""

import errno
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from osiris.tools.sandbox.jail import seccomp
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec, build_arguments
from osiris.tools.sandbox.jail.jail_user import build_unprivileged_command
from osiris.tools.sandbox.jail.process import BWRAP, TIMEOUT


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    ok: bool
    output: str
    passing: bool = False
    """True for a failure because of a shortage (time, memory) that may soon be over."""


def attempt_bwrap(
    options: Sequence[str], argv: Sequence[str], *, fds: Sequence[int] = ()
) -> AttemptResult:
    """Try bwrap with these options, as the jails' user. Return whether it succeeded, and its
    output."""
    return attempt_command([BWRAP, *options, "--die-with-parent", "--", *argv], fds=fds)


def attempt_command(
    argv: Sequence[str], *, fds: Sequence[int] = (), before: Sequence[str] = ()
) -> AttemptResult:
    """Try a command outside of any jail, as the jails' user; the words `before` it run as the
    worker's user."""
    command = [*before, *build_unprivileged_command(argv)]
    try:
        done = subprocess.run(
            command,
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            pass_fds=fds,
        )
    except subprocess.TimeoutExpired:
        return AttemptResult(ok=False, output=f"no answer in {TIMEOUT:g} seconds", passing=True)
    except OSError as error:
        return AttemptResult(
            ok=False, output=str(error), passing=error.errno in (errno.EAGAIN, errno.ENOMEM)
        )
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    return AttemptResult(
        ok=done.returncode == 0, output=said, passing=done.returncode == -signal.SIGKILL
    )


def attempt_jail(spec: JailSpec, argv: Sequence[str]) -> AttemptResult:
    """Try a command in a complete jail, but without limits and without a cgroup."""
    rules = os.memfd_create("osiris")
    try:
        os.pwrite(rules, seccomp.build_program(), 0)
        return attempt_bwrap([*build_arguments(spec), "--seccomp", str(rules)], argv, fds=[rules])
    finally:
        os.close(rules)
