"""The budget of a run: limits that are checked before every model call."""

import time
from collections.abc import Callable, Sequence

from osiris.core.effects import StartRun
from osiris.core.errors import RunEnded
from osiris.core.ports.models import Halted, SpentBudget
from osiris.core.work import Usage


class Budget:
    """The limits of a run: `steps` model calls, `minutes` of active time and `usd` US dollars
    (None: no limit). `spent_seconds` is the active time of earlier processes of the run."""

    def __init__(
        self,
        *,
        steps: int,
        minutes: float,
        usd: float | None = None,
        spent_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = steps
        self._minutes = minutes
        self._usd = usd
        self._clock = clock
        self._since = clock() - spent_seconds

    @classmethod
    def of_run(cls, order: StartRun, share: float, *, spent_seconds: float) -> "Budget":
        """Return the budget of an agent that may spend the part `share` (0 to 1) of its order's
        limits, but at least one step."""
        return cls(
            steps=max(1, round(order.steps * share)),
            minutes=order.minutes * share,
            usd=None if order.usd is None else order.usd * share,
            spent_seconds=spent_seconds,
        )

    @property
    def seconds(self) -> float:
        """Return the run's active time so far."""
        return self._clock() - self._since

    @property
    def seconds_left(self) -> float:
        """Return the seconds that are left; negative when the time is over."""
        return self._minutes * 60 - self.seconds

    def out_of_time(self) -> SpentBudget:
        return SpentBudget(reason=f"the budget of {self._minutes:g} minutes is spent")

    def check_limits(self, steps: int, usd: float, *, is_priced: bool) -> None:
        """Raise RunEnded when one more model call would exceed a limit.

        `steps` calls were made and `usd` was spent, as far as prices are known. If there is a limit
        in dollars and the model's price is not known (`is_priced`), the run is halted, because the
        limit cannot be enforced.
        """
        if steps >= self._steps:
            raise RunEnded(SpentBudget(reason=f"the budget of {self._steps} steps is spent"))
        if self.seconds_left <= 0:
            raise RunEnded(self.out_of_time())
        if self._usd is None:
            return
        if not is_priced:
            reason = (
                "no price is known for this model, so the budget in dollars cannot be held; another"
                " model may do"
            )
            raise RunEnded(Halted(reason=reason))
        if usd >= self._usd:
            raise RunEnded(SpentBudget(reason=f"the budget of {self._usd:g} US dollars is spent"))


def sum_usage(usages: Sequence[Usage]) -> Usage:
    """Return the sum of all usages. If one price is unknown, the price of the sum is unknown."""
    prices = [usage.usd for usage in usages]
    return Usage(
        input=sum(usage.input for usage in usages),
        cached=sum(usage.cached for usage in usages),
        output=sum(usage.output for usage in usages),
        usd=None if None in prices else sum(price for price in prices if price),
    )
