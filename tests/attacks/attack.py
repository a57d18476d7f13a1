"""What attacks are written with: a script, how it is run where nothing stops it, and how both are
judged.

A script says "won" when it has what it wanted, or the canary itself; "over" at its end shows that
it was not cut short. It knows $OWN, the worker's folder, $PORT, the port that gives the canary
away, and $WORKER, the worker's process.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.attacks.worker import CANARY

Verdict = Callable[[str, str], None]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """`control` is what runs it for the control: a method of `Attacked`. `easier` is another script
    for that, where the attack itself would harm this machine; `ordinary` is one for an ordinary
    user's worker, who is stopped earlier.
    """

    name: str
    script: str
    held: str
    shows: str
    control: str = "unprotected"
    easier: str = ""
    ordinary: str = ""


def each(*attacks: Attack) -> Any:
    """A test for each."""
    return pytest.mark.parametrize("attack", attacks, ids=[attack.name for attack in attacks])


def python(code: str, *words: str) -> str:
    """A line of bash that runs it."""
    return shlex.join(["/usr/bin/python3", "-I", "-S", "-c", code, *words])


def known(attacked: Any, script: str) -> str:
    facts = {"OWN": attacked.place / "own", "PORT": attacked.port, "WORKER": attacked.pid}
    return (
        "".join(f"export {name}={value}\n" for name, value in facts.items())
        + f"{script}\necho over"
    )


def won(output: str) -> bool:
    return output.startswith("won") or "\nwon" in output or CANARY in output


def judge(attack: Attack, attacked: Any, verdict: Verdict, name: str = "s") -> None:
    """The attack fails in session `name`, and its control succeeds."""
    easier = (attacked.who == "ordinary" and attack.ordinary) or attack.easier or attack.script
    free = getattr(attacked, attack.control)(known(attacked, easier))
    assert won(free), f"the attack itself is broken: {free[-2000:]}"
    result = attacked.bash(known(attacked, attack.script), name=name, timeout=20)
    seen = result.output.decode(errors="replace")
    assert "over" in seen, seen[-2000:]
    assert not won(seen), seen[-2000:]
    verdict(
        attack.held, "closed to an ordinary user" if easier == attack.ordinary else attack.shows
    )
