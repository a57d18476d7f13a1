"""The evidence of a run: what the harness saw, as tables of limited size, so that foreign text
cannot fill the page.

Each section has a budget of characters and reports how many rows it left out. The verdicts and the
cost have a bounded size, so callers that build a page place them first and give the tables the
remaining room.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from osiris.bot.github.escaping import clip_page, clip_text, escape_code, fit_rows, one_line
from osiris.core.exit_codes import EARLY_END, explain_exit_code
from osiris.core.work import Blocked, CommandRan, FileChange, Prepared, Work

ROWS: Final = 30  # per table
MOST_ROW: Final = 300  # characters of a written row
FILES_ROOM: Final = 9_000
COMMANDS_ROOM: Final = 8_000  # once for the agent, once for the setup
BLOCKED_ROOM: Final = 9_100  # likewise
WEAKNESS_ROOM: Final = 1_000
PATHS_ROOM: Final = 5_000
MARKED_BAR: Final = "\\|"  # a bar within a table's cell
LEFT_OUT_ROOM: Final = 4_000
MOST_EVIDENCE: Final = 54_000  # characters in total
_TEST: Final = re.compile(r"(?i)(?:^|[/_.-])tests?(?:[/_.-]|$)")
_TEST_NAME: Final = re.compile(r"[a-z0-9](?:Tests?|Spec)\.|[_.-]spec\.|\.cy\.[jt]s")
_CODE: Final = re.compile(
    r"\.(?:rb|cr|[cm]?[jt]sx?|vue|py|php|lua|exs?|clj[cs]?|scala|groovy|kts?|java|cs|swift|hs|dart)$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CommandLog:
    """The commands of the agent or of the setup, and the numbers of those that are not listed."""

    commands: Sequence[CommandRan]
    earlier: int
    blocked: Sequence[Blocked]
    more_blocked: int


def write_evidence(work: Work, room: int = MOST_EVIDENCE) -> str:
    """Return what a run did, with its cost, in at most `room` characters."""
    agent = _CommandLog(
        commands=work.commands,
        earlier=work.earlier,
        blocked=work.blocked,
        more_blocked=work.more_blocked,
    )
    tables = [
        _write_files(work.files),
        _write_left_out(work.left_out),
        _write_commands(agent),
        _write_blocked(agent, "network.agent"),
        _write_set_up(work.prepared),
        _write_weakness(work.prepared),
    ]
    last = f"{write_cost(work)}\n\n{_write_instructions(work.instructions)}"
    return clip_page("\n\n".join(filter(None, tables)), room - len(last) - 2) + f"\n\n{last}"


def write_cost(work: Work) -> str:
    """Return steps, time, model, tokens and cost; an unknown price is reported as unknown."""
    steps = (
        f"{work.steps} steps in {format_duration(work.seconds)} with `{escape_code(work.model)}`"
    )
    used = work.usage
    if not used.input:
        return f"{steps}."
    tokens = f"{used.input:,} tokens in ({used.cached:,} of them from the vendor's cache)"
    money = "at a price that is not known" if used.usd is None else f"for {used.usd:.2f} US dollars"
    return f"{steps}: {tokens} and {used.output:,} out, {money}."


def write_not_done(work: Work) -> str:
    """Return the verdicts on what a run left undone, one line each."""
    lines = []
    if not work.commands:
        lines.append("- Nothing was run, so nothing shows that it works.")
    elif (verdict := _judge_last_command(work.commands[-1])) is not None:
        lines.append(verdict)
    if work.commands and work.edited_last:
        lines.append("- Files were changed after the last command had run.")
    if not any(_is_test(file.path) for file in work.files):
        lines.append("- No test was changed or added.")
    return "\n".join([*lines, "- Nothing is merged: that is for a person to do."])


def _judge_last_command(ran: CommandRan) -> str | None:
    """Return why a command does not show that it works; None when it does."""
    if ran.exit_code not in (0, EARLY_END):
        return "- The last command that was run did not succeed."
    if unclear := explain_exit_code(ran.command, ran.exit_code):
        return f"- The exit code of the last command does not tell all: {unclear}."
    return None


def _write_left_out(sentences: Sequence[str]) -> str:
    """Return what the agent was not shown, and what of its work was not taken."""
    if not sentences:
        return ""
    rows = [f"- {one_line(sentence, MOST_ROW)}" for sentence in sentences]
    fitting = fit_rows(rows, LEFT_OUT_ROOM)
    left = len(rows) - len(fitting)
    more = [f"- … and {left} more"] if left else []
    return "\n".join(["Left out:", "", *fitting, *more])


def _is_test(path: str) -> bool:
    """Return whether a path is that of a test, by the conventions of the usual test runners.

    A specification such as `docs/spec/format.md` or `api.spec.yaml` is none.
    """
    if _TEST.search(path):
        return True
    *folders, name = path.split("/")
    if not _CODE.search(name):
        return False
    return not {"spec", "specs"}.isdisjoint(folders) or bool(_TEST_NAME.search(name))


def format_duration(seconds: float) -> str:
    """Return a duration such as 1.2 s or 3 min 20 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _write_files(files: Sequence[FileChange]) -> str:
    rows = [_file_row(file) for file in files[:ROWS]]
    fitting = fit_rows(rows, FILES_ROOM)
    left = len(files) - len(fitting)
    more = [f"| … and {left} more | | |"] if left else []
    return "\n".join(["| changed file | how | lines |", "|---|---|---|", *fitting, *more])


def _file_row(file: FileChange) -> str:
    return f"| `{escape_code(file.path)}` | {file.status} | {_count_lines(file)} |"


def _count_lines(file: FileChange) -> str:
    if not file.counted:
        return "not counted"
    return "binary" if file.additions is None else f"+{file.additions} −{file.deletions}"


def _write_commands(ran: _CommandLog) -> str:
    """Return the table of the newest commands that fit, oldest first."""
    if not ran.commands:
        return "No command was run."
    newest = [_command_row(command) for command in reversed(ran.commands[-ROWS:])]
    fitting = fit_rows(newest, COMMANDS_ROOM)
    left = len(ran.commands) - len(fitting) + ran.earlier
    first = [f"| … and {left} earlier commands | | |"] if left else []
    head = ["| command | exit code | time |", "|---|---|---|"]
    return "\n".join([*head, *first, *reversed(fitting)])


def _command_row(ran: CommandRan) -> str:
    end = "cut off" if ran.exit_code is None else str(ran.exit_code)
    if ran.exit_code is not None and (unclear := explain_exit_code(ran.command, ran.exit_code)):
        end = f"{end}: {unclear.replace('|', MARKED_BAR)}"
    return f"| `{escape_code(ran.command)}` | {end} | {format_duration(ran.seconds)} |"


def _write_blocked(ran: _CommandLog, key: str) -> str:
    """Return the hosts that commands were blocked from, and the policy `key` that allows them."""
    times = Counter[tuple[str, int, str]]()
    for blocked in (*ran.blocked, *(b for command in ran.commands for b in command.blocked)):
        times[blocked.host, blocked.port, blocked.reason] += blocked.times
    if not times:
        return ""
    rows = [_blocked_row(*what, count) for what, count in times.most_common(ROWS)]
    fitting = fit_rows(rows, BLOCKED_ROOM)
    left = len(times) - len(fitting) + ran.more_blocked
    more = [f"- … and {left} more"] if left else []
    hint = f"`{key}` in `.github/osiris.yml` of the base branch lets commands out to a host."
    return "\n".join([*fitting, *more, "", hint])


def _blocked_row(host: str, port: int, reason: str, count: int) -> str:
    often = "once" if count == 1 else f"{count} times"
    return clip_text(
        f"- blocked: `{escape_code(host)}:{port}`, {often}: {one_line(reason)}", MOST_ROW
    )


def _write_set_up(prepared: Prepared) -> str:
    """Return the commands that ran before the agent, with network access to the package
    registries."""
    if not prepared.commands:
        return ""
    ran = _CommandLog(
        commands=prepared.commands,
        earlier=0,
        blocked=prepared.blocked,
        more_blocked=prepared.more_blocked,
    )
    earlier, now = "the result of an earlier run was used", "run before the agent began"
    head = f"Set-up of the base branch ({earlier if prepared.cached else now}):"
    parts = [head, _write_commands(ran), _write_blocked(ran, "network.setup")]
    return "\n\n".join(filter(None, parts))


def _write_weakness(prepared: Prepared) -> str:
    if not prepared.weakness:
        return ""
    lacks = one_line(prepared.weakness, WEAKNESS_ROOM)
    weak = "The sandbox of this run was a weak one, as the operator allows"
    return f"⚠️ {weak}. It lacks: {lacks}."


def _write_instructions(paths: Sequence[str]) -> str:
    fitting = fit_rows([f"`{escape_code(path)}`," for path in paths[:ROWS]], PATHS_ROOM)
    left = len(paths) - len(fitting)
    more = f" … and {left} more" if left else ""
    read = " ".join(fitting).removesuffix(",") + more
    return f"Instructions read from the base branch: {read or 'none'}."
