"""Results of a check: how much it compared, each violation in one line, and what is allowed by
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
    """One difference from GitHub. `where` is a method and path, or an event; `pointer` is a JSON
    pointer."""

    where: str
    pointer: str = ""
    reason: str

    def __str__(self) -> str:
        return " ".join(
            filter(None, (self.where, self.pointer, f"— {' '.join(self.reason.split())[:300]}"))
        )


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """One difference that is allowed in `checks`. `where`, `pointer` and `reason` are patterns for
    the whole text."""

    name: str
    checks: Sequence[str]
    where: str
    pointer: str = ".*"
    reason: str = ".*"
    why: str

    def matches(self, check: str, violation: Violation) -> bool:
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
    """The result of one check. `checked_count` is the number of things that were compared with
    GitHub; `checked_what` describes them."""

    check: str
    promise: str
    checked_count: int = 0
    checked_what: str = ""
    violations: Counter[Violation] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)

    def add_violation(self, where: str, reason: str, pointer: str = "") -> None:
        self.violations[Violation(where=where, pointer=pointer, reason=reason)] += 1

    def apply_allowances(self, allowances: Iterable[Allowance]) -> None:
        """Move what is allowed by name from the violations to `allowed`. An allowance that is not
        needed is a violation itself."""
        own_allowances = [allowance for allowance in allowances if self.check in allowance.checks]
        for violation in list(self.violations):
            if (
                name := next(
                    (
                        allowance.name
                        for allowance in own_allowances
                        if allowance.matches(self.check, violation)
                    ),
                    None,
                )
            ) is not None:
                self.allowed[name] += self.violations.pop(violation)
        for allowance in own_allowances:
            if not self.allowed[allowance.name]:
                self.add_violation(
                    f"{ALLOWED.name}: {allowance.name}",
                    "nothing needs this allowance any more; take it out",
                )

    @property
    def wrong(self) -> int:
        return len(self.violations)


def load_allowances(path: Path = ALLOWED) -> Sequence[Allowance]:
    """Return the allow-list. Every entry has a reason and a unique name."""
    allowances = [Allowance(**entry) for entry in yaml.safe_load(path.read_text()) or []]
    names = Counter(allowance.name for allowance in allowances)
    if repeated := [name for name, times in names.items() if times > 1]:
        raise ValueError(f"{path.name}: used twice: {', '.join(repeated)}")
    if without_reason := [allowance.name for allowance in allowances if not allowance.why.strip()]:
        raise ValueError(f"{path.name}: no reason given: {', '.join(without_reason)}")
    return allowances


def build_pointer(path: Iterable[str | int]) -> str:
    """Return a JSON pointer (RFC 6901), with `*` for each position in a list: all entries of a list
    have one shape."""
    steps = (
        "*" if isinstance(step, int) else step.replace("~", "~0").replace("/", "~1")
        for step in path
    )
    return "".join(f"/{step}" for step in steps)


def shorten(value: object) -> str:
    """Return a value as a short text."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
