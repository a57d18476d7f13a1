"""The remaining hourly requests of each account, taken from GitHub's last answer."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from osiris.core.errors import Unavailable

_RESERVE = 20
"""The last 1/20 of the hourly requests is reserved for work that a person waits for."""

LONGEST = 3660.0
"""Maximum seconds until a limit is reset: GitHub counts by the hour, and its clock may differ."""


@dataclass(frozen=True, slots=True)
class _Remaining:
    limit: int
    remaining: int
    reset: float


class RateLimits:
    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._remaining: dict[str, _Remaining] = {}

    def record_headers(self, account: str, headers: Mapping[str, str]) -> None:
        """Record the rate limit headers of an answer; those of other resources than REST's core
        limit are ignored."""
        values = [
            headers.get(f"x-ratelimit-{name}", "") for name in ("limit", "remaining", "reset")
        ]
        if headers.get("x-ratelimit-resource", "core") == "core" and all(
            text.isdecimal() for text in values
        ):
            limit, remaining, reset = map(int, values)
            self._remaining[account] = _Remaining(limit, remaining, reset)

    def check_remaining(self, account: str, *, can_wait: bool) -> None:
        """Raise Unavailable when no requests are left, or only the reserve and the request can
        wait.

        A reset time more than an hour away was recorded before this machine's clock was set back;
        it is ignored, and the next answer corrects it.
        """
        left = self._remaining.get(account)
        if left is None or not 0 < (seconds := left.reset - self._clock()) <= LONGEST:
            return
        if left.remaining <= 0 or (can_wait and left.remaining * _RESERVE < left.limit):
            message = (
                f"of {left.limit} requests to GitHub for {account} in this hour, {left.remaining}"
                " are left"
            )
            raise Unavailable(message, retry_in=max(1.0, seconds))
