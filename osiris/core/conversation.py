"""The state of a conversation in which people request work, outside of GitHub."""

from dataclasses import dataclass

from osiris.core.events import Address, IssueRef, RequestMade


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A conversation in a channel.

    `request` waits for its repository, or is being filed (`is_filing`) for the time number
    `attempt`; `issue` is the issue that was filed last.
    """

    address: Address
    request: RequestMade | None = None
    is_filing: bool = False
    attempt: int = 0
    issue: IssueRef | None = None
