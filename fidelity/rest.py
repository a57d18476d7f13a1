"""REST: the requests of Osiris and the answers of devhub, compared with GitHub's description."""

import re
from collections.abc import Iterator
from dataclasses import replace

from fidelity import packages
from fidelity.description import DescribedRequest, Description, Response
from fidelity.finding import CheckOutcome
from fidelity.recordings import RecordedRequest, Recordings

GRAPHQL = "/api/graphql"


def check_requests(recordings: Recordings) -> CheckOutcome:
    """Check that the description knows every request of Osiris: method, path, parameters, body."""
    outcome = CheckOutcome(
        check="requests", promise="what Osiris asks REST for is in GitHub's description"
    )
    records = [
        record
        for record in _list_rest_requests(recordings)
        if record.by == "osiris" and record.test.startswith("tests/flow/")
    ]
    description = Description(
        packages.load_openapi(), [(record.method, record.path) for record in records]
    )
    operations = set()
    for record in records:
        outcome.checked_count += 1
        if (request := _describe_request(description, record)) is None:
            outcome.add_violation(
                f"{record.method} {record.path}",
                f"the description knows no such request ({record.test})",
            )
            continue
        operations.add(str(request.operation))
        for pointer, reason in description.find_request_faults(request):
            outcome.add_violation(str(request.operation), reason, pointer)
    outcome.checked_what = f"requests to {len(operations)} operations"
    return outcome


def check_answers(recordings: Recordings) -> CheckOutcome:
    """Check that every answer of devhub has the form that the description states, for any sender of
    the request."""
    outcome = CheckOutcome(
        check="answers", promise="what devhub answers over REST has GitHub's form"
    )
    records = [record for record in _list_rest_requests(recordings) if record.status]
    description = Description(
        packages.load_openapi(), [(record.method, record.path) for record in records]
    )
    kinds = set()
    for record in records:
        outcome.checked_count += 1
        request = _describe_request(description, record)
        where = (
            f"{request.operation if request else f'{record.method} {record.path}'} {record.status}"
        )
        kinds.add(where)
        if request is None:
            if record.status != 404:  # GitHub has no such path: 404 is the right answer
                outcome.add_violation(
                    where, f"the description knows no such request ({record.test})"
                )
            continue
        response = Response(
            status_code=record.status, data=record.answer.encode(), headers=record.answer_headers
        )
        for pointer, reason in description.find_answer_faults(request, response):
            outcome.add_violation(where, reason, pointer)
    outcome.checked_what = f"answers of {len(kinds)} kinds"
    return outcome


def _list_rest_requests(recordings: Recordings) -> Iterator[RecordedRequest]:
    return (
        replace(record, path=_replace_repository_id(record.path))
        for record in recordings.requests
        if record.path != GRAPHQL
    )


def _replace_repository_id(path: str) -> str:
    """Return the path to which a redirect of a renamed repository leads, with a name instead of the
    id: the description knows only names."""
    return re.sub(r"^/repositories/\d+(?=/|$)", "/repos/owner/name", path)


def _describe_request(description: Description, record: RecordedRequest) -> DescribedRequest | None:
    operation = description.get_operation(record.method, record.path)
    if operation is None:
        return None
    content_type = record.headers.get("content-type", "application/json")
    return DescribedRequest(
        operation=operation,
        query=record.query,
        body=record.body.encode(),
        content_type=content_type,
        headers=record.headers,
    )
