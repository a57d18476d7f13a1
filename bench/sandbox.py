"""The cost of the sandbox for a command, beside no sandbox, a minimal bubblewrap, and Anthropic's
srt."""

import asyncio
import statistics
import subprocess
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.process import BUILD_FOLDER, create_bench_folder, run_checked
from bench.row import BenchmarkRow, Threshold
from bench.workspace import build_plan, create_mirror
from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Session
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.options import SandboxOptions

SRT: Final = "@anthropic-ai/sandbox-runtime@0.0.78"
TRUE_COMMAND: Final = ("/bin/bash", "-c", "true")
BARE_BWRAP: Final = ("/usr/bin/bwrap", "--unshare-all", "--ro-bind", "/", "/", "--", *TRUE_COMMAND)
CONCURRENCY: Final = 16
OUTPUT_SIZE: Final = 1 << 30
STREAM_OPTIONS: Final = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
}

Side = Callable[[int], Awaitable[None]]
"""A function that runs one command: the n-th of those that run at the same time."""


@dataclass
class SideSamples:
    """The milliseconds of the commands of each side, one list for each round."""

    alone: dict[str, list[list[float]]] = field(default_factory=dict)
    at_once: dict[str, list[list[float]]] = field(default_factory=dict)


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Measure the sides in turn."""
    srt = await asyncio.to_thread(_install_srt)
    samples_by_side = SideSamples()
    rounds = 2 if quick else 5
    with create_bench_folder() as folder:
        mirror, base = await asyncio.to_thread(create_mirror, folder, 20)
        sandbox = BubblewrapSandbox(folder / "sessions", Path, SandboxOptions(weak=True))
        sessions = [
            (await sandbox.create(f"bench-{n}", build_plan(mirror, base)))[0]
            for n in range(CONCURRENCY)
        ]
        sides = _create_sides(sessions, srt, folder)
        for _ in range(rounds):
            for name, side in sides.items():
                is_slow = name == "srt"  # one command takes a third of a second
                await side(0)
                alone = [
                    await _measure_ms(side, 0)
                    for _n in range(10 if is_slow else 40 if quick else 200)
                ]
                samples_by_side.alone.setdefault(name, []).append(alone)
                waves = 1 if is_slow else 3 if quick else 10
                at_once = [
                    await asyncio.gather(*(_measure_ms(side, n) for n in range(CONCURRENCY)))
                    for _n in range(waves)
                ]
                samples_by_side.at_once.setdefault(name, []).append(
                    [sample for wave in at_once for sample in wave]
                )
        output_row = await _measure_output_memory(sessions[0])
        for session in sessions:
            await session.destroy()
    return [*_build_rows(samples_by_side), output_row]


def _create_sides(sessions: Sequence[Session], srt: Path, folder: Path) -> dict[str, Side]:
    async def run_in_osiris(n: int) -> None:
        if (result := await sessions[n].run(TRUE_COMMAND)).exit_code != 0:
            raise Refused(f"a command ended with {result.exit_code}: {result.output[-200:]!r}")

    def build_side(argv: Sequence[str]) -> Side:
        async def run(n: int) -> None:
            # srt leaves files behind with which another srt in the same folder fails
            work_folder = folder / f"theirs-{n}"
            work_folder.mkdir(exist_ok=True)
            result = await asyncio.to_thread(
                subprocess.run, argv, cwd=work_folder, **STREAM_OPTIONS
            )
            if result.returncode:
                raise Refused(
                    f"{Path(argv[0]).name} ended with {result.returncode}: {result.stdout[-200:]!r}"
                )

        return run

    return {
        "osiris": run_in_osiris,
        "plain": build_side(TRUE_COMMAND),
        "bwrap": build_side(BARE_BWRAP),
        "srt": build_side([str(srt), "true"]),
    }


async def _measure_ms(side: Side, n: int) -> float:
    began = time.perf_counter()
    await side(n)
    return (time.perf_counter() - began) * 1e3


# ── the table ─────────────────────────────────────────────────────────────────────────────────────

DESCRIPTIONS: Final = {
    "plain": "no sandbox at all",
    "bwrap": "bwrap --unshare-all --ro-bind / /, started by root",
    "srt": f"srt true, of {SRT}",
}


def _build_rows(samples_by_side: SideSamples) -> list[BenchmarkRow]:
    """Return the rows. The comparison without a sandbox shows the whole time; those with another
    sandbox show what both add to it, as the target does."""
    rows = []
    for name, what, rounds, target in (
        (
            "command",
            "`true` in the sandbox, one after another",
            samples_by_side.alone,
            Threshold(p50=8, p99=20),
        ),
        ("sixteen", f"the same, {CONCURRENCY} at once", samples_by_side.at_once, Threshold(p50=70)),
    ):
        baseline = statistics.median(statistics.median(samples) for samples in rounds["plain"])
        ours = rounds["osiris"]
        overhead = _subtract(rounds["osiris"], baseline)
        rows.append(
            BenchmarkRow(
                name=name,
                what=what,
                unit="ms",
                ours=ours,
                other=DESCRIPTIONS["plain"],
                theirs=rounds["plain"],
            )
        )
        rows += [
            BenchmarkRow(
                name=f"{name}-{other}",
                what="what the sandbox adds to it",
                unit="ms",
                ours=overhead,
                other=DESCRIPTIONS[other],
                theirs=_subtract(rounds[other], baseline),
                target=target,
            )
            for other in ("bwrap", "srt")
        ]
    return rows


def _subtract(rounds: Sequence[Sequence[float]], baseline: float) -> list[list[float]]:
    return [[sample - baseline for sample in samples] for samples in rounds]


# ── much output ───────────────────────────────────────────────────────────────────────────────────


async def _measure_output_memory(session: Session) -> BenchmarkRow:
    """Measure how much this process grows while a command prints a gigabyte."""
    argv = ["/bin/bash", "-c", f"yes | head -c {OUTPUT_SIZE}"]
    before = _read_peak_memory()
    result = await session.run(argv)
    if result.total != OUTPUT_SIZE or result.exit_code != 0:
        raise Refused(f"the flood was {result.total} bytes")
    ours = _read_peak_memory() - before
    before = _read_peak_memory()
    await asyncio.to_thread(subprocess.run, argv, capture_output=True, check=True)
    return BenchmarkRow(
        name="flood",
        what="memory for 1 GiB of output",
        unit="MiB",
        ours=[[ours]],
        other="subprocess.run(capture_output=True)",
        theirs=[[_read_peak_memory() - before]],
        target=Threshold(p50=8),
    )


def _read_peak_memory() -> float:
    """Return the largest memory of this process since the last call, in MiB."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def _install_srt() -> Path:
    """Return the command of Anthropic's sandbox-runtime, and install it first if it is missing."""
    folder = BUILD_FOLDER / "srt"
    marker = folder / f".{SRT.rpartition('@')[2]}"
    if not marker.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run_checked(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, SRT]
        )
        marker.touch()
    return folder / "node_modules/.bin/srt"
