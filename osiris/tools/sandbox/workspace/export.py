"""The export of the work: git runs in a new read-only jail and prints a pack; the agent's own .git
is never read.

The host opens no file of the workspace and runs no git on it: with the host's git, in place and
even with hardening options, 19 of 42 hostile repositories ran code, hid changes or added other
files.
"""

import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import IO

from osiris.core.errors import LocalTimeout, Refused, Unavailable
from osiris.core.git_environment import EXPORTS
from osiris.core.ports.sandbox import Export, Result, SandboxLimits
from osiris.core.sanitize import clean_text
from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.process import run_once
from osiris.tools.sandbox.workspace.failure_words import explain_kill, quote_errors

KILLED = 128 + 9  # SIGKILL
UNREADABLE = 67
FILE_TOO_LARGE = 128 + 25  # SIGXFSZ, for a git object or for the pack
OBJECT_ID = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})")

# `^BASE^{tree}` and not `^BASE`: against a commit, git packs every blob of the tree again (5,000
# files: 132 ms instead of 10). info/attributes outranks every .gitattributes in the tree, so none
# of them can name a filter. The index was saved right after the checkout; it is copied with `cp
# -p`, because a new time stamp hid same-second edits in 8 of 8 tries. By that time stamp git takes
# all files of a short checkout for changed, and `git add` would store them again, because it cannot
# refresh the mirror's packs. So `update-index` compares them first and stores nothing; in the new
# index it marks those with another content, so that the late time of this index hides nothing.
# `unchanged_files` does the same for files that git converts. `git add` only warns about a folder
# that it cannot open, and continues without it: so its messages are read. The files of the set-up
# are removed from the index by name, because a rule of the repository (`!name`) outranks
# info/exclude.
INSIDE = (
    f"set -euo pipefail\n{EXPORTS}\n"
    r"""
LEFT_OUT='^warning: could not open directory|: Permission denied$'
export GIT_DIR=/tmp/c.git GIT_INDEX_FILE=/tmp/c.index LC_ALL=C.UTF-8 HOME=/nonexistent
git init -q --bare --template= "$GIT_DIR"
mkdir -p "$GIT_DIR/info"
echo /base.git/objects >"$GIT_DIR/objects/info/alternates"
echo '* !filter !diff !merge' >"$GIT_DIR/info/attributes"
cat >>"$GIT_DIR/config" <<'END'
[core]
	bare = false
	fsmonitor = false
	hooksPath = /dev/null
	excludesFile = /dev/null
	attributesFile = /dev/null
	fileMode = true
	symlinks = true
	safecrlf = false
	looseCompression = 0
[gc]
	auto = 0
[pack]
	threads = 2
[advice]
	addEmbeddedRepo = false
[diff]
	ignoreSubmodules = all
END
[ ! -e /base.left ] || (cd /workspace && /usr/bin/python3 -I -S /etc/osiris/setup_leftovers rules)
git cat-file -e "$1^{commit}" || exit 65
cp -p /base.index "$GIT_INDEX_FILE"
export GIT_WORK_TREE=/workspace
code=0
{ git update-index -q --refresh --force-write-index &&
    touch -d @4294967295 "$GIT_INDEX_FILE" &&
    git diff-files -z --raw --no-abbrev --diff-filter=M >/tmp/changed; } 2>/tmp/said || code=$?
[ $code = 0 ] || { tail -n 5 /tmp/said >&2; exit $code; }
[ ! -s /tmp/changed ] || /usr/bin/python3 -I -S /etc/osiris/unchanged_files </tmp/changed
touch -d @4294967295 "$GIT_INDEX_FILE"
git add -A -- . 2>/tmp/said || code=$?
grep -aE -m 3 "$LEFT_OUT" /tmp/said | cut -b 1-6000 >&2 && exit 67
[ $code = 0 ] || { tail -n 5 /tmp/said >&2; exit $code; }
if [ -s /tmp/drop ]; then
    git diff-index --cached -z --name-only --diff-filter=A "$1" -- |
        /usr/bin/python3 -I -S /etc/osiris/setup_leftovers drop |
        git update-index -z --force-remove --stdin
fi
tree=$(git write-tree)
printf '%s\n^%s^{tree}\n' "$tree" "$1" | git pack-objects -q --revs --thin --stdout
printf '\n%s\n' "$tree" >&2
"""
)


# Git records no modes of folders, and of files only whether they are executable: making them
# readable does not change the work. `find` changes a folder before it descends into it.
MAKE_READABLE = r"""
find /workspace -type d ! -perm -u=rwx -exec chmod u+rwx {} \; \
    -o -type f ! -perm -u=r -exec chmod u+r {} \;
"""


class UnreadableWork(Refused):
    """The error of a workspace with unreadable files, which the export would miss."""


async def export_workspace(
    spec: JailSpec, base: str, *, packs: Path, cgroup: Cgroup | None
) -> Export:
    """Run the script in a jail with `spec`. The pack is written to an unnamed file in `packs`, so
    that a crash leaves nothing.

    Raises Refused or Unavailable, and UnreadableWork when files would be missing.
    """
    with contextlib.ExitStack() as failed:
        pack = failed.enter_context(_open_unnamed_file(packs))
        argv = ["/bin/bash", "-c", INSIDE, "collect", base]
        result = await run_once(
            spec, argv, spec.limits.export_seconds, cgroup=cgroup, stdout=pack.fileno()
        )
        size = pack.seek(0, os.SEEK_END)
        pack.seek(0)
        export = Export(tree=_parse_tree(result, base, size, spec.limits), pack=pack)
        failed.pop_all()
    return export


def _open_unnamed_file(packs: Path) -> IO[bytes]:
    try:
        packs.mkdir(mode=0o700, exist_ok=True)
        return tempfile.TemporaryFile(dir=packs)
    except OSError as error:
        raise Unavailable(
            f"this machine has no place to take the work out to: {error.strerror}"
        ) from None


def _parse_tree(result: Result, base: str, size: int, limits: SandboxLimits) -> str:
    if result.timed_out:
        raise LocalTimeout(
            "taking the work out of the sandbox took too long: there are too many or too large"
            " files, or this machine has too much to do"
        )
    if result.exit_code is None or result.exit_code == KILLED:
        raise LocalTimeout(f"taking the work out of the sandbox {explain_kill(result, limits)}")
    if result.exit_code == 65:
        complaint = quote_errors(result.output)
        raise Refused(f"the base commit {base} is not in the mirror: {complaint}")
    if size >= limits.pack or result.exit_code == FILE_TOO_LARGE:
        raise Refused(f"the work is larger than {limits.pack >> 20} MiB")
    words = clean_text(result.output).strip().splitlines() or ["nothing was said"]
    if result.exit_code == UNREADABLE:
        reason = words[0].removeprefix("warning: ").removeprefix("error: ").removeprefix("fatal: ")
        raise UnreadableWork(
            f"git cannot read some of the work: {_shorten_reason(reason)}; make it readable, or"
            " remove it"
        )
    # git's last line is `adding files failed`; the lines above it contain the file and the reason
    if result.exit_code != 0:
        reason = next(
            (line for line in words if line.startswith(("error: ", "fatal: "))), words[-1]
        )
        raise Refused(f"the work could not be taken out of the sandbox: {reason[:300]}")
    if not OBJECT_ID.fullmatch(words[-1]):
        raise Refused("the work could not be taken out of the sandbox: it came without a tree")
    return words[-1]


def _shorten_reason(reason: str) -> str:
    """Return git's message without the middle of a very long path; git itself cuts the text after
    such a path."""
    return (
        reason
        if len(reason) <= 300
        else f"{reason[:150]}… (a path of more than {len(reason) - 100} characters)"
    )
