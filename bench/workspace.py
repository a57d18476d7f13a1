"""The time to create a workspace of a large repository with a warm mirror, to export its work, and
to remove it."""

import asyncio
import time
from collections import defaultdict
from pathlib import Path

from bench.process import create_bench_folder, run_checked
from bench.row import BenchmarkRow, Threshold
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Plan, SandboxLimits, Session
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.disks.image_disk import ImageDisk
from osiris.tools.sandbox.options import SandboxOptions

_FILES = 8000
_EDIT_SCRIPT = (
    "for n in $(seq 0 50 7999); do echo '# more' >>part_$((n % 100))/file_$n.py; done; seq 9 >new"
)
_PACK_SCRIPT = (
    "git add -A && git write-tree | { read tree; printf '%s\\n^%s\\n' $tree HEAD; } | git"
    " pack-objects --revs --thin -q"
)

Durations = defaultdict[str, list[float]]


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Measure in turn: a first workspace, one over a cached checkout, and a plain shared clone."""
    ours: Durations = defaultdict(list)
    theirs: Durations = defaultdict(list)
    with create_bench_folder() as folder:
        mirror, base = await asyncio.to_thread(create_mirror, folder, _FILES)
        for number in range(-1, 3 if quick else 9):
            sandbox = BubblewrapSandbox(
                folder / f"sessions-{number}", Path, SandboxOptions(weak=True)
            )
            await sandbox.probe()
            osiris_durations = await _measure_osiris(sandbox, build_plan(mirror, base))
            clone_durations = await asyncio.to_thread(_measure_clone, mirror, folder)
            if number >= 0:  # the first round is a warm-up
                for samples, durations in ((ours, osiris_durations), (theirs, clone_durations)):
                    for name, seconds in durations.items():
                        samples[name].append(seconds * 1e3)
    return _build_rows(ours, theirs)


def _build_rows(ours: Durations, theirs: Durations) -> list[BenchmarkRow]:
    clone = "git clone --shared, a disk like the session's"
    new = f"a new workspace, {_FILES} files, warm mirror"
    note = (
        "with the disk image made and mounted (not so for the plain clone), and the clone made in"
        " the jail"
    )
    table = (
        ("open", f"{new}, first of its commit", clone, "clone", 500, note),
        ("open-over", f"{new}, laid over a kept checkout", clone, "clone", 50, ""),
        (
            "take",
            "its work taken as a pack: 160 files changed",
            "git add, write-tree, pack-objects in it",
            "take",
            200,
            "",
        ),
        ("close", "and thrown away", "rm -rf of that clone", "remove", 100, ""),
    )
    return [
        BenchmarkRow(
            name=name,
            what=what,
            unit="ms",
            ours=[ours[name]],
            other=other,
            theirs=[theirs[their_name]],
            target=Threshold(p50=max_ms),
            note=row_note,
        )
        for name, what, other, their_name, max_ms, row_note in table
    ]


async def _measure_osiris(sandbox: BubblewrapSandbox, plan: Plan) -> dict[str, float]:
    began = time.perf_counter()
    first, _ = await sandbox.create("first", plan)
    opened = time.perf_counter()
    over, _ = await sandbox.create("over", plan)
    second_opened = time.perf_counter()
    # a model thinks before its first command, and git trusts files that are older than a second
    await asyncio.sleep(1.1)
    for session in (first, over):
        await _check_workspace(session)
    await over.run(["/bin/bash", "-c", _EDIT_SCRIPT])
    edited = time.perf_counter()
    with (await over.export(plan.base)).pack:
        exported = time.perf_counter()
    await first.destroy()
    closing = time.perf_counter()
    await over.destroy()
    closed = time.perf_counter()
    return {
        "open": opened - began,
        "open-over": second_opened - opened,
        "take": exported - edited,
        "close": closed - closing,
    }


def _measure_clone(mirror: Path, folder: Path) -> dict[str, float]:
    """Clone on a new disk of the kind that sessions have; the creation of the disk is not
    measured."""
    (folder / "plain").mkdir(mode=0o711, exist_ok=True)
    disk = ImageDisk(folder / "plain", "plain", uid=None)
    disk.create(SandboxLimits())
    clone = disk.folder / "work/plain"
    try:
        began = time.perf_counter()
        run_checked(["git", "clone", "-q", "--shared", mirror, clone])
        cloned = time.perf_counter()
        time.sleep(1.1)
        run_checked(["git", "status", "--porcelain"], cwd=clone)
        run_checked(["/bin/bash", "-c", _EDIT_SCRIPT], cwd=clone)
        edited = time.perf_counter()
        run_checked(["/bin/bash", "-c", f"{_PACK_SCRIPT} --stdout >../pack"], cwd=clone)
        exported = time.perf_counter()
        run_checked(["rm", "-rf", clone])
        return {
            "clone": cloned - began,
            "take": exported - edited,
            "remove": time.perf_counter() - exported,
        }
    finally:
        disk.remove()


def create_mirror(folder: Path, files: int) -> tuple[Path, str]:
    """Create a bare repository with one commit of that many files. Return the repository and the
    commit."""
    mirror = folder / "mirror.git"
    run_checked(["git", "init", "-q", "--bare", mirror])
    mirror.chmod(0o755)
    commands = [
        b"commit refs/heads/main\ncommitter alice <alice@example.org> 1700000000 +0000\ndata"
        b" 5\nBegin\n"
    ]
    for number in range(files):
        text = b"".join(
            b"value_%d = %d  # part of the shop\n" % (n, n * number)
            for n in range(20 + number % 200)
        )
        commands.append(
            b"M 100644 inline part_%d/file_%d.py\ndata %d\n%b\n"
            % (number % 100, number, len(text), text)
        )
    stream = folder / "stream"
    stream.write_bytes(b"".join(commands))
    with stream.open("rb") as file:
        run_checked(["git", "-C", mirror, "fast-import", "--quiet"], stdin=file)
    run_checked(["git", "-C", mirror, "symbolic-ref", "HEAD", "refs/heads/main"])
    return mirror, run_checked(["git", "-C", mirror, "rev-parse", "main"]).strip()


def build_plan(mirror: Path, base: str) -> Plan:
    """Return the plan of a workspace of the mirror."""
    return Plan(repo=str(mirror), base=base, trusted=base)


async def _check_workspace(session: Session) -> None:
    """Raise Refused unless the workspace is complete."""
    result = await session.run(
        ["/bin/bash", "-c", "git status --porcelain | wc -l; git ls-files | xargs ls | wc -l"]
    )
    if result.output.split() != [b"0", str(_FILES).encode()]:
        raise Refused(f"the workspace is not whole: {result.output[:200]!r}")
