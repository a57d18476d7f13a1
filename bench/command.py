"""The time of `osiris --help` and of the help of each command."""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import typer

from bench.process import find_osiris_command
from bench.row import BenchmarkRow, Threshold
from osiris.cli import app


async def measure(*, quick: bool) -> list[BenchmarkRow]:
    """Measure the help of every command in turn, and each time a Python that does nothing."""
    commands = list(_list_commands(typer.main.get_command(app)))
    samples_by_command: dict[tuple[str, ...], list[float]] = {
        tuple(command): [] for command in commands
    }
    baseline: list[float] = []
    for number in range(-1, 5 if quick else 15):
        for command, samples in samples_by_command.items():
            ours = await asyncio.to_thread(
                _measure_ms, [*find_osiris_command(), *command, "--help"]
            )
            theirs = await asyncio.to_thread(_measure_ms, [sys.executable, "-c", "pass"])
            if number >= 0:
                samples.append(ours)
                baseline.append(theirs)
    slowest = max(
        (command for command in samples_by_command if command),
        key=lambda command: statistics.median(samples_by_command[command]),
    )
    return [
        _create_row("help", "osiris --help", samples_by_command[()], baseline),
        _create_row(
            "help-most",
            f"the slowest other: {' '.join(slowest)} --help (of {len(samples_by_command) - 1})",
            samples_by_command[slowest],
            baseline,
        ),
    ]


def _create_row(name: str, what: str, ours: list[float], baseline: list[float]) -> BenchmarkRow:
    return BenchmarkRow(
        name=name,
        what=what,
        unit="ms",
        ours=[ours],
        other="python -c pass",
        theirs=[baseline],
        target=Threshold(p50=300),
    )


def _list_commands(command: object, path: Sequence[str] = ()) -> Iterator[Sequence[str]]:
    yield path
    for name, subcommand in getattr(command, "commands", {}).items():
        yield from _list_commands(subcommand, (*path, name))


def _measure_ms(argv: Sequence[str]) -> float:
    began = time.perf_counter()
    subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1e3
