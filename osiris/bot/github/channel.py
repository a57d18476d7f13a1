"""GitHub as a channel: webhooks come in, comments go out."""

import hashlib
import hmac
from collections.abc import Mapping

from osiris.bot.github.app_auth import NotInstalled
from osiris.bot.github.client import GitHub
from osiris.bot.github.interpreter import GitHubInterpreter
from osiris.bot.github.webhook_payloads import read_ordering_key
from osiris.core.errors import Refused
from osiris.core.events import Address, Event, IssueRef
from osiris.core.ports.channels import (
    BadContentType,
    BadHeaders,
    BadSignature,
    VerifiedDelivery,
)

NAME = "github"
_FORM = "application/x-www-form-urlencoded"
USE_JSON = "set the webhook's content type to application/json where it is configured"


class GitHubReceiver:
    """The part of the channel that answers webhooks; implements
    `osiris.core.ports.channels.Receiver`. It needs only the webhook's `secret`."""

    name = NAME

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def verify(self, headers: Mapping[str, str], body: bytes) -> VerifiedDelivery:
        """Return the delivery if its signature over the raw body is valid.

        https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
        """
        if not self._secret:
            raise Refused("GITHUB_WEBHOOK_SECRET is not set; set it and start Osiris again")
        digest = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        given = headers.get("x-hub-signature-256", "")
        if not hmac.compare_digest(given.encode(), f"sha256={digest}".encode()):
            raise BadSignature
        id = headers.get("x-github-delivery", "")
        kind = headers.get("x-github-event", "")
        if not id or not kind:
            raise BadHeaders("X-GitHub-Delivery or X-GitHub-Event is missing")
        if headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM:
            raise BadContentType(f"the webhook sends forms, which are not read here; {USE_JSON}")
        return VerifiedDelivery(id=id, kind=kind, body=body)

    def ordering_key(self, delivery: VerifiedDelivery) -> str:
        return read_ordering_key(delivery.kind, delivery.body)


class GitHubChannel(GitHubReceiver):
    """The channel as a worker uses it; implements `osiris.core.ports.channels.Channel`."""

    def __init__(self, secret: str, github: GitHub, interpreter: GitHubInterpreter) -> None:
        super().__init__(secret)
        self._github = github
        self._interpreter = interpreter

    async def interpret(self, delivery: VerifiedDelivery) -> Event | None:
        try:
            return await self._interpreter.interpret_delivery(delivery.kind, delivery.body)
        except NotInstalled:
            # the App was removed from the repository after the delivery was sent
            return None

    async def send(self, address: Address, text: str, dedup_key: str) -> None:
        """Write a comment, or edit the one that was written with this key."""
        issue, number = _parse_address(address)
        await self._github.upsert_comment(issue, number, text, marker=dedup_key)


def make_address(issue: IssueRef, number: int) -> Address:
    """Return the address of a task's conversation: that of its issue, or of its pull request
    `number`."""
    return Address(NAME, str(issue) if number == issue.number else f"{issue}!{number}")


def _parse_address(address: Address) -> tuple[IssueRef, int]:
    repo, _, numbers = address.conversation.rpartition("#")
    issue, _, pull = numbers.partition("!")
    return IssueRef(repo, int(issue)), int(pull or issue)
