"""The first program inside a jail: it enters the cgroup, sets the limits, waits until the worker
releases it, and then becomes the command."""

from collections.abc import Sequence
from typing import Final

from osiris.core.ports.sandbox import SandboxLimits

MARK: Final = "# a jail of Osiris"  # identifies a jail whose worker is gone
# The program enters the cgroup by descriptors that the worker has opened (moved from outside, it
# would wait for an RCU grace period after each idle moment, 7 to 22 ms). It sets the limits (from
# outside that needs CAP_SYS_RESOURCE; as a bash builtin it is 0.8 ms cheaper than
# /usr/bin/prlimit), waits for the worker's byte, reads the command from a memfd, and becomes it.
# End of file instead of the byte means that the worker has died: then nothing runs.
_FIRST_PROGRAM: Final = (
    MARK
    + """
for entry in {entries}; do echo 0 >&$entry || exit 125; done
ulimit -t {cpu} -u {processes} -n {files} -f {file_blocks} || exit 125
IFS= read -r -n 1 -u {go} word && [[ $word = + ]] || exit 125
mapfile -d '' -t -u {command} argv
cd -- "$argv" || exit 126
exec -- "${{argv[@]:1}}" {go}<&- {command}<&- {shut}
"""
)


def build_first_program(
    limits: SandboxLimits, *, go: int, command: int, entries: Sequence[int]
) -> str:
    """Return the program as a bash script.

    `go`, `command` and `entries` are descriptors: the pipe of the worker's byte, the memfd of the
    command, and the files through which a process enters the cgroup.
    """
    return _FIRST_PROGRAM.format(
        cpu=limits.cpu_seconds,
        processes=limits.processes,
        files=limits.open_files,
        file_blocks=limits.file_size // 1024,
        go=go,
        command=command,
        entries=" ".join(map(str, entries)),
        shut=" ".join(f"{entry}>&-" for entry in entries),
    )
