"""The causes of failures of Osiris's own commands in jails, in words for people."""

from osiris.core.ports.sandbox import Result, SandboxLimits
from osiris.core.sanitize import clean_text

_LONG = 300  # characters
_ENDS = 150


def quote_errors(output: bytes) -> str:
    """Return a command's complaint as one line: its lines `error: ` and `fatal: `, or the last ones
    when there are none."""
    lines = [line.strip() for line in clean_text(output).splitlines() if line.strip()]
    complaints = [line for line in lines if line.startswith(("error: ", "fatal: "))]
    return " / ".join(map(_shorten_line, complaints[:3] or lines[-3:])) or "it said nothing"


def _shorten_line(line: str) -> str:
    """Return a message without the middle of a very long path."""
    if len(line) <= _LONG:
        return line
    cut = len(line) - 2 * _ENDS
    return f"{line[:_ENDS]}… ({cut} more characters) …{line[-_ENDS:]}"


def explain_kill(result: Result, limits: SandboxLimits) -> str:
    """Return why a command was killed, as the end of a sentence."""
    if result.out_of_memory:
        return f"needed more than the {limits.memory >> 20} MiB of memory of a session"
    return "was cut off: something on this machine killed it"
