"""Row 5: a new workspace of a large repository with a warm mirror, and its end."""

import asyncio
import time
from pathlib import Path

from bench.process import a_place, ran
from bench.row import Row, Target
from osiris.errors import Refused
from osiris.sandboxing import Limits
from osiris.tools.disk import Disk, can_bound
from osiris.tools.sandbox import Bubblewrap

_FILES = 5000
_OTHER = "git clone --shared, a disk like the session's"


async def measure(*, quick: bool) -> list[Row]:
    """By turns: a session opened and closed, a plain shared clone made and removed."""
    opened, closed, cloned, removed = ([], [], [], [])  # type: tuple[list[float], ...]
    with a_place() as place:
        mirror, base = await asyncio.to_thread(_mirror, place)
        sandbox = Bubblewrap(place / "sessions")
        for number in range(-1, 5 if quick else 15):
            began = time.perf_counter()
            session, _new = await sandbox.open(f"bench-{number}", mirror=mirror, base=base)
            ready = time.perf_counter()
            await session.close()
            ours = (ready - began, time.perf_counter() - ready)
            theirs = await asyncio.to_thread(_clone, mirror, place / "sessions")
            outside = await asyncio.to_thread(_plain, mirror, place / "plain")
            if number >= 0:  # the first of both warms what there is to warm
                for kept, seconds in zip((opened, closed, cloned, removed), (*ours, *theirs), strict=True):
                    kept.append(seconds * 1e3)
        await _all_there(sandbox, mirror, base)
    return [
        Row(
            name="open",
            what=f"a new workspace, {_FILES} files, warm mirror",
            unit="ms",
            ours=[opened],
            other=_OTHER,
            theirs=[cloned],
            target=Target(p50=400),
            note="with the disk image made and mounted (not so for the plain clone), and the clone made in the jail; "
            f"a plain clone straight onto this machine's disk took {outside[0] * 1e3:.0f} ms",
        ),
        Row(
            name="close",
            what="and closed again",
            unit="ms",
            ours=[closed],
            other="rm -rf of that clone",
            theirs=[removed],
        ),
    ]


def _mirror(place: Path) -> tuple[Path, str]:
    mirror = place / "mirror.git"
    ran(["git", "init", "-q", "--bare", mirror])
    mirror.chmod(0o755)
    lines = [b"commit refs/heads/main\ncommitter alice <alice@example.org> 1700000000 +0000\ndata 5\nBegin\n"]
    for number in range(_FILES):
        text = b"".join(b"value_%d = %d  # part of the shop\n" % (n, n * number) for n in range(20 + number % 200))
        lines.append(
            b"M 100644 inline shop/part_%d/file_%d.py\ndata %d\n%b\n" % (number % 100, number, len(text), text)
        )
    stream = place / "stream"
    stream.write_bytes(b"".join(lines))
    with stream.open("rb") as given:
        ran(["git", "-C", mirror, "fast-import", "--quiet"], stdin=given)
    ran(["git", "-C", mirror, "symbolic-ref", "HEAD", "refs/heads/main"])
    return mirror, ran(["git", "-C", mirror, "rev-parse", "main"]).strip()


def _clone(mirror: Path, root: Path) -> tuple[float, float]:
    """On a new disk of the kind that sessions have, which is not timed."""
    disk = Disk(root, "plain", uid=None)
    disk.make(Limits(), bounded=not can_bound(root))
    try:
        return _plain(mirror, disk.folder / "work/plain")
    finally:
        disk.remove()


def _plain(mirror: Path, place: Path) -> tuple[float, float]:
    began = time.perf_counter()
    ran(["git", "clone", "-q", "--shared", mirror, place])
    made = time.perf_counter()
    ran(["rm", "-rf", place])
    return made - began, time.perf_counter() - made


async def _all_there(sandbox: Bubblewrap, mirror: Path, base: str) -> None:
    """What was measured was a whole workspace."""
    session, _new = await sandbox.open("bench-last", mirror=mirror, base=base)
    try:
        told = await session.run(["/bin/bash", "-c", "git status --porcelain | wc -l; git ls-files | xargs ls | wc -l"])
        if told.output.split() != [b"0", str(_FILES).encode()]:
            raise Refused(f"the workspace is not whole: {told.output[:200]!r}")
    finally:
        await session.close()
