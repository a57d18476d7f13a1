"""A command tried as the jails' user, outside of any jail or in a part of one: what a machine can
do is found so."""

import errno
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from osiris.tools.sandbox.jail import seccomp
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec, build_arguments
from osiris.tools.sandbox.jail.process import BWRAP, PATIENCE, build_unprivileged_command


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptResult:
    ok: bool
    output: str
    passing: bool = False
    """It failed for a want of this machine (time, memory) that may be over in a moment."""


def attempt_bwrap(
    options: Sequence[str], argv: Sequence[str], *, fds: Sequence[int] = ()
) -> AttemptResult:
    """Try bwrap with these options, as the jails' user: whether it went well, and what it said. For
    the probes."""
    return attempt_command([BWRAP, *options, "--die-with-parent", "--", *argv], fds=fds)


def attempt_command(
    argv: Sequence[str], *, fds: Sequence[int] = (), before: Sequence[str] = ()
) -> AttemptResult:
    """Try a command outside of any jail, as the jails' user; what stands `before` it is done as
    ours."""
    command = [*before, *build_unprivileged_command(argv)]
    try:
        done = subprocess.run(
            command,
            env={},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            pass_fds=fds,
        )
    except subprocess.TimeoutExpired:
        return AttemptResult(ok=False, output=f"no answer in {PATIENCE:g} seconds", passing=True)
    except OSError as error:
        return AttemptResult(
            ok=False, output=str(error), passing=error.errno in (errno.EAGAIN, errno.ENOMEM)
        )
    said = (done.stdout + done.stderr).decode(errors="replace").strip()
    return AttemptResult(
        ok=done.returncode == 0, output=said, passing=done.returncode == -signal.SIGKILL
    )


def attempt_jail(view: JailSpec, argv: Sequence[str]) -> AttemptResult:
    """Try a command in the whole profile, without limits and without a cgroup."""
    rules = os.memfd_create("osiris")
    try:
        os.pwrite(rules, seccomp.build_program(), 0)
        return attempt_bwrap([*build_arguments(view), "--seccomp", str(rules)], argv, fds=[rules])
    finally:
        os.close(rules)
