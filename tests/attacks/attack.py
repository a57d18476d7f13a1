"""Helpers to write attacks: a script, its control, and the judgement of both.

A script prints "won", or the canary itself, when it has reached its goal. "over" at its end shows
that it ran to its end. Its environment has OWN (the folder of the worker), PORT (a port that sends
the canary) and WORKER (the process id of the worker).
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.attacks.worker import CANARY

RecordVerdict = Callable[[str, str], None]
"""Records what happened to the attack, and what happened to its control."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack. `outcome` and `control_outcome` describe, for the report, what happens to the
    attack in a session, and to its control.

    `control` is the method of `WorkerUnderAttack` that runs the control. The control runs
    `control_script` instead of `script` where `script` would harm this machine, and
    `ordinary_control_script` for a worker of an ordinary user, which the system itself restricts.
    """

    name: str
    script: str
    outcome: str
    control_outcome: str
    control: str = "run_unprotected"
    control_script: str = ""
    ordinary_control_script: str = ""


def parametrize_attacks(*attacks: Attack) -> Any:
    """Return a decorator that runs a test once for each attack."""
    return pytest.mark.parametrize("attack", attacks, ids=[attack.name for attack in attacks])


def quote_python(code: str, *args: str) -> str:
    """Return a shell command that runs Python code."""
    return shlex.join(["/usr/bin/python3", "-I", "-S", "-c", code, *args])


def complete_script(worker: Any, script: str) -> str:
    """Return a script with the variables that attacks use before it, and "over" at its end."""
    variables = {"OWN": worker.folder / "own", "PORT": worker.port, "WORKER": worker.pid}
    return (
        "".join(f"export {name}={value}\n" for name, value in variables.items())
        + f"{script}\necho over"
    )


def has_won(output: str) -> bool:
    """Return whether the output of a script shows that it reached its goal."""
    return output.startswith("won") or "\nwon" in output or CANARY in output


def judge_attack(
    attack: Attack, worker: Any, record_verdict: RecordVerdict, name: str = "s"
) -> None:
    """Assert that the attack fails in session `name`, and that its control succeeds."""
    control_script = (
        (worker.user == "ordinary" and attack.ordinary_control_script)
        or attack.control_script
        or attack.script
    )
    run_control = getattr(worker, attack.control)
    control_output = run_control(complete_script(worker, control_script))
    assert has_won(control_output), f"the attack itself is broken: {control_output[-2000:]}"
    result = worker.run_script(complete_script(worker, attack.script), name=name, timeout=20)
    output = result.output.decode(errors="replace")
    assert "over" in output, output[-2000:]
    assert not has_won(output), output[-2000:]
    is_closed = control_script == attack.ordinary_control_script
    record_verdict(
        attack.outcome, "closed to an ordinary user" if is_closed else attack.control_outcome
    )
