"""The part of a run's commands that a fact keeps: as many as the evidence can show, and the totals.

A fact is stored in several tables and is read on the event loop. The transcript has the full list.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from osiris.core.sanitize import cut_text
from osiris.core.work import Blocked, CommandRan, Prepared

MOST_SUMMARY: Final = 20_000  # characters of the model's summary
MOST_COMMANDS: Final = 100
MOST_COMMAND: Final = 1_000  # characters
MOST_BLOCKED: Final = 100  # rows of blocked hosts
MOST_HOST, MOST_REASON = 300, 500  # characters; the egress proxy's report has fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCommands:
    """The newest commands, the number of commands before them, and the hosts blocked for all of
    them."""

    commands: tuple[CommandRan, ...]
    earlier: int
    blocked: tuple[Blocked, ...]
    more_blocked: int


def bound_commands(ran: Sequence[CommandRan]) -> BoundCommands:
    """Return the newest commands, each cut to the limit, and the merged rows of their blocked
    hosts."""
    rows = _merge_blocked(ran)
    return BoundCommands(
        commands=tuple(_cut_command(command) for command in ran[-MOST_COMMANDS:]),
        earlier=max(0, len(ran) - MOST_COMMANDS),
        blocked=tuple(rows[:MOST_BLOCKED]),
        more_blocked=max(0, len(rows) - MOST_BLOCKED),
    )


def bound_prepared(prepared: Prepared) -> Prepared:
    """Return a setup report with its commands cut.

    The policy allows no more setup commands than are kept here.
    """
    ran = bound_commands(prepared.commands)
    return replace(
        prepared,
        commands=ran.commands,
        blocked=ran.blocked,
        more_blocked=ran.more_blocked,
    )


def _cut_command(ran: CommandRan) -> CommandRan:
    return replace(ran, command=cut_text(ran.command, MOST_COMMAND), blocked=())


def _merge_blocked(ran: Sequence[CommandRan]) -> list[Blocked]:
    """Return one row for each host, port and reason, the most frequent first."""
    times = Counter[tuple[str, int, str]]()
    for blocked in (row for command in ran for row in command.blocked):
        host = cut_text(blocked.host, MOST_HOST)
        times[host, blocked.port, cut_text(blocked.reason, MOST_REASON)] += blocked.times
    rows = []
    for (host, port, reason), count in times.most_common():
        rows.append(Blocked(host=host, port=port, times=count, reason=reason))
    return rows
