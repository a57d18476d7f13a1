"""What a repository allows: gates, budgets and limits, as one value."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of one repository (`.github/osiris.yml`), each with its default.

    `steps` and `minutes` are the budget of one run; `deny` are path prefixes a run may not change; `broken` says why
    the repository's file could not be read, and no run starts until it is mended.
    """

    label: str = "osiris"
    steps: int = 60
    minutes: int = 30
    deny: tuple[str, ...] = (".github/workflows/",)
    broken: str = ""
