"""Webhooks: devhub's bodies compared with GitHub's description, and its signatures checked by
another parser."""

import json
from urllib.parse import urlencode

from gidgethub import ValidationFailure
from gidgethub.sansio import Event

from fidelity import packages
from fidelity.description import Description
from fidelity.finding import CheckOutcome
from fidelity.recordings import RecordedDelivery, Recordings


def check_bodies(recordings: Recordings) -> CheckOutcome:
    """Check that every webhook of devhub has the form that the description states."""
    outcome = CheckOutcome(
        check="webhooks", promise="what devhub sends as a webhook has GitHub's form"
    )
    description = Description(packages.load_openapi())
    kinds = set()
    for delivery in recordings.deliveries:
        outcome.checked_count += 1
        body = json.loads(delivery.body)
        where = ".".join(filter(None, (delivery.event, body.get("action"))))
        kinds.add(where)
        for pointer, reason in description.find_webhook_faults(delivery.event, body):
            outcome.add_violation(where, reason, pointer)
    outcome.checked_what = f"webhooks of {len(kinds)} kinds"
    return outcome


def check_signatures(recordings: Recordings) -> CheckOutcome:
    """Check that gidgethub accepts every delivery of devhub, but none with a changed byte or
    another secret."""
    outcome = CheckOutcome(
        check="signatures", promise="gidgethub takes devhub's deliveries, and no changed one"
    )
    for delivery in recordings.deliveries:
        if not delivery.secret:
            continue
        outcome.checked_count += 1
        for reason in _find_signature_faults(delivery):
            outcome.add_violation(delivery.event, reason)
    outcome.checked_what = "deliveries, each also changed"
    return outcome


def _find_signature_faults(delivery: RecordedDelivery) -> list[str]:
    headers = {name.lower(): text for name, text in delivery.headers.items()}
    body = _encode_body(headers, delivery.body)
    middle = len(body) // 2
    changed = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    try:
        event = Event.from_http(headers, body, secret=delivery.secret)
    except Exception as error:  # noqa: BLE001 - any exception means that gidgethub did not accept the delivery
        return [f"refused: {type(error).__name__}: {error}"]
    faults = []
    if (event.event, event.delivery_id, event.data) != (
        delivery.event,
        headers["x-github-delivery"],
        json.loads(delivery.body),
    ):
        faults.append("read as something else")
    if _is_accepted(headers, changed, delivery.secret):
        faults.append("taken with a byte changed")
    if _is_accepted(headers, body, delivery.secret + "x"):
        faults.append("taken with another secret")
    return faults


def _encode_body(headers: dict[str, str], payload: str) -> bytes:
    """Return a payload as it was sent: as JSON, or as the field of a form."""
    if headers["content-type"] == "application/x-www-form-urlencoded":
        return urlencode({"payload": payload}).encode()
    return payload.encode()


def _is_accepted(headers: dict[str, str], body: bytes, secret: str) -> bool:
    try:
        Event.from_http(headers, body, secret=secret)
    except ValidationFailure:
        return False
    return True
