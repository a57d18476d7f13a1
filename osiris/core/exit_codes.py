"""Exit codes of shell commands, and what they do not tell."""

import re

EARLY_END = 141
"""The exit code, with pipefail, of a pipe whose reader ended before its writer: 128 + SIGPIPE."""

_READ = 10_000  # characters of a command
_QUOTED = re.compile(r"'[^']*'|\"(?:[^\"\\]|\\.)*\"|\\.", re.DOTALL)
_SUCCEEDING = r"(?:true|:|echo|printf|exit[ \t]+0)(?![\w./-])"
"""Commands that always succeed."""
_OR = re.compile(rf"\|\|[ \t\n]*({_SUCCEEDING})")
_LAST = re.compile(rf"[ \t]*({_SUCCEEDING})")
_BACKGROUND = re.compile(r"(?<![&<>|])&(?![&>])")


def find_hiding_part(command: str) -> str:
    """Return the part of a bash command that hides the exit code of what ran before it, such as
    `|| true`; "" where none is seen."""
    text = _QUOTED.sub("Q", command[:_READ])
    if match := _OR.search(text):
        return f"|| {match[1]}"
    last = re.split("[;\n]", text.rstrip("; \t\n"))[-1]
    is_alone = last == text.rstrip("; \t\n") or "&" in last or "|" in last
    if not is_alone and (match := _LAST.match(last)):
        return f"; {match[1]}"
    return "&" if _BACKGROUND.search(text) else ""


def explain_exit_code(command: str, exit_code: int) -> str:
    """Return what an exit code does not tell of a command, as half a sentence; "" where it tells
    all."""
    if exit_code == EARLY_END:
        return "the reader of a pipe ended before its writer, so how that would have ended is open"
    if exit_code == 0 and (part := find_hiding_part(command)):
        return f"`{part}` hides how the rest ended"
    return ""
