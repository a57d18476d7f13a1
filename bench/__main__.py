"""`python -m bench [--quick] [--only NAME] [--strict]`: print a table, and write the same figures
to build/bench.json.

The table is printed even if a measurement fails; then the exit code is 1. With `--strict` it is
also 1 if a target is missed.
"""

import argparse
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import (
    command,
    first,
    history,
    machines,
    memory,
    model,
    prompt,
    sandbox,
    step,
    webhooks,
    workspace,
)
from bench.row import BenchmarkRow, compute_median

OUT = Path(__file__).parent.parent / "build/bench.json"
MEASURES: Mapping[str, Callable[..., Coroutine[Any, Any, list[BenchmarkRow]]]] = {
    "door": webhooks.measure,
    "first": first.measure,
    "step": step.measure,
    "workspace": workspace.measure,
    "sandbox": sandbox.measure,
    "help": command.measure,
    "memory": memory.measure,
    "model": model.measure,
    "prompt": prompt.measure,
    "lives": machines.measure_task_rate,
    "takeover": machines.measure_takeover,
    "runs": machines.measure_run_memory,
    "history": history.measure,
}


def main() -> int:
    arguments = _parse_arguments()
    logging.disable(logging.WARNING)
    console = Console(
        soft_wrap=not sys.stdout.isatty(),
        width=None if sys.stdout.isatty() else 170,
        highlight=False,
    )
    rows: list[BenchmarkRow] = []
    failures: list[str] = []
    try:
        for name in arguments.only or MEASURES:
            began = time.monotonic()
            try:
                rows += uvloop.run(MEASURES[name](quick=arguments.quick))
            except Exception as error:
                logging.debug("%s", name, exc_info=True)
                failures.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
                print(f"bench: {failures[-1]}", file=sys.stderr)
            print(f"bench: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    except KeyboardInterrupt:
        failures.append(f"{name}: interrupted, and what follows it was not measured")
    _write_report(rows, failures, quick=arguments.quick)
    _print_table(console, rows, failures)
    missed = [row.name for row in rows if row.is_met is False]
    return 1 if failures or (arguments.strict and missed) else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument(
        "--only", action="append", choices=list(MEASURES), help="one measure; may be given again"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when a target is missed")
    return parser.parse_args()


def _write_report(rows: Sequence[BenchmarkRow], failures: Sequence[str], *, quick: bool) -> None:
    machine = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "quick": quick,
        "machine": machine,
        "load": os.getloadavg(),
    }
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(
        json.dumps(
            {**report, "rows": [row.build_report() for row in rows], "failures": failures}, indent=2
        )
        + "\n"
    )


def _print_table(console: Console, rows: Sequence[BenchmarkRow], failures: Sequence[str]) -> None:
    table = Table("WHAT", box=None, pad_edge=False)
    for title in ("P50", "P99"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("BESIDE")
    table.add_column("ITS P50", justify="right", no_wrap=True)
    table.add_column("RATIO", justify="right")
    table.add_column("TARGET")
    table.add_column("MET")
    for row in rows:
        met_text = {
            True: Text("yes", style="green"),
            False: Text("NO", style="red"),
            None: Text(""),
        }[row.is_met]
        table.add_row(
            row.what,
            _format_figure(row.p50, row.unit),
            ""
            if row.unit in ("/s", "/min", "MiB", "tokens")
            else _format_figure(row.p99, row.unit),
            row.other,
            _format_figure(compute_median(row.theirs), row.unit),
            f"{row.ratio:.2f}",
            row.describe_target(),
            met_text,
        )
    console.print(table)
    for row in rows:
        if row.note:
            console.print(Text(f"{row.name}: {row.note}", style="dim"))
    for failure in failures:
        console.print(Text(f"not measured: {failure}", style="red"))
    if missed := [row.name for row in rows if row.is_met is False]:
        console.print(Text(f"missed: {', '.join(missed)}", style="red"))
    console.print(Text(f"all figures: {OUT}", style="dim"))


def _format_figure(value: float, unit: str) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}".replace(" /", "/")


if __name__ == "__main__":
    sys.exit(main())
