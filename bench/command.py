"""Row 6: how long a person waits for `--help`."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import typer

from bench.process import osiris_command
from bench.row import BenchmarkRow, Threshold
from osiris.cli import app


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """By turns: every command's help once, and as often a python that does nothing."""
    words = list(_commands(typer.main.get_command(app)))
    took: dict[tuple[str, ...], list[float]] = {tuple(one): [] for one in words}
    nothing: list[float] = []
    for number in range(-1, 5 if quick else 15):
        for one, samples in took.items():
            ours = await asyncio.to_thread(_wall, [*osiris_command(), *one, "--help"])
            theirs = await asyncio.to_thread(_wall, [sys.executable, "-c", "pass"])
            if number >= 0:
                samples.append(ours)
                nothing.append(theirs)
    slowest = max((one for one in took if one), key=lambda one: statistics.median(took[one]))
    return [
        _row("help", "osiris --help", took[()], nothing),
        _row(
            "help-most",
            f"the slowest other: {' '.join(slowest)} --help (of {len(took) - 1})",
            took[slowest],
            nothing,
        ),
    ]


def _row(name: str, what: str, ours: list[float], nothing: list[float]) -> BenchmarkRow:
    return BenchmarkRow(
        name=name,
        what=what,
        unit="ms",
        ours=[ours],
        other="python -c pass",
        theirs=[nothing],
        target=Threshold(p50=300),
    )


def _commands(command: object, path: Sequence[str] = ()) -> Iterator[Sequence[str]]:
    yield path
    for name, one in getattr(command, "commands", {}).items():
        yield from _commands(one, (*path, name))


def _wall(argv: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1e3
