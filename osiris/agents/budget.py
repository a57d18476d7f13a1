"""What a run may spend, held before every model call."""

import time
from collections.abc import Callable, Sequence

from osiris.core.errors import RunEnded
from osiris.core.events import Usage
from osiris.core.ports.models import Halted, SpentBudget


class Budget:
    """`steps` model calls, `minutes` of work and `usd` US dollars (None: any); `spent_seconds` are
    of earlier lives."""

    def __init__(
        self,
        *,
        steps: int,
        minutes: int,
        usd: float | None = None,
        spent_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = steps
        self._minutes = minutes
        self._usd = usd
        self._clock = clock
        self._since = clock() - spent_seconds

    @property
    def seconds(self) -> float:
        """The run's active time so far."""
        return self._clock() - self._since

    @property
    def seconds_left(self) -> float:
        """The seconds that are left; fewer than none when time is over."""
        return self._minutes * 60 - self.seconds

    def out_of_time(self) -> SpentBudget:
        return SpentBudget(reason=f"the budget of {self._minutes} minutes is spent")

    def check_limits(self, steps: int, usd: float, *, is_priced: bool) -> None:
        """Before one more model call, with `steps` made and `usd` spent as far as prices are known.

        Raises RunEnded when that is too much. A model whose price is not known (`priced`) halts the
        run as well: what it costs cannot be held.
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
    """All of them together; one unknown price makes the sum unknown."""
    prices = [usage.usd for usage in usages]
    return Usage(
        input=sum(usage.input for usage in usages),
        cached=sum(usage.cached for usage in usages),
        output=sum(usage.output for usage in usages),
        usd=None if None in prices else sum(price for price in prices if price),
    )
