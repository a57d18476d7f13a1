"""The shell tool, which runs one command and returns the exit code and a part of the output that a
model can read."""

import secrets
from collections.abc import Iterator, Sequence

from pydantic import Field

from osiris.core.exit_codes import explain_exit_code
from osiris.core.ports.models import ToolAnswer
from osiris.core.ports.sandbox import Result
from osiris.core.sanitize import clean_text
from osiris.core.work import Blocked, CommandRan
from osiris.tools.context import ToolContext
from osiris.tools.files import ToolArgs
from osiris.tools.sandbox.network.egress_proxy import LONGEST_REASON
from osiris.tools.sandbox.network.tls_client_hello import LONGEST_NAME

MOST_SHOWN = 16_000  # characters, half of them from the end, where errors are
MOST_BLOCKED = 20  # hosts
MOST_COMMAND = 100_000  # bytes; Linux accepts 128 KiB in one argument


class RunCommand(ToolArgs):
    command: str = Field(min_length=1, description="bash")
    timeout: float = Field(120, gt=0, le=600, description="seconds")


async def run_command(context: ToolContext, args: RunCommand) -> ToolAnswer:
    """Run a command. The answer's `ran` records what this process observed, not what the model
    claims."""
    if "\0" in args.command:
        return ToolAnswer(text="a command cannot hold a NUL character")
    if len(args.command.encode("utf-8", "replace")) > MOST_COMMAND:
        return ToolAnswer(
            text="the command is too long: write a script with write_file and run that"
        )
    name = f"{secrets.token_hex(4)}.txt"
    result = await context.session.run(
        ["/bin/bash", "-o", "pipefail", "-c", args.command], timeout=args.timeout, keep_as=name
    )
    ran = CommandRan(
        command=args.command,
        exit_code=result.exit_code,
        seconds=round(result.seconds, 3),
        blocked=result.blocked,
    )
    parts = [
        _describe_result(result, args),
        *_describe_blocked(result.blocked),
        _shorten_output(result, name),
    ]
    return ToolAnswer(text="\n".join(parts).rstrip(), ran=ran)


def _describe_result(result: Result, args: RunCommand) -> str:
    memory = (
        "; the sandbox ran out of memory and processes were killed" if result.out_of_memory else ""
    )
    if result.timed_out:
        return (
            f"stopped after {args.timeout:g} s: it did not end in time, and all it started was"
            f" killed{memory}"
        )
    if result.exit_code is None:
        return f"killed after {result.seconds:.1f} s{memory}"
    unclear = explain_exit_code(args.command, result.exit_code)
    note = f"; {unclear}" if unclear else ""
    return f"exit code {result.exit_code} in {result.seconds:.1f} s{note}{memory}"


def _describe_blocked(blocked: Sequence[Blocked]) -> Iterator[str]:
    """Yield a line for each host that the egress proxy refused.

    Programs often report only that the network failed; these lines show the model that a retry is
    useless.
    """
    for each in blocked[:MOST_BLOCKED]:
        host = " ".join(clean_text(each.host).split())[:LONGEST_NAME]
        reason = " ".join(clean_text(each.reason).split())[:LONGEST_REASON]
        yield f"blocked: {host}:{each.port}, times: {each.times}: {reason}"
    if len(blocked) > MOST_BLOCKED:
        yield f"blocked: {len(blocked) - MOST_BLOCKED} more hosts, which are left out here"


def _shorten_output(result: Result, name: str) -> str:
    text = clean_text(result.output)
    half = MOST_SHOWN // 2
    if len(text) <= MOST_SHOWN:
        return text
    note = f"\n… [cut; all {result.total} bytes are in /tmp/outputs/{name}] …\n"
    return f"{text[:half]}{note}{text[-half:]}"
