"""Comments on lines, ranges of lines and files, and how they follow the pushes to their pull
request."""

from typing import Any

import httpx
import pytest

from tests.devhub.environment import HubEnvironment
from tests.devhub.test_errors import read_error

REPO = "/repos/acme/shop"
COMMENTS = f"{REPO}/pulls/1/comments"
REVIEWS = f"{REPO}/pulls/1/reviews"
CART = "shop/cart.py"
BEFORE = [f"line {number}" for number in range(1, 41)]
AFTER = ["zero", *BEFORE[:4], "changed", "added", *BEFORE[5:30], *BEFORE[31:]]
"""A new first line, a changed and an added line in the same hunk, and a removed line below."""


def join_lines(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


class Conversation:
    """A pull request with two hunks, and two clients: mia's and the app's."""

    def __init__(self, env: HubEnvironment, token: str) -> None:
        self.env = env
        self.token = token
        self.mia = env.create_client(env.mia.token)
        self.bot = env.create_client(token)

    async def push(self, lines: list[str] | None) -> str:
        content = None if lines is None else join_lines(lines)
        return await self.env.push_branch("fix", {CART: content}, self.token)

    async def comment(self, line: int | None = None, **fields: Any) -> dict[str, Any]:
        body = {"path": CART, "body": "Why?", **({"line": line} if line else {}), **fields}
        answer = await self.mia.post(COMMENTS, json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def read_lines(self) -> list[tuple[int | None, int | None]]:
        """Return the first and the last line of each comment."""
        return [(one["start_line"], one["line"]) for one in (await self.bot.get(COMMENTS)).json()]


@pytest.fixture
async def talk(env: HubEnvironment) -> Conversation:
    token = await env.create_token()
    conversation = Conversation(env, token)
    await env.push_branch("main", {CART: join_lines(BEFORE)}, env.mia.token)
    await conversation.push(AFTER)
    body = {"title": "Round", "head": "fix", "base": "main"}
    assert (await conversation.bot.post(f"{REPO}/pulls", json=body)).status_code == 201
    return conversation


# ── where a comment may be ──


async def test_a_comment_on_one_line_has_no_start(talk: Conversation) -> None:
    made = await talk.comment(6)
    assert (made["line"], made["side"], made["subject_type"]) == (6, "RIGHT", "line")
    assert (made["start_line"], made["original_start_line"], made["start_side"]) == (None,) * 3


async def test_a_comment_on_several_lines_has_its_range_and_the_hunk_down_to_its_end(
    talk: Conversation,
) -> None:
    made = await talk.comment(7, start_line=2)
    assert (made["start_line"], made["original_start_line"], made["start_side"]) == (2, 2, "RIGHT")
    assert (made["line"], made["original_line"], made["side"]) == (7, 7, "RIGHT")
    hunk = made["diff_hunk"].split("\n")
    assert hunk[0].startswith("@@ -1,")
    assert hunk[1] == "+zero"
    assert (hunk[-1], made["position"]) == ("+added", len(hunk) - 1)


async def test_a_comment_may_be_on_the_lines_before_the_change_or_span_both(
    talk: Conversation,
) -> None:
    removed = await talk.comment(31, side="LEFT")
    assert removed["diff_hunk"].endswith("-line 31")
    mixed = await talk.comment(6, start_line=5, start_side="LEFT")
    assert (mixed["start_line"], mixed["start_side"], mixed["side"]) == (5, "LEFT", "RIGHT")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"start_line": 7, "line": 6}, "must precede the end line."),
        ({"start_line": 6, "line": 6}, "must precede the end line."),
        ({"start_line": 6, "line": 31}, "must be part of the same hunk as the line."),
        ({"start_line": 15, "line": 31}, "must be part of the same hunk as the line."),
        (
            {"start_line": 31, "start_side": "LEFT", "line": 6},
            "must be part of the same hunk as the line.",
        ),
    ],
)
async def test_a_range_that_goes_up_or_leaves_its_hunk_is_refused(
    talk: Conversation, fields: dict[str, Any], problem: str
) -> None:
    body = {"path": CART, "body": "Why?", **fields}
    refused = await talk.mia.post(COMMENTS, json=body)
    assert read_error(refused, 422) == f"pull_request_review_thread.start_line {problem}"
    assert refused.json()["errors"][0]["resource"] == "PullRequestReviewComment"
    refused = await talk.mia.post(REVIEWS, json={"event": "COMMENT", "comments": [body]})
    assert read_error(refused, 422) == f"Pull request review thread start line {problem}"
    assert (await talk.bot.get(COMMENTS)).json() == []


async def test_a_line_that_the_diff_does_not_show_is_refused(talk: Conversation) -> None:
    body = {"path": CART, "body": "Why?", "line": 20}
    refused = await talk.mia.post(COMMENTS, json=body)
    problem = "pull_request_review_thread.line must be part of the diff"
    assert read_error(refused, 422) == problem
    refused = await talk.mia.post(REVIEWS, json={"event": "COMMENT", "comments": [body]})
    assert read_error(refused, 422) == "Pull request review thread line must be part of the diff"


async def test_a_review_may_comment_on_ranges(talk: Conversation) -> None:
    lines = [
        {"path": CART, "body": "Why?", "start_line": 5, "line": 7},
        {"path": CART, "body": "Keep it", "line": 31, "side": "LEFT"},
    ]
    made = await talk.mia.post(REVIEWS, json={"event": "REQUEST_CHANGES", "comments": lines})
    assert made.status_code == 200
    assert await talk.read_lines() == [(5, 7), (None, 31)]
    assert [one["side"] for one in (await talk.bot.get(COMMENTS)).json()] == ["RIGHT", "LEFT"]


async def test_a_comment_on_a_file_has_no_line(talk: Conversation) -> None:
    made = await talk.comment(subject_type="file")
    assert made["subject_type"] == "file"
    fields = ("line", "original_line", "start_line", "original_start_line", "start_side")
    assert [made[name] for name in fields] == [None] * 5
    assert made["diff_hunk"].startswith("@@ -1,")
    body = {"path": "elsewhere.py", "body": "Why?", "subject_type": "file"}
    assert read_error(await talk.mia.post(COMMENTS, json=body), 422)
    await talk.push(["zero", *AFTER])
    assert (await talk.bot.get(COMMENTS)).json()[0]["position"] == 1
    await talk.push(BEFORE)
    assert (await talk.bot.get(COMMENTS)).json()[0]["position"] is None


async def test_a_reply_inherits_the_place_of_its_thread(talk: Conversation) -> None:
    top = await talk.comment(7, start_line=5)
    body = {"body": "So it is", "in_reply_to": top["id"]}
    reply = (await talk.bot.post(COMMENTS, json=body)).json()
    assert (reply["in_reply_to_id"], reply["body"]) == (top["id"], "So it is")
    place = ("path", "line", "side", "start_line", "start_side", "original_line", "diff_hunk")
    assert [reply[name] for name in place] == [top[name] for name in place]
    on_file = await talk.comment(subject_type="file")
    answer = await talk.bot.post(f"{COMMENTS}/{on_file['id']}/replies", json={"body": "Yes"})
    assert (answer.json()["subject_type"], answer.json()["line"]) == ("file", None)


# ── pushes ──


async def test_a_comment_moves_with_its_lines_when_others_above_them_change(
    talk: Conversation,
) -> None:
    made = await talk.comment(7, start_line=6)
    await talk.comment(6)
    head = await talk.push(["first", "second", *AFTER])
    assert await talk.read_lines() == [(8, 9), (None, 8)]
    moved = (await talk.bot.get(COMMENTS)).json()[0]
    assert (moved["original_start_line"], moved["original_line"]) == (6, 7)
    assert (moved["commit_id"], moved["original_commit_id"]) == (head, made["commit_id"])
    assert moved["diff_hunk"] == made["diff_hunk"]


@pytest.mark.parametrize(
    "lines",
    [
        [*AFTER[:5], "changed again", *AFTER[6:]],
        [*AFTER[:6], *AFTER[7:]],
        [*AFTER[:6], "between", *AFTER[6:]],
        BEFORE,
        None,
    ],
    ids=["first line changed", "last line removed", "line inserted", "reverted", "file removed"],
)
async def test_a_comment_is_outdated_when_one_of_its_lines_was_changed(
    talk: Conversation, lines: list[str] | None
) -> None:
    made = await talk.comment(7, start_line=6)
    await talk.push(lines)
    (outdated,) = (await talk.bot.get(COMMENTS)).json()
    assert (outdated["start_line"], outdated["line"], outdated["position"]) == (None,) * 3
    for name in ("original_line", "original_start_line", "original_commit_id", "diff_hunk"):
        assert outdated[name] == made[name]
    await talk.push(AFTER)
    assert await talk.read_lines() == [(None, None)]


async def test_a_comment_on_a_removed_line_is_outdated_when_the_line_is_back(
    talk: Conversation,
) -> None:
    await talk.comment(31, side="LEFT")
    await talk.push(["first", *AFTER])
    assert await talk.read_lines() == [(None, 31)]
    await talk.push([*AFTER[:7], *BEFORE[5:]])
    assert await talk.read_lines() == [(None, None)]


# ── lists ──


async def test_the_list_of_a_reviews_comments_leaves_out_their_lines(talk: Conversation) -> None:
    made = await talk.comment(7, start_line=6)
    url = f"{REVIEWS}/{made['pull_request_review_id']}/comments"
    (legacy,) = (await talk.bot.get(url)).json()
    left_out = {"line", "original_line", "side", "subject_type"}
    left_out |= {"start_line", "original_start_line", "start_side"}
    assert made.keys() - legacy.keys() == left_out
    assert (legacy["path"], legacy["position"]) == (CART, made["position"])
    assert legacy["original_position"] == made["original_position"]


async def test_line_comments_are_listed_in_the_order_and_pages_that_were_asked_for(
    talk: Conversation,
) -> None:
    ids = []
    for line in (2, 6, 7):
        talk.env.clock.now += 60
        ids.append((await talk.comment(line))["id"])
    talk.env.clock.now += 60
    url = f"{REPO}/pulls/comments/{ids[0]}"
    assert (await talk.mia.patch(url, json={"body": "Why not?"})).json()["body"] == "Why not?"

    async def list_ids(**query: str) -> list[int]:
        return [one["id"] for one in (await talk.bot.get(COMMENTS, params=query)).json()]

    assert await list_ids() == ids
    assert await list_ids(direction="desc") == ids
    assert await list_ids(sort="created", direction="desc") == ids[::-1]
    assert await list_ids(sort="updated", direction="asc") == [*ids[1:], ids[0]]
    assert await list_ids(sort="updated", direction="desc") == [ids[0], ids[2], ids[1]]
    paged = {"sort": "created", "direction": "desc", "per_page": "2"}
    assert await list_ids(**paged, page="2") == [ids[0]]
    first: httpx.Response = await talk.bot.get(COMMENTS, params=paged)
    assert "sort=created&direction=desc" in first.headers["link"]
    await talk.env.list_events()
    edited = talk.env.receiver.get_last_payload("pull_request_review_comment.edited")
    assert (edited["changes"]["body"]["from"], edited["comment"]["id"]) == ("Why?", ids[0])
