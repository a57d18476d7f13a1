"""What one session may use of the machine."""

from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes in bytes, times in seconds. `memory` and the session's `processes` hold where there is a cgroup, `disk`
    and `inodes` where there is a loop device; the others hold everywhere."""

    memory: int = 2 * GIB
    processes: int = 256
    cpu_seconds: int = 600
    open_files: int = 1024
    file_size: int = 512 * MIB
    disk: int = 2 * GIB
    inodes: int = 200_000
    shared_memory: int = 64 * MIB
    output: int = 256 * KIB
    kept_output: int = 8 * MIB
    pack: int = 64 * MIB
    scratch: int = 512 * MIB
    open_seconds: float = 120
    export_seconds: float = 60
