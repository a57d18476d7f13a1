"""Row 7: what the sandbox costs a command, beside none, the least that bubblewrap can do, and
Anthropic's srt."""

import asyncio
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.process import BUILD, a_place, run_checked
from bench.row import BenchmarkRow, Threshold
from bench.workspace import a_mirror, a_plan
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Session
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.options import SandboxOptions

SRT: Final = "@anthropic-ai/sandbox-runtime@0.0.78"
TRUE: Final = ("/bin/bash", "-c", "true")
BARE: Final = ("/usr/bin/bwrap", "--unshare-all", "--ro-bind", "/", "/", "--", *TRUE)
AT_ONCE: Final = 16
FLOOD: Final = 1 << 30
STREAMS: Final = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
}

Side = Callable[[int], Awaitable[None]]
"""One command, the n-th of those that run at once."""


@dataclass
class Took:
    """Milliseconds of each side's commands, one list for each round."""

    alone: dict[str, list[list[float]]] = field(default_factory=dict)
    at_once: dict[str, list[list[float]]] = field(default_factory=dict)


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """The sides take turns."""
    srt = await asyncio.to_thread(_srt)
    took = Took()
    rounds = 2 if quick else 5
    with a_place() as place:
        mirror, base = await asyncio.to_thread(a_mirror, place, 20)
        sandbox = BubblewrapSandbox(place / "sessions", Path, SandboxOptions(weak=True))
        sessions = [
            (await sandbox.create(f"bench-{n}", a_plan(mirror, base)))[0] for n in range(AT_ONCE)
        ]
        sides = _sides(sessions, srt, place)
        for _ in range(rounds):
            for name, side in sides.items():
                few = name == "srt"  # a third of a second each
                await side(0)
                alone = [await _timed(side, 0) for _n in range(10 if few else 40 if quick else 200)]
                took.alone.setdefault(name, []).append(alone)
                waves = 1 if few else 3 if quick else 10
                at_once = [
                    await asyncio.gather(*(_timed(side, n) for n in range(AT_ONCE)))
                    for _n in range(waves)
                ]
                took.at_once.setdefault(name, []).append([one for wave in at_once for one in wave])
        flat = await _flood(sessions[0])
        for session in sessions:
            await session.destroy()
    return [*_rows(took), flat]


def _sides(sessions: Sequence[Session], srt: Path, place: Path) -> dict[str, Side]:
    async def ours(n: int) -> None:
        if (result := await sessions[n].run(TRUE)).exit_code != 0:
            raise Refused(f"a command ended with {result.exit_code}: {result.output[-200:]!r}")

    def theirs(argv: Sequence[str]) -> Side:
        async def run(n: int) -> None:
            # srt leaves files behind that the next one beside it stumbles over
            folder = place / f"theirs-{n}"
            folder.mkdir(exist_ok=True)
            result = await asyncio.to_thread(subprocess.run, argv, cwd=folder, **STREAMS)
            if result.returncode:
                raise Refused(
                    f"{Path(argv[0]).name} ended with {result.returncode}: {result.stdout[-200:]!r}"
                )

        return run

    return {
        "osiris": ours,
        "plain": theirs(TRUE),
        "bwrap": theirs(BARE),
        "srt": theirs([str(srt), "true"]),
    }


async def _timed(side: Side, n: int) -> float:
    began = time.perf_counter()
    await side(n)
    return (time.perf_counter() - began) * 1e3


# ── the table ─────────────────────────────────────────────────────────────────────────────────────

OTHERS: Final = {
    "plain": "no sandbox at all",
    "bwrap": "bwrap --unshare-all --ro-bind / /, started by root",
    "srt": f"srt true, of {SRT}",
}


def _rows(took: Took) -> list[BenchmarkRow]:
    """Beside no sandbox stands the whole time; beside another one what both take more than none, as
    the target means it."""
    rows = []
    for name, what, times, most in (
        (
            "command",
            "`true` in the sandbox, one after another",
            took.alone,
            Threshold(p50=8, p99=20),
        ),
        ("sixteen", f"the same, {AT_ONCE} at once", took.at_once, Threshold(p50=70)),
    ):
        bare = statistics.median(statistics.median(samples) for samples in times["plain"])
        ours = times["osiris"]
        added = _less(times["osiris"], bare)
        rows.append(
            BenchmarkRow(
                name=name,
                what=what,
                unit="ms",
                ours=ours,
                other=OTHERS["plain"],
                theirs=times["plain"],
            )
        )
        rows += [
            BenchmarkRow(
                name=f"{name}-{other}",
                what="what the sandbox adds to it",
                unit="ms",
                ours=added,
                other=OTHERS[other],
                theirs=_less(times[other], bare),
                target=most,
            )
            for other in ("bwrap", "srt")
        ]
    return rows


def _less(rounds: Sequence[Sequence[float]], bare: float) -> list[list[float]]:
    return [[sample - bare for sample in samples] for samples in rounds]


# ── a flood ───────────────────────────────────────────────────────────────────────────────────────


async def _flood(session: Session) -> BenchmarkRow:
    """How much this process grows while a command prints a gigabyte."""
    argv = ["/bin/bash", "-c", f"yes | head -c {FLOOD}"]
    before = _peak()
    result = await session.run(argv)
    if result.total != FLOOD or result.exit_code != 0:
        raise Refused(f"the flood was {result.total} bytes")
    ours = _peak() - before
    before = _peak()
    await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=True)
    return BenchmarkRow(
        name="flood",
        what="memory for 1 GiB of output",
        unit="MiB",
        ours=[[ours]],
        other="subprocess.run(capture_output=True)",
        theirs=[[_peak() - before]],
        target=Threshold(p50=8),
    )


def _peak() -> float:
    """The most MiB that this process has held since it was asked last."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def _srt() -> Path:
    """The command of Anthropic's sandbox-runtime, installed when it is not there yet."""
    place = BUILD / "srt"
    marker = place / f".{SRT.rpartition('@')[2]}"
    if not marker.exists():
        place.mkdir(parents=True, exist_ok=True)
        run_checked(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", place, SRT]
        )
        marker.touch()
    return place / "node_modules/.bin/srt"
