"""`python -m fidelity [--only CHECK] [--recorded]`: print a table, and exit with 1 if anything
differs from GitHub."""

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

INDEPENDENT_CHECKS: Mapping[str, Callable[[], CheckOutcome]] = {
    "webhook_endpoint": lambda: asyncio.run(examples.deliver_payloads()),
    "payloads": examples.parse_payloads,
    "models": models.check_requests,
}
"""Checks that need no recordings."""

RECORDING_CHECKS: Mapping[str, Callable[[Recordings], CheckOutcome]] = {
    "requests": rest.check_requests,
    "answers": rest.check_answers,
    "graphql documents": graph.check_documents,
    "graphql answers": graph.check_answers,
    "webhooks": hooks.check_bodies,
    "signatures": hooks.check_signatures,
}
"""Checks of the recorded exchanges and webhooks of the flow tests."""


def main() -> int:
    arguments = _parse_arguments()
    logging.disable(logging.WARNING)
    checks = arguments.only or [*INDEPENDENT_CHECKS, *RECORDING_CHECKS]
    try:
        outcomes = list(_run_checks(checks, recorded=arguments.recorded))
    except (RuntimeError, OSError) as error:
        print(f"fidelity: {error}", file=sys.stderr)
        return 1
    _print_table(outcomes, load_allowances())
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fidelity", description=__doc__)
    parser.add_argument(
        "--only",
        action="append",
        choices=[*INDEPENDENT_CHECKS, *RECORDING_CHECKS],
        help="one check; may be given again",
    )
    parser.add_argument(
        "--recorded", action="store_true", help="use the recordings of the last time"
    )
    return parser.parse_args()


def _run_checks(checks: Sequence[str], *, recorded: bool) -> list[CheckOutcome]:
    allowances = load_allowances()
    packages.fetch_packages()
    outcomes = [
        _run_check(name, INDEPENDENT_CHECKS[name]) for name in checks if name in INDEPENDENT_CHECKS
    ]
    if recording_checks := [name for name in checks if name in RECORDING_CHECKS]:
        if not recorded:
            recordings.record_tests()
        recorded_rows = recordings.load_recordings()
        outcomes += [
            _run_check(name, lambda name=name: RECORDING_CHECKS[name](recorded_rows))
            for name in recording_checks
        ]
    for outcome in outcomes:
        outcome.apply_allowances(allowances)
    return outcomes


def _run_check(name: str, check: Callable[[], CheckOutcome]) -> CheckOutcome:
    began = time.monotonic()
    outcome = check()
    print(f"fidelity: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr)
    return outcome


def _print_table(outcomes: Sequence[CheckOutcome], allowances: Sequence[Allowance]) -> None:
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
    for outcome in outcomes:
        wrong = Text(str(outcome.wrong), style="red" if outcome.wrong else "green")
        table.add_row(
            outcome.check,
            outcome.promise,
            str(outcome.checked_count),
            outcome.checked_what,
            wrong,
            str(outcome.allowed.total() or ""),
        )
    console.print(table)
    reasons = {allowance.name: allowance.why for allowance in allowances}
    for name, times in sorted(sum((outcome.allowed for outcome in outcomes), Counter()).items()):
        console.print(
            Text(f"allowed {times} times: {name} — {' '.join(reasons[name].split())}", style="dim")
        )
    for outcome in outcomes:
        for violation, times in sorted(outcome.violations.items()):
            console.print(
                Text(
                    f"WRONG {outcome.check}: {violation}"
                    + (f" ({times} times)" if times > 1 else "")
                )
            )


if __name__ == "__main__":
    sys.exit(main())
