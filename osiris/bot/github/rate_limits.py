"""What is left of an hour's requests, account by account, as GitHub's last answer said it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from osiris.core.errors import Unavailable

_RESERVE = 20
"""The last part (one of so many) of an hour's requests is for what a person waits for."""

LONGEST = 3660.0
"""Seconds; GitHub counts by the hour, and its clock is not ours."""


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
        """Take in the headers of an answer; those that do not speak of REST's own limit say nothing
        here."""
        told = [headers.get(f"x-ratelimit-{name}", "") for name in ("limit", "remaining", "reset")]
        if headers.get("x-ratelimit-resource", "core") == "core" and all(
            text.isdecimal() for text in told
        ):
            limit, remaining, reset = map(int, told)
            self._remaining[account] = _Remaining(limit, remaining, reset)

    def check_remaining(self, account: str, *, can_wait: bool) -> None:
        """Raise Unavailable when nothing is left, or only what a question that can wait must not
        use up.

        An hour whose end is too far away was told before our clock was set back: the next answer
        tells anew.
        """
        left = self._remaining.get(account)
        if left is None or not 0 < (rest := left.reset - self._clock()) <= LONGEST:
            return
        if left.remaining <= 0 or (can_wait and left.remaining * _RESERVE < left.limit):
            told = (
                f"of {left.limit} requests to GitHub for {account} in this hour, {left.remaining}"
                " are left"
            )
            raise Unavailable(told, retry_in=max(1.0, rest))
