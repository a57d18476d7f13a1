"""Webhooks: devhub's bodies held against GitHub's description, and its signatures against another
parser."""

import json

from gidgethub import ValidationFailure
from gidgethub.sansio import Event

from fidelity import packages
from fidelity.description import Description
from fidelity.finding import CheckOutcome
from fidelity.recordings import Recordings, Sent


def bodies(recordings: Recordings) -> CheckOutcome:
    """Every webhook of devhub has the form that the description gives it."""
    outcome = CheckOutcome(
        check="webhooks", promise="what devhub sends as a webhook has GitHub's form"
    )
    description = Description(packages.openapi())
    kinds = set()
    for one in recordings.sent:
        outcome.looked += 1
        body = json.loads(one.body)
        where = ".".join(filter(None, (one.event, body.get("action"))))
        kinds.add(where)
        for pointer, reason in description.of_webhook(one.event, body):
            outcome.blame(where, reason, pointer)
    outcome.seen = f"webhooks of {len(kinds)} kinds"
    return outcome


def signatures(recordings: Recordings) -> CheckOutcome:
    """gidgethub takes every delivery of devhub as it is, and none with a byte changed or another
    secret."""
    outcome = CheckOutcome(
        check="signatures", promise="gidgethub takes devhub's deliveries, and no changed one"
    )
    for one in recordings.sent:
        if not one.secret:
            continue
        outcome.looked += 1
        for reason in _unlike(one):
            outcome.blame(one.event, reason)
    outcome.seen = "deliveries, each also changed"
    return outcome


def _unlike(one: Sent) -> list[str]:
    headers = {name.lower(): text for name, text in one.headers.items()}
    body = one.body.encode()
    middle = len(body) // 2
    changed = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    try:
        event = Event.from_http(headers, body, secret=one.secret)
    except Exception as error:  # noqa: BLE001 - whatever it is, gidgethub did not take the delivery
        return [f"refused: {type(error).__name__}: {error}"]
    wrong = []
    if (event.event, event.delivery_id, event.data) != (
        one.event,
        headers["x-github-delivery"],
        json.loads(one.body),
    ):
        wrong.append("read as something else")
    if _taken(headers, changed, one.secret):
        wrong.append("taken with a byte changed")
    if _taken(headers, body, one.secret + "x"):
        wrong.append("taken with another secret")
    return wrong


def _taken(headers: dict[str, str], body: bytes, secret: str) -> bool:
    try:
        Event.from_http(headers, body, secret=secret)
    except ValidationFailure:
        return False
    return True
