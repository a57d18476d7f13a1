"""Locked, deleted and transferred issues, as GitHub has them."""

from collections.abc import AsyncIterator

import httpx
import pytest

from osiris.devhub.models import Repo
from osiris.playground.users import Person
from tests.devhub.environment import HubEnvironment
from tests.devhub.test_errors import read_error

REPO = "/repos/acme/shop"
LOCKED = "Unable to create comment because issue is locked."


@pytest.fixture
async def mia(env: HubEnvironment) -> AsyncIterator[Person]:
    async with Person(env.hub.api_url, "mia", env.mia.token, "acme/shop") as person:
        yield person


@pytest.fixture
def store(env: HubEnvironment) -> Repo:
    """Another repository of the same owner, with the app."""
    repo = env.hub.add_repo("acme/store", collaborators={"mia": "write"})
    env.hub.install_app(env.app, "acme/store")
    return repo


# ── locking ──


async def test_only_people_with_write_access_comment_on_a_locked_issue(
    env: HubEnvironment, mia: Person
) -> None:
    number = await mia.file_issue("Prices")
    bot = await env.create_bot_client()
    rob = env.create_client(env.rob.token)
    await mia.lock_issue(number, "too heated")
    issue = (await bot.get(f"{REPO}/issues/{number}")).json()
    assert (issue["locked"], issue["active_lock_reason"]) == (True, "too heated")
    url = f"{REPO}/issues/{number}/comments"
    for client in (bot, rob):
        assert read_error(await client.post(url, json={"body": "But"}), 403) == LOCKED
    comment = await mia.add_comment(number, "Enough")
    url = f"{REPO}/issues/comments/{comment}/reactions"
    assert read_error(await bot.post(url, json={"content": "eyes"}), 403)
    await mia.unlock_issue(number)
    assert (await bot.post(url, json={"content": "eyes"})).status_code == 201
    assert (await rob.post(f"{REPO}/issues/{number}/comments", json={"body": "!"})).is_success
    events = (await bot.get(f"{REPO}/issues/{number}/events")).json()
    assert [(one["event"], one.get("lock_reason")) for one in events] == [
        ("locked", "too heated"),
        ("unlocked", None),
    ]
    assert [one for one in await env.list_events() if "lock" in one] == [
        "issues.locked",
        "issues.unlocked",
    ]
    assert env.receiver.get_last_payload("issues.locked")["issue"]["locked"] is True


async def test_a_lock_needs_write_access_and_a_known_reason(
    env: HubEnvironment, mia: Person
) -> None:
    number = await mia.file_issue("Prices")
    rob = env.create_client(env.rob.token)
    assert (await rob.put(f"{REPO}/issues/{number}/lock")).status_code == 403
    with pytest.raises(httpx.HTTPStatusError, match="422"):
        await mia.lock_issue(number, "boring")
    bot = await env.create_bot_client()
    assert (await bot.put(f"{REPO}/issues/{number}/lock")).status_code == 204


async def test_a_locked_pull_request_takes_no_reviews_from_outside(
    env: HubEnvironment, mia: Person
) -> None:
    token = await env.create_token()
    bot = env.create_client(token)
    pull = (await env.open_pull(bot, token))["number"]
    comment = await mia.add_line_comment(pull, "shop/cart.py", 2, "Why?")
    await mia.lock_issue(pull)
    assert (await mia.get_pull(pull))["locked"] is True
    replies = f"{REPO}/pulls/{pull}/comments/{comment['id']}/replies"
    assert read_error(await bot.post(replies, json={"body": "So"}), 403) == LOCKED
    review = {"event": "COMMENT", "body": "Hm"}
    eve = env.create_client(env.eve.token)
    assert read_error(await eve.post(f"{REPO}/pulls/{pull}/reviews", json=review), 403) == LOCKED
    await mia.reply_to_thread(pull, comment["id"], "Never mind")
    assert "pull_request.locked" in await env.list_events()


# ── deleting ──


async def test_a_deleted_issue_is_gone(env: HubEnvironment, mia: Person) -> None:
    number = await mia.file_issue("Prices")
    comment = await mia.add_comment(number, "Soon?")
    with pytest.raises(httpx.HTTPStatusError, match="admin rights"):
        await mia.delete_issue(number)
    env.hub.world.set_role(env.repo, "mia", "admin")
    await mia.delete_issue(number)
    bot = await env.create_bot_client()
    for url in ("", "/comments", "/events", "/labels"):
        answer = await bot.get(f"{REPO}/issues/{number}{url}")
        assert read_error(answer, 410) == "This issue was deleted"
    answer = await bot.post(f"{REPO}/issues/{number}/comments", json={"body": "On it"})
    assert answer.status_code == 410
    assert (await bot.get(f"{REPO}/issues/comments/{comment}")).status_code == 404
    assert (await bot.get(f"{REPO}/issues?state=all")).json() == []
    assert await mia.file_issue("Sizes") == number + 1
    await env.list_events()
    assert env.receiver.get_last_payload("issues.deleted")["issue"]["title"] == "Prices"


async def test_a_pull_request_is_neither_deleted_nor_transferred(
    env: HubEnvironment, mia: Person, store: Repo
) -> None:
    env.hub.world.set_role(env.repo, "mia", "admin")
    token = await env.create_token()
    pull = (await env.open_pull(env.create_client(token), token))["number"]
    with pytest.raises(httpx.HTTPStatusError, match="cannot be deleted"):
        await mia.delete_issue(pull)
    with pytest.raises(httpx.HTTPStatusError, match="cannot be transferred"):
        await mia.transfer_issue(pull, "acme/store")


# ── transferring ──


async def test_a_transferred_issue_is_found_in_its_new_repository(
    env: HubEnvironment, mia: Person, store: Repo
) -> None:
    bot = await env.create_bot_client()
    await mia.file_issue("Sizes")
    number = await mia.file_issue("Prices", "round them")
    await mia.add_label(number)
    await mia.add_comment(number, "Soon?")
    moved = await mia.transfer_issue(number, "acme/store")
    assert moved == 1
    redirect = await bot.get(f"{REPO}/issues/{number}/labels?per_page=5")
    assert (redirect.status_code, redirect.json()["message"]) == (301, "Moved Permanently")
    base = f"{env.hub.api_url}/repositories/{store.id}/issues/{moved}"
    assert redirect.headers["location"] == f"{base}/labels?per_page=5"
    comments = (await bot.get(f"{base}/comments")).json()
    assert [one["body"] for one in comments] == ["Soon?"]
    issue = (await bot.get(f"{REPO}/issues/{number}", follow_redirects=True)).json()
    assert issue["url"] == f"{env.hub.api_url}/repos/acme/store/issues/{moved}"
    assert issue["repository_url"].endswith("/repos/acme/store")
    assert (issue["title"], issue["body"], issue["labels"]) == ("Prices", "round them", [])
    listed = (await bot.get(f"{REPO}/issues?state=all")).json()
    assert [one["title"] for one in listed] == ["Sizes"]
    assert (await bot.get(f"{REPO}/pulls/{number}")).status_code == 404
    assert await mia.file_issue("Colours") == number + 1


async def test_a_transfer_is_published_in_both_repositories(
    env: HubEnvironment, mia: Person, store: Repo
) -> None:
    number = await mia.file_issue("Prices")
    old_id = env.repo.issues[number].id
    await mia.transfer_issue(number, "acme/store")
    assert (await env.list_events())[-2:] == ["issues.transferred", "issues.opened"]
    left = env.receiver.get_last_payload("issues.transferred")
    assert (left["repository"]["full_name"], left["issue"]["id"]) == ("acme/shop", old_id)
    assert left["changes"]["new_repository"]["full_name"] == "acme/store"
    assert (left["changes"]["new_issue"]["number"], left["issue"]["number"]) == (1, number)
    arrived = env.receiver.get_last_payload("issues.opened")
    assert arrived["repository"]["full_name"] == "acme/store"
    assert arrived["issue"]["id"] == left["changes"]["new_issue"]["id"] != old_id
    assert arrived["changes"]["old_issue"]["id"] == old_id
    assert arrived["changes"]["old_repository"]["full_name"] == "acme/shop"


async def test_a_transferred_issue_is_hidden_from_those_who_may_not_see_its_repository(
    env: HubEnvironment, mia: Person
) -> None:
    env.hub.add_repo("acme/vault", collaborators={"mia": "write"}, private=True)
    env.hub.add_repo("globex/other", collaborators={"mia": "write"})
    number = await mia.file_issue("Prices")
    with pytest.raises(httpx.HTTPStatusError, match="of their owner"):
        await mia.transfer_issue(number, "globex/other")
    await mia.transfer_issue(number, "acme/vault")
    bot = await env.create_bot_client()
    assert read_error(await bot.get(f"{REPO}/issues/{number}"), 404) == "Not Found"
    answer = await env.create_client(env.mia.token).get(f"{REPO}/issues/{number}")
    assert answer.status_code == 301


# ── a user's reviews ──


async def test_a_user_reviews_ranges_removed_lines_and_files_at_once(
    env: HubEnvironment, mia: Person
) -> None:
    token = await env.create_token()
    pull = (await env.open_pull(env.create_client(token), token))["number"]
    cart = "shop/cart.py"
    threads = [
        {"path": cart, "start_line": 1, "line": 2, "body": "Use Decimal"},
        {"path": cart, "line": 2, "side": "LEFT", "body": "This was right"},
        {"path": cart, "body": "No tests for this"},
    ]
    review = await mia.submit_review(pull, "REQUEST_CHANGES", "Not yet", threads)
    assert (review["state"], review["body"]) == ("CHANGES_REQUESTED", "Not yet")
    found = await mia.list_line_comments(pull)
    assert {one["pull_request_review_id"] for one in found} == {review["id"]}
    assert [(one["start_line"], one["line"], one["side"]) for one in found] == [
        (1, 2, "RIGHT"),
        (None, 2, "LEFT"),
        (None, None, "RIGHT"),
    ]
    assert [one["subject_type"] for one in found] == ["line", "line", "file"]
    on_file = await mia.add_file_comment(pull, cart, "And one more")
    reply = await mia.reply_to_thread(pull, on_file["id"], "Really")
    assert reply["in_reply_to_id"] == on_file["id"]
    assert len(await mia.list_line_comments(pull)) == 5
