"""The request of a person who runs `osiris local`."""

from dataclasses import dataclass
from pathlib import Path
from shlex import quote


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRequest:
    """The arguments of the command line; without a `request`, the newest unfinished work is
    resumed."""

    path: Path
    request: str
    model: str
    budget: float | None
    yes: bool

    @property
    def resume_hint(self) -> str:
        model = f" --model {quote(self.model)}" if self.model else ""
        budget = f" --budget {self.budget:g}" if self.budget else ""
        return f"Nothing is lost. Go on with:  osiris local {quote(str(self.path))}{model}{budget}"
