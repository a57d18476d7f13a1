"""`python -m chaos [--quick] [--only NAME] [--limit N] [--seed N]`: run the crash tests, print the
counts and write them to build/torture.json."""

import argparse
import asyncio
import json
import logging
import os
import platform
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chaos.parts import PARTS, TortureOptions, run_part
from tests.flow.support.consistency_audit import TaskAudit

OUT = Path(__file__).parent.parent / "build/torture.json"
DEFAULT_TASKS = 200
COLUMNS = (
    "tasks",
    "done",
    "kills",
    "freezes",
    "takeovers",
    "pulls",
    "comments",
    "commits",
    "requests",
    "cut_off",
    "repeated",
    "doubles",
    "losses",
)


def main() -> int:
    """Return 1 if anything was lost, done twice or requested again."""
    options, parts_to_run = _parse_arguments()
    logging.disable(logging.WARNING)
    print(f"torture: seed {options.seed}", flush=True)
    audits: dict[str, TaskAudit] = {}
    for name in parts_to_run:
        audits[name] = audit = asyncio.run(run_part(name, options))
        for error in (*audit.doubles, *audit.losses):
            print(f"torture: {name}: {error}", file=sys.stderr, flush=True)
        print(f"torture: {name} took {audit.seconds:.0f} s", flush=True)
        _write_report(audits, options)
    _print_table(audits)
    return int(any(audit.doubles or audit.losses or audit.repeated for audit in audits.values()))


def _parse_arguments() -> tuple[TortureOptions, list[str]]:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), help="one part; may be given again"
    )
    parser.add_argument(
        "--limit", type=int, help="the number of randomly chosen crash points, instead of all"
    )
    parser.add_argument(
        "--seed", type=int, default=secrets.randbelow(10**6), help="the seed of all random choices"
    )
    parser.add_argument(
        "--tasks", type=int, default=DEFAULT_TASKS, help="tasks to run while workers are killed"
    )
    parser.add_argument(
        "--examples", type=int, default=DEFAULT_TASKS, help="tasks to run against a hostile GitHub"
    )
    args = parser.parse_args()
    share = 10 if args.quick else 1
    limit = args.limit if args.limit is not None or not args.quick else 40
    options = TortureOptions(
        quick=args.quick,
        limit=limit,
        seed=args.seed,
        tasks=args.tasks // share,
        examples=args.examples // share,
    )
    return options, args.only or list(PARTS)


def _write_report(audits: Mapping[str, TaskAudit], options: TortureOptions) -> None:
    machine = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }
    finished_at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    parts = {name: audit.list_counts() for name, audit in audits.items()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "at": finished_at,
        "seed": options.seed,
        "whole": _is_whole(audits, options),
        "machine": machine,
        "parts": parts,
    }
    OUT.write_text(json.dumps(report, indent=2) + "\n")


def _is_whole(audits: Mapping[str, TaskAudit], options: TortureOptions) -> bool:
    """Return whether nothing was left out that a run without options does."""
    return (
        audits.keys() == PARTS.keys()
        and options.limit is None
        and min(options.tasks, options.examples) >= DEFAULT_TASKS
    )


def _print_table(audits: Mapping[str, TaskAudit]) -> None:
    table = Table("PART", box=None, pad_edge=False)
    for title in (*COLUMNS, "seconds"):
        table.add_column(title.upper(), justify="right", no_wrap=True)
    for name, audit in audits.items():
        figures = audit.list_counts()
        table.add_row(name, *(str(figures[column]) for column in COLUMNS), f"{audit.seconds:.0f}")
    console = Console(
        soft_wrap=not sys.stdout.isatty(),
        width=None if sys.stdout.isatty() else 170,
        highlight=False,
    )
    console.print(table)
    console.print(f"all figures: {OUT}")


if __name__ == "__main__":
    sys.exit(main())
