"""`python -m chaos [--quick] [--only NAME] [--limit N] [--seed N]`: what was counted, and
build/torture.json."""

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

from chaos.parts import PARTS, TortureOptions, play
from tests.flow.support.consistency_audit import Toll

OUT = Path(__file__).parent.parent / "build/torture.json"
MANY = 200
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
    """Exit code 1 when anything was lost, doubled, or asked again."""
    told, only = _arguments()
    logging.disable(logging.WARNING)
    print(f"torture: seed {told.seed}", flush=True)
    tolls: dict[str, Toll] = {}
    for name in only:
        tolls[name] = toll = asyncio.run(play(name, told))
        for what in (*toll.doubles, *toll.losses):
            print(f"torture: {name}: {what}", file=sys.stderr, flush=True)
        print(f"torture: {name} took {toll.seconds:.0f} s", flush=True)
        _write(tolls, told)
    _show(tolls)
    return int(any(toll.doubles or toll.losses or toll.repeated for toll in tolls.values()))


def _arguments() -> tuple[TortureOptions, list[str]]:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument(
        "--only", action="append", choices=list(PARTS), help="one part; may be given again"
    )
    parser.add_argument(
        "--limit", type=int, help="so many moments of the crash loop, drawn, instead of all"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="what is drawn")
    parser.add_argument(
        "--tasks", type=int, default=MANY, help="tasks that live while workers are killed"
    )
    parser.add_argument("--examples", type=int, default=MANY, help="lives against the enemy")
    asked = parser.parse_args()
    share = 10 if asked.quick else 1
    limit = asked.limit if asked.limit is not None or not asked.quick else 40
    told = TortureOptions(
        quick=asked.quick,
        limit=limit,
        seed=asked.seed,
        tasks=asked.tasks // share,
        examples=asked.examples // share,
    )
    return told, asked.only or list(PARTS)


def _write(tolls: Mapping[str, Toll], told: TortureOptions) -> None:
    machine = {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }
    at = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    parts = {name: toll.figures() for name, toll in tolls.items()}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    counted = {
        "at": at,
        "seed": told.seed,
        "whole": _is_whole(tolls, told),
        "machine": machine,
        "parts": parts,
    }
    OUT.write_text(json.dumps(counted, indent=2) + "\n")


def _is_whole(tolls: Mapping[str, Toll], told: TortureOptions) -> bool:
    """Return whether nothing was left out that a run without options does."""
    return (
        tolls.keys() == PARTS.keys()
        and told.limit is None
        and min(told.tasks, told.examples) >= MANY
    )


def _show(tolls: Mapping[str, Toll]) -> None:
    table = Table("PART", box=None, pad_edge=False)
    for title in (*COLUMNS, "seconds"):
        table.add_column(title.upper(), justify="right", no_wrap=True)
    for name, toll in tolls.items():
        figures = toll.figures()
        table.add_row(name, *(str(figures[column]) for column in COLUMNS), f"{toll.seconds:.0f}")
    console = Console(
        soft_wrap=not sys.stdout.isatty(),
        width=None if sys.stdout.isatty() else 170,
        highlight=False,
    )
    console.print(table)
    console.print(f"all figures: {OUT}")


if __name__ == "__main__":
    sys.exit(main())
