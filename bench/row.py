"""One line of the table: our samples, the other side's, and the target they are held against."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Rounds = Sequence[Sequence[float]]
"""The samples of each round; rounds of the two sides take turns."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """At most `p50` and `p99` (in the row's unit), at least `ratio` and at most `most` times the
    other side; None: not held to that.
    """

    p50: float | None = None
    p99: float | None = None
    ratio: float | None = None
    most: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """`unit` is ms, s, MiB, tokens, /s or /min; `ours` and `theirs` are in it. `note` says what
    must be known to read them.
    """

    name: str
    what: str
    unit: str
    ours: Rounds
    other: str
    theirs: Rounds
    target: Threshold = field(default_factory=Threshold)
    note: str = ""

    @property
    def p50(self) -> float:
        return middle(self.ours)

    @property
    def p99(self) -> float:
        return high(self.ours)

    @property
    def ratio(self) -> float:
        return self.p50 / middle(self.theirs)

    @property
    def met(self) -> bool | None:
        """None when there is no target."""
        held = [
            *([self.p50 <= self.target.p50] if self.target.p50 is not None else []),
            *([self.p99 <= self.target.p99] if self.target.p99 is not None else []),
            *([self.ratio >= self.target.ratio] if self.target.ratio is not None else []),
            *([self.ratio <= self.target.most] if self.target.most is not None else []),
        ]
        return all(held) if held else None

    def wanted(self) -> str:
        """The target in words."""
        words = [
            *([f"p50 ≤ {self.target.p50:g} {self.unit}"] if self.target.p50 is not None else []),
            *([f"p99 ≤ {self.target.p99:g} {self.unit}"] if self.target.p99 is not None else []),
            *([f"ratio ≥ {self.target.ratio:g}"] if self.target.ratio is not None else []),
            *([f"ratio ≤ {self.target.most:g}"] if self.target.most is not None else []),
        ]
        return ", ".join(words)

    def figures(self) -> dict[str, Any]:
        """The row as JSON can hold it."""
        told = {
            "p50": self.p50,
            "p99": self.p99,
            "rounds": [middle([samples]) for samples in self.ours],
        }
        theirs = {"p50": middle(self.theirs), "p99": high(self.theirs), "what": self.other}
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "osiris": told,
            "other": theirs | {"rounds": [middle([samples]) for samples in self.theirs]},
            "ratio": self.ratio,
            "target": {
                name: value for name, value in asdict(self.target).items() if value is not None
            },
            "met": self.met,
            "note": self.note,
        }


def middle(rounds: Rounds) -> float:
    """The median of the rounds' medians."""
    return statistics.median(statistics.median(samples) for samples in rounds)


def high(rounds: Rounds) -> float:
    """The 99th percentile: the median of the rounds' where they are long enough, else that of all
    samples."""
    if all(len(samples) >= 100 for samples in rounds):
        return statistics.median(_percentile(samples) for samples in rounds)
    return _percentile([sample for samples in rounds for sample in samples])


def _percentile(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
