"""What a run may spend, held before every model call."""

import time
from collections.abc import Callable

from osiris.errors import RunEnded
from osiris.ports import SpentBudget


class Budget:
    """`steps` model calls and `minutes` of work; `spent_steps` and `spent_seconds` are what earlier lives used."""

    def __init__(
        self,
        *,
        steps: int,
        minutes: int,
        spent_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps, self._minutes, self._clock = steps, minutes, clock
        self._since = clock() - spent_seconds

    @property
    def seconds(self) -> float:
        """The run's active time so far."""
        return self._clock() - self._since

    def check(self, steps: int) -> None:
        """Before one more model call, with `steps` already made. Raises RunEnded when that is too many or too late."""
        if steps >= self._steps:
            raise RunEnded(SpentBudget(reason=f"the budget of {self._steps} steps is spent"))
        if self.seconds >= self._minutes * 60:
            raise RunEnded(SpentBudget(reason=f"the budget of {self._minutes} minutes is spent"))
