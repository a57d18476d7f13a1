"""REST: what Osiris asks, and what devhub answers, held against GitHub's description."""

import re
from collections.abc import Iterator
from dataclasses import replace

from fidelity import packages
from fidelity.description import DescribedRequest, Description, Response
from fidelity.finding import CheckOutcome
from fidelity.recordings import RecordedRequest, Recordings

GRAPHQL = "/api/graphql"


def requests(recordings: Recordings) -> CheckOutcome:
    """Every request of Osiris is one that the description knows: method, path, parameters, body."""
    outcome = CheckOutcome(
        check="requests", promise="what Osiris asks REST for is in GitHub's description"
    )
    asked = [
        one
        for one in _rest(recordings)
        if one.by == "osiris" and one.test.startswith("tests/flow/")
    ]
    description = Description(packages.openapi(), [(one.method, one.path) for one in asked])
    operations = set()
    for one in asked:
        outcome.looked += 1
        if (request := _request(description, one)) is None:
            outcome.blame(
                f"{one.method} {one.path}", f"the description knows no such request ({one.test})"
            )
            continue
        operations.add(str(request.operation))
        for pointer, reason in description.of_request(request):
            outcome.blame(str(request.operation), reason, pointer)
    outcome.seen = f"requests to {len(operations)} operations"
    return outcome


def answers(recordings: Recordings) -> CheckOutcome:
    """Every answer of devhub has the form that the description gives it, whoever asked."""
    outcome = CheckOutcome(
        check="answers", promise="what devhub answers over REST has GitHub's form"
    )
    asked = [one for one in _rest(recordings) if one.status]
    description = Description(packages.openapi(), [(one.method, one.path) for one in asked])
    kinds = set()
    for one in asked:
        outcome.looked += 1
        request = _request(description, one)
        where = f"{request.operation if request else f'{one.method} {one.path}'} {one.status}"
        kinds.add(where)
        if request is None:
            if one.status != 404:  # asked for what GitHub does not have: 404 is the right answer
                outcome.blame(where, f"the description knows no such request ({one.test})")
            continue
        response = Response(
            status_code=one.status, data=one.answer.encode(), headers=one.answer_headers
        )
        for pointer, reason in description.of_answer(request, response):
            outcome.blame(where, reason, pointer)
    outcome.seen = f"answers of {len(kinds)} kinds"
    return outcome


def _rest(recordings: Recordings) -> Iterator[RecordedRequest]:
    return (
        replace(one, path=_by_name(one.path)) for one in recordings.asked if one.path != GRAPHQL
    )


def _by_name(path: str) -> str:
    """The address that a redirect of a renamed repository leads to, as the description knows it: by
    a name."""
    return re.sub(r"^/repositories/\d+(?=/|$)", "/repos/owner/name", path)


def _request(description: Description, one: RecordedRequest) -> DescribedRequest | None:
    operation = description.operation(one.method, one.path)
    if operation is None:
        return None
    kind = one.headers.get("content-type", "application/json")
    return DescribedRequest(
        operation=operation,
        query=one.query,
        body=one.body.encode(),
        content_type=kind,
        headers=one.headers,
    )
