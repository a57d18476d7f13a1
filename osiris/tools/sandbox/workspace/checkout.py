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
from osiris.tools.sandbox.workspace.failure_words import explain_kill, quote_errors

KILLED: Final = 128 + 9  # SIGKILL
FILE_TOO_LARGE: Final = 128 + 25  # SIGXFSZ
NO_MIRROR = 64
NO_COMMIT = 65

# $1 is the commit, $2 a commit whose files then replace those of $1. It is a clone and not a
# worktree: a worktree needs a writable mirror, in which a planted hook ran as root outside. Over a
# cached checkout of another commit git uses the index that was saved with it, and writes only the
# files that differ. Two helper processes inflate and write files: a sixth faster than one on two
# cores. Git succeeds even when it could not write files, so its messages are read; a file that is
# not in the encoding that an attribute states is checked out with its own bytes. The index is
# compared with restored files right away: later git would take those of the same second and size
# for unchanged.
SCRIPT: Final = r"""
git -C /base.git rev-parse -q --git-dir >/dev/null || exit 64
git -C /base.git cat-file -e "$1^{commit}" || exit 65
set -e
write_files() {
    code=0
    said=$("$@" 2>&1) || code=$?
    [ $code = 0 ] || { printf '%s\n' "$said"; exit $code; }
    lost=$(printf '%s\n' "$said" | grep -a '^error: ' | grep -av "^error: failed to encode '") || :
    [ -z "$lost" ] || {
        # One file after the other: these fill the disk if it is too small, and stay.
        git checkout-index -q -f -a >/dev/null 2>&1 || :
        printf '%s\n' "$lost" | head -n 5
        exit 66
    }
}
if [ -e /base.index ]; then
    cp -p /base.index .git/index
    write_files git reset -q --hard "$1" --
else
    git clone -q --shared --no-checkout --template= /base.git /workspace
    write_files git -c checkout.workers=2 checkout -q -b work "$1" --
fi
cp -p .git/index /keep/index
if [ "$2" ]; then
    write_files git restore --quiet --source "$2" --worktree --no-overlay -- .
    GIT_INDEX_FILE=/keep/index write_files git update-index -q --refresh --force-write-index
fi
# No git from here on: the set-up's files are untrusted, a git configuration in the home too.
if [ -e /setup.tar ]; then
    tar -x -f /setup.tar -C / --skip-old-files --no-same-owner \
        --exclude=tmp/own --exclude=tmp/left --exclude=tmp/exclude 2>/tmp/said || {
        tail -n 3 /tmp/said; exit 66
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
    if result.exit_code != 0:
        raise _explain_failure(result, spec, checkout.base, disk.describe_shortage())
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


def _explain_failure(
    result: Result, spec: JailSpec, base: str, shortage: str
) -> Refused | LocalTimeout:
    words = quote_errors(result.output)
    if result.timed_out:
        return LocalTimeout(
            f"checking the repository out took longer than {spec.limits.open_seconds:g} seconds"
        )
    if result.exit_code is None or result.exit_code == KILLED:
        return LocalTimeout(f"checking the repository out {explain_kill(result, spec.limits)}")
    if result.exit_code == NO_MIRROR:
        return Refused(f"the mirror {spec.mirror} is not a repository that git can read: {words}")
    if result.exit_code == NO_COMMIT:
        return Refused(f"the base commit {base} is not in the mirror: {words}")
    if shortage:
        room = "set OSIRIS_SANDBOX_DISK_GIB higher"
        return Refused(f"the repository could not be checked out: {shortage}; {room}")
    if result.exit_code == FILE_TOO_LARGE:
        size = f"{spec.limits.file_size >> 20} MiB"
        return Refused(f"the repository has a file of more than {size}; Osiris allows no more")
    return Refused(f"the repository could not be checked out: {words}")
