"""`python -m fidelity [--only CHECK] [--recorded]`: a table to read; exits 1 when anything is not
as GitHub says."""

import argparse
import asyncio
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fidelity import examples, graph, hooks, models, packages, recordings, rest
from fidelity.finding import Allowance, CheckOutcome, load_allowances
from fidelity.recordings import Recordings

ALONE: Mapping[str, Callable[[], CheckOutcome]] = {
    "webhook_endpoint": lambda: asyncio.run(examples.deliver_payloads()),
    "payloads": examples.parse_payloads,
    "models": models.requests,
}
"""Checks that stand by themselves."""

OF_RECORDINGS: Mapping[str, Callable[[Recordings], CheckOutcome]] = {
    "requests": rest.requests,
    "answers": rest.answers,
    "graphql documents": graph.documents,
    "graphql answers": graph.data,
    "webhooks": hooks.bodies,
    "signatures": hooks.signatures,
}
"""Checks of what the flow tests said to devhub, and devhub to them."""


def main() -> int:
    asked = _arguments()
    logging.disable(logging.WARNING)
    wanted = asked.only or [*ALONE, *OF_RECORDINGS]
    try:
        outcomes = list(_checked(wanted, recorded=asked.recorded))
    except (RuntimeError, OSError) as error:
        print(f"fidelity: {error}", file=sys.stderr)
        return 1
    _show(outcomes, load_allowances())
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fidelity", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=[*ALONE, *OF_RECORDINGS],
        help="one check; may be given again",
    )
    parser.add_argument(
        "--recorded", action="store_true", help="use the recordings of the last time"
    )
    return parser.parse_args()


def _checked(wanted: Sequence[str], *, recorded: bool) -> list[CheckOutcome]:
    allowances = load_allowances()
    packages.fetch()
    found = [_timed(name, ALONE[name]) for name in wanted if name in ALONE]
    if rest_of := [name for name in wanted if name in OF_RECORDINGS]:
        if not recorded:
            recordings.record()
        rows = recordings.load()
        found += [_timed(name, lambda name=name: OF_RECORDINGS[name](rows)) for name in rest_of]
    for outcome in found:
        outcome.forgive(allowances)
    return found


def _timed(name: str, check: Callable[[], CheckOutcome]) -> CheckOutcome:
    began = time.monotonic()
    outcome = check()
    print(f"fidelity: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    return outcome


def _show(outcomes: Sequence[CheckOutcome], allowances: Sequence[Allowance]) -> None:
    console = Console(
        soft_wrap=not sys.stdout.isatty(),
        width=None if sys.stdout.isatty() else 170,
        highlight=False,
    )
    table = Table("CHECK", "PROMISE", box=None, pad_edge=False)
    table.add_column("LOOKED AT", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("WRONG", justify="right")
    table.add_column("ALLOWED", justify="right")
    for one in outcomes:
        wrong = Text(str(one.wrong), style="red" if one.wrong else "green")
        table.add_row(
            one.check, one.promise, str(one.looked), one.seen, wrong, str(one.allowed.total() or "")
        )
    console.print(table)
    why = {one.name: one.why for one in allowances}
    for name, times in sorted(sum((one.allowed for one in outcomes), Counter()).items()):
        console.print(
            Text(f"allowed {times} times: {name} — {' '.join(why[name].split())}", style="dim")
        )
    for one in outcomes:
        for violation, times in sorted(one.violations.items()):
            console.print(
                Text(f"WRONG {one.check}: {violation}" + (f" ({times} times)" if times > 1 else ""))
            )


if __name__ == "__main__":
    sys.exit(main())
