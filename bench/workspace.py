"""Row 5: a workspace of a large repository with a warm mirror: made, its work taken, and thrown
away."""

import asyncio
import time
from collections import defaultdict
from pathlib import Path

from bench.process import a_place, run_checked
from bench.row import BenchmarkRow, Threshold
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Plan, SandboxLimits, Session
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.disks.image_disk import ImageDisk
from osiris.tools.sandbox.options import SandboxOptions

_FILES = 8000
_EDIT = (
    "for n in $(seq 0 50 7999); do echo '# more' >>part_$((n % 100))/file_$n.py; done; seq 9 >new"
)
_BARE = (
    "git add -A && git write-tree | { read tree; printf '%s\\n^%s\\n' $tree HEAD; } | git"
    " pack-objects --revs --thin -q"
)

Took = defaultdict[str, list[float]]


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """By turns: a first workspace, one over a kept checkout, a plain shared clone."""
    ours: Took = defaultdict(list)
    theirs: Took = defaultdict(list)
    with a_place() as place:
        mirror, base = await asyncio.to_thread(a_mirror, place, _FILES)
        for number in range(-1, 3 if quick else 9):
            sandbox = BubblewrapSandbox(
                place / f"sessions-{number}", Path, SandboxOptions(weak=True)
            )
            await sandbox.probe()
            some = await _ours(sandbox, a_plan(mirror, base))
            other = await asyncio.to_thread(_theirs, mirror, place)
            if number >= 0:  # the first of both warms what there is to warm
                for kept, took in ((ours, some), (theirs, other)):
                    for name, seconds in took.items():
                        kept[name].append(seconds * 1e3)
    return _rows(ours, theirs)


def _rows(ours: Took, theirs: Took) -> list[BenchmarkRow]:
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
            theirs=[theirs[against]],
            target=Threshold(p50=most),
            note=said,
        )
        for name, what, other, against, most, said in table
    ]


async def _ours(sandbox: BubblewrapSandbox, plan: Plan) -> dict[str, float]:
    began = time.perf_counter()
    first, _ = await sandbox.create("first", plan)
    opened = time.perf_counter()
    over, _ = await sandbox.create("over", plan)
    laid = time.perf_counter()
    # a model thinks before its first command; git is sure of files that are older than a second
    await asyncio.sleep(1.1)
    for session in (first, over):
        await _all_there(session)
    await over.run(["/bin/bash", "-c", _EDIT])
    edited = time.perf_counter()
    with (await over.export(plan.base)).pack:
        taken = time.perf_counter()
    await first.destroy()
    closing = time.perf_counter()
    await over.destroy()
    closed = time.perf_counter()
    return {
        "open": opened - began,
        "open-over": laid - opened,
        "take": taken - edited,
        "close": closed - closing,
    }


def _theirs(mirror: Path, place: Path) -> dict[str, float]:
    """On a new disk of the kind that sessions have, which is not timed."""
    (place / "plain").mkdir(mode=0o711, exist_ok=True)
    disk = ImageDisk(place / "plain", "plain", uid=None)
    disk.create(SandboxLimits())
    clone = disk.folder / "work/plain"
    try:
        began = time.perf_counter()
        run_checked(["git", "clone", "-q", "--shared", mirror, clone])
        made = time.perf_counter()
        time.sleep(1.1)
        run_checked(["git", "status", "--porcelain"], cwd=clone)
        run_checked(["/bin/bash", "-c", _EDIT], cwd=clone)
        edited = time.perf_counter()
        run_checked(["/bin/bash", "-c", f"{_BARE} --stdout >../pack"], cwd=clone)
        taken = time.perf_counter()
        run_checked(["rm", "-rf", clone])
        return {
            "clone": made - began,
            "take": taken - edited,
            "remove": time.perf_counter() - taken,
        }
    finally:
        disk.remove()


def a_mirror(place: Path, files: int) -> tuple[Path, str]:
    """A bare repository with one commit of that many files, and the commit."""
    mirror = place / "mirror.git"
    run_checked(["git", "init", "-q", "--bare", mirror])
    mirror.chmod(0o755)
    lines = [
        b"commit refs/heads/main\ncommitter alice <alice@example.org> 1700000000 +0000\ndata"
        b" 5\nBegin\n"
    ]
    for number in range(files):
        text = b"".join(
            b"value_%d = %d  # part of the shop\n" % (n, n * number)
            for n in range(20 + number % 200)
        )
        lines.append(
            b"M 100644 inline part_%d/file_%d.py\ndata %d\n%b\n"
            % (number % 100, number, len(text), text)
        )
    stream = place / "stream"
    stream.write_bytes(b"".join(lines))
    with stream.open("rb") as given:
        run_checked(["git", "-C", mirror, "fast-import", "--quiet"], stdin=given)
    run_checked(["git", "-C", mirror, "symbolic-ref", "HEAD", "refs/heads/main"])
    return mirror, run_checked(["git", "-C", mirror, "rev-parse", "main"]).strip()


def a_plan(mirror: Path, base: str) -> Plan:
    """A workspace of it."""
    return Plan(repo=str(mirror), base=base, trusted=base)


async def _all_there(session: Session) -> None:
    """What was measured was a whole workspace."""
    run_json_job = await session.run(
        ["/bin/bash", "-c", "git status --porcelain | wc -l; git ls-files | xargs ls | wc -l"]
    )
    if run_json_job.output.split() != [b"0", str(_FILES).encode()]:
        raise Refused(f"the workspace is not whole: {run_json_job.output[:200]!r}")
