"""The checkout of a new workspace, in a jail: a clone of the mirror, the files of the set-up, and
the work of a checkpoint."""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from osiris.core.errors import LocalTimeout, Refused, Unavailable
from osiris.core.ports.sandbox import Result
from osiris.tools.sandbox.disks.disk import INDEX, LEFT, OWN, Disk
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.process import run_once

KILLED: Final = 128 + 9  # SIGKILL
NO_MIRROR = 64
NO_COMMIT = 65
NO_ROOM = 66

# $1 is the commit, $2 a commit whose files then replace those of $1. It is a clone and not a
# worktree: a worktree needs a writable mirror, in which a planted hook ran as root outside. Over a
# cached checkout of another commit git uses the index that was saved with it, and writes only the
# files that differ. Two helper processes inflate and write files: a sixth faster than one on two
# cores.
SCRIPT: Final = r"""
git -C /base.git rev-parse -q --git-dir >/dev/null || exit 64
git -C /base.git cat-file -e "$1^{commit}" 2>/dev/null || exit 65
set -e
if [ -e /base.index ]; then
    cp -p /base.index .git/index
    said=$(git reset -q --hard "$1" -- 2>&1)
else
    git clone -q --shared --no-checkout --template= /base.git /workspace
    said=$(git -c checkout.workers=2 checkout -q -b work "$1" -- 2>&1)
fi
case "$said" in *error:*) echo "$said"; exit 66 ;; esac  # a full disk is reported so
cp -p .git/index /keep/index
[ -z "$2" ] || git restore --quiet --source "$2" --worktree --no-overlay -- .
# No git from here on: the set-up's files are untrusted, a git configuration in the home too.
if [ -e /setup.tar ]; then
    tar -x -f /setup.tar -C / --skip-old-files --no-same-owner \
        --exclude=tmp/own --exclude=tmp/left --exclude=tmp/exclude 2>/tmp/said || {
        tail -n 1 /tmp/said; exit 66
    }
    tar -x -O -f /setup.tar tmp/own >/keep/own
    tar -x -O -f /setup.tar tmp/left >/keep/left
    mkdir -p .git/info
    tar -x -O -f /setup.tar tmp/exclude >>.git/info/exclude
fi
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckoutSpec:
    """The content of a new workspace: commit `base`, the files of commit `files` over it ("":
    none), and the tar of a `setup`. `index` is the index of the cached checkout under the disk, if
    there is one."""

    base: str
    files: str = ""
    index: Path | None = None
    setup: Path | None = None


async def check_out(
    spec: JailSpec, disk: Disk, cgroup: Cgroup | None, checkout: CheckoutSpec
) -> None:
    """Fill the workspace of `disk`, and store the index of its base in `keep`. Raises Refused or
    Unavailable."""
    shown = ((checkout.index, "/base.index"), (checkout.setup, "/setup.tar"))
    extra = [
        (disk.folder / "keep", "/keep", True),
        *((path, inside, False) for path, inside in shown if path),
    ]
    spec = replace(spec, extra=extra, toolchains=(), proxy_folder=None)
    argv = ["/bin/bash", "-c", SCRIPT, "checkout", checkout.base, checkout.files]
    result = await run_once(spec, argv, spec.limits.open_seconds, cgroup=cgroup)
    _check_result(result, spec, checkout.base)
    left = set(os.listdir(disk.host_only))
    if not {INDEX} <= left <= {INDEX, OWN, LEFT} or not all(
        _is_plain_file(disk.host_only / name) for name in left
    ):
        raise Refused("the checkout left no index, or more than that")


def copy_index(index: Path, disk: Disk) -> None:
    """Copy the index of a cached checkout to `keep`, for a workspace that contains just this
    checkout.

    The time is copied too, otherwise a change within the second of the checkout would be hidden.
    """
    try:
        shutil.copy2(index, disk.host_only / INDEX, follow_symlinks=False)
    except OSError as error:
        raise Unavailable(f"the kept checkout cannot be read: {error.strerror}") from None
    if not _is_plain_file(disk.host_only / INDEX):
        raise Refused("the checkout left no index")


def _is_plain_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _check_result(result: Result, spec: JailSpec, base: str) -> None:
    words = os.fsdecode(result.output).strip()[-300:]
    if result.exit_code == 0:
        return
    if result.timed_out:
        raise LocalTimeout(
            f"checking the repository out took longer than {spec.limits.open_seconds:g} seconds"
        )
    if result.exit_code is None or result.exit_code == KILLED:
        raise LocalTimeout(
            "checking the repository out was cut off; this machine may be short of memory"
        )
    if result.exit_code == NO_MIRROR:
        raise Refused(f"the mirror {spec.mirror} is not a repository that git can read: {words}")
    if result.exit_code == NO_COMMIT:
        raise Refused(f"the base commit {base} is not in the mirror")
    if result.exit_code == NO_ROOM or "No space left" in words:
        raise Refused(
            f"the repository does not fit on the session's disk of {spec.limits.disk >> 20} MiB"
        )
    raise Refused(f"the repository could not be checked out: {words}")
