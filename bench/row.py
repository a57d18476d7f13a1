"""A row of the table: the samples of Osiris, those of the comparison, and the target."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

Rounds = Sequence[Sequence[float]]
"""The samples of each round. The rounds of the two sides take turns."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The target of a row: at most `p50` and `p99` (in the row's unit), and at least `ratio` and at
    most `most` times the comparison. None means no limit."""

    p50: float | None = None
    p99: float | None = None
    ratio: float | None = None
    most: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """A row; `unit` is ms, s, MiB, tokens, /s or /min, and `ours` and `theirs` are in it. `note`
    contains what a reader must know about the figures."""

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
        return compute_median(self.ours)

    @property
    def p99(self) -> float:
        return compute_p99(self.ours)

    @property
    def ratio(self) -> float:
        return self.p50 / compute_median(self.theirs)

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        checks = [
            *([self.p50 <= self.target.p50] if self.target.p50 is not None else []),
            *([self.p99 <= self.target.p99] if self.target.p99 is not None else []),
            *([self.ratio >= self.target.ratio] if self.target.ratio is not None else []),
            *([self.ratio <= self.target.most] if self.target.most is not None else []),
        ]
        return all(checks) if checks else None

    def describe_target(self) -> str:
        """Return the target as text."""
        parts = [
            *([f"p50 ≤ {self.target.p50:g} {self.unit}"] if self.target.p50 is not None else []),
            *([f"p99 ≤ {self.target.p99:g} {self.unit}"] if self.target.p99 is not None else []),
            *([f"ratio ≥ {self.target.ratio:g}"] if self.target.ratio is not None else []),
            *([f"ratio ≤ {self.target.most:g}"] if self.target.most is not None else []),
        ]
        return ", ".join(parts)

    def build_report(self) -> dict[str, Any]:
        """Return the row in a form for JSON."""
        osiris_figures = {
            "p50": self.p50,
            "p99": self.p99,
            "rounds": [compute_median([samples]) for samples in self.ours],
        }
        other_figures = {
            "p50": compute_median(self.theirs),
            "p99": compute_p99(self.theirs),
            "what": self.other,
        }
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "osiris": osiris_figures,
            "other": other_figures
            | {"rounds": [compute_median([samples]) for samples in self.theirs]},
            "ratio": self.ratio,
            "target": {
                name: value for name, value in asdict(self.target).items() if value is not None
            },
            "met": self.is_met,
            "note": self.note,
        }


def compute_median(rounds: Rounds) -> float:
    """Return the median of the rounds' medians."""
    return statistics.median(statistics.median(samples) for samples in rounds)


def compute_p99(rounds: Rounds) -> float:
    """Return the 99th percentile: the median of those of the rounds if all rounds have 100 samples,
    otherwise that of all samples."""
    if all(len(samples) >= 100 for samples in rounds):
        return statistics.median(_take_p99(samples) for samples in rounds)
    return _take_p99([sample for samples in rounds for sample in samples])


def _take_p99(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
