"""The rate limits: the requests each caller has left in this hour, counted as GitHub does and
reported in the headers of every answer."""

from collections import defaultdict
from collections.abc import Callable

from osiris.devhub.auth import Caller
from osiris.devhub.errors import ApiRateLimited

HOUR = 3600.0
CallerKey = tuple[str, int, str]
"""The kind of caller, its id, and the resource: core or graphql."""


class ApiRateLimits:
    """The rate limits of all callers. `limit` is the number of requests in an hour for each caller
    and resource; `set_remaining` lowers what is left."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.limit = 5000
        self._clock = clock
        self._used: dict[CallerKey, int] = defaultdict(int)
        self._begun: dict[CallerKey, float] = {}

    def set_remaining(
        self, kind: str, id: int, remaining: int, *, seconds: float = HOUR, resource: str = "core"
    ) -> None:
        """Set the number of requests that a caller (an "installation", a "user" or an "app", by its
        id) has left for so many seconds."""
        key = (kind, id, resource)
        self._begun[key] = self._clock() - HOUR + seconds
        self._used[key] = self.limit - remaining

    def check_limit(self, who: Caller, resource: str) -> None:
        """Raise ApiRateLimited when nothing is left."""
        key = _build_key(who, resource)
        if self._get_remaining(key) <= 0:
            raise ApiRateLimited(
                f"API rate limit exceeded for {key[0]} ID {key[1]}.", self._build_headers(key)
            )

    def count_request(self, who: Caller, resource: str, count: int) -> dict[str, str]:
        """Count a request, and return the headers with what is left."""
        key = _build_key(who, resource)
        self._get_remaining(key)
        self._used[key] += count
        return self._build_headers(key)

    def describe_limit(self, who: Caller, resource: str) -> dict[str, int]:
        """Return a limit in the form of GET /rate_limit."""
        key = _build_key(who, resource)
        remaining = self._get_remaining(key)
        reset = int(self._begun[key] + HOUR)
        return {
            "limit": self.limit,
            "used": self.limit - remaining,
            "remaining": remaining,
            "reset": reset,
        }

    def _get_remaining(self, key: CallerKey) -> int:
        now = self._clock()
        if now >= self._begun.setdefault(key, now) + HOUR:
            self._begun[key] = now
            self._used[key] = 0
        return max(0, self.limit - self._used[key])

    def _build_headers(self, key: CallerKey) -> dict[str, str]:
        remaining = max(0, self.limit - self._used[key])
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(remaining),
            "X-RateLimit-Used": str(self.limit - remaining),
            "X-RateLimit-Reset": str(int(self._begun[key] + HOUR)),
            "X-RateLimit-Resource": key[2],
        }


def _build_key(who: Caller, resource: str) -> CallerKey:
    if who.grant is not None:
        return "installation", who.grant.installation.id, resource
    if who.user is not None:
        return "user", who.user.id, resource
    return ("app", who.app.id, resource) if who.app is not None else ("nobody", 0, resource)
