"""Ordering keys of GitHub's deliveries: all deliveries about one task have one key, under any name
of the repository."""

import json
from typing import Any

import pytest

from osiris.bot.github.comments import write_pull_body
from osiris.bot.github.webhook_payloads import read_ordering_key
from osiris.core.effects import OpenDraftPull
from osiris.core.events import IssueRef
from tests.core.events import WORK

BODY = write_pull_body(
    OpenDraftPull(
        issue=IssueRef("acme/shop", 7),
        branch="osiris/7-fix-the-cart",
        title="T",
        request="R",
        requester="alice",
        work=WORK,
    )
)
PULL = {"number": 9, "head": {"ref": "osiris/7-fix-the-cart"}}
ISSUE = {"number": 7, "title": "T"}
CONVERSATION = {"number": 9, "title": "T", "pull_request": {}, "body": BODY}


def read_key(kind: str, repo: str = "acme/shop", **payload: Any) -> str:
    payload = {"repository": {"full_name": repo, "id": 5}, **payload}
    return read_ordering_key(kind, json.dumps(payload).encode())


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("issues", {"issue": ISSUE}),
        ("issue_comment", {"issue": ISSUE}),
        ("issue_comment", {"issue": CONVERSATION}),
        ("pull_request", {"pull_request": PULL}),
        ("pull_request_review", {"pull_request": PULL}),
        ("pull_request", {"pull_request": PULL, "repo": "acme/renamed"}),
    ],
)
def test_what_concerns_a_task_has_the_key_of_its_issue(kind: str, payload: dict[str, Any]):
    assert read_key(kind, **payload) == "5#7"


def test_the_pull_request_of_a_person_has_a_key_of_its_own():
    pull = {"number": 9, "head": {"ref": "cart"}}
    assert read_key("pull_request", pull_request=pull) == "5#9"
    assert read_key("issue_comment", issue={**CONVERSATION, "body": "Closes #7"}) == "5#9"


def test_the_text_of_an_issue_gives_it_no_other_key():
    assert read_key("issue_comment", issue={**ISSUE, "number": 8, "body": BODY}) == "5#8"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"repository": 3}', b"[" * 100_000])
def test_what_cannot_be_read_has_no_key(body: bytes):
    assert read_ordering_key("issues", body) == ""


def test_what_is_about_no_issue_has_no_key():
    assert read_key("installation") == ""
    assert read_key("issues") == ""
