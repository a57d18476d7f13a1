"""What a check found: how much it looked at, each violation in one line, and what is allowed by
name."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ALLOWED = Path(__file__).parent / "allowed.yml"


@dataclass(frozen=True, kw_only=True, order=True)
class Violation:
    """One thing that is not as GitHub says: `where` is a method and path, or an event; `pointer` a
    JSON pointer."""

    where: str
    pointer: str = ""
    reason: str

    def __str__(self) -> str:
        return " ".join(
            filter(None, (self.where, self.pointer, f"— {' '.join(self.reason.split())[:300]}"))
        )


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """One difference that is allowed in `checks`; `where`, `pointer` and `reason` are patterns for
    the whole text."""

    name: str
    checks: Sequence[str]
    where: str
    pointer: str = ".*"
    reason: str = ".*"
    why: str

    def fits(self, check: str, violation: Violation) -> bool:
        pairs = (
            (self.where, violation.where),
            (self.pointer, violation.pointer),
            (self.reason, violation.reason),
        )
        return check in self.checks and all(
            re.fullmatch(pattern, text, re.DOTALL) for pattern, text in pairs
        )


@dataclass(kw_only=True)
class CheckOutcome:
    """The result of one check. `looked` counts what was held against GitHub; `seen` says what
    that was."""

    check: str
    promise: str
    looked: int = 0
    seen: str = ""
    violations: Counter[Violation] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)

    def blame(self, where: str, reason: str, pointer: str = "") -> None:
        self.violations[Violation(where=where, pointer=pointer, reason=reason)] += 1

    def forgive(self, allowances: Iterable[Allowance]) -> None:
        """Move what is allowed by name aside; an allowance that nothing needs any more is a
        violation itself."""
        mine = [one for one in allowances if self.check in one.checks]
        for violation in list(self.violations):
            if (
                name := next((one.name for one in mine if one.fits(self.check, violation)), None)
            ) is not None:
                self.allowed[name] += self.violations.pop(violation)
        for one in mine:
            if not self.allowed[one.name]:
                self.blame(
                    f"{ALLOWED.name}: {one.name}",
                    "nothing needs this allowance any more; take it out",
                )

    @property
    def wrong(self) -> int:
        return len(self.violations)


def load_allowances(path: Path = ALLOWED) -> Sequence[Allowance]:
    """The allow-list. Every entry says why; a name is used once."""
    found = [Allowance(**entry) for entry in yaml.safe_load(path.read_text()) or []]
    names = Counter(one.name for one in found)
    if twice := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"{path.name}: used twice: {', '.join(twice)}")
    if mute := [one.name for one in found if not one.why.strip()]:
        raise ValueError(f"{path.name}: no reason given: {', '.join(mute)}")
    return found


def pointer_to(path: Iterable[str | int]) -> str:
    """A JSON pointer (RFC 6901), with `*` for each place in a list: all of them have one shape."""
    steps = (
        "*" if isinstance(step, int) else step.replace("~", "~0").replace("/", "~1")
        for step in path
    )
    return "".join(f"/{step}" for step in steps)


def short(value: object) -> str:
    """A value as one can read it in a line."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
