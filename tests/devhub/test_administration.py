"""Administration of repositories and installations, request limits, and lost webhooks, as GitHub
has them."""

import asyncio

import pytest

from osiris.devhub.models import Delivery
from osiris.devhub.webhook_sender import PendingDelivery
from tests.devhub.environment import HubEnvironment
from tests.devhub.test_errors import read_error

REPO = "/repos/acme/shop"


# ── repositories ──


async def test_the_old_name_of_a_repository_leads_to_it(env: HubEnvironment) -> None:
    env.hub.world.set_role(env.repo, "mia", "admin")
    token = await env.create_token()
    bot = env.create_client(token)
    mia = env.create_client(env.mia.token)
    app = env.create_client(env.create_app_jwt())
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    assert (await mia.patch(REPO, json={"name": "store"})).json()["full_name"] == "acme/store"

    redirect = await bot.get(f"{REPO}/issues?state=all")
    assert (redirect.status_code, redirect.json()["message"]) == (301, "Moved Permanently")
    assert (
        redirect.headers["location"]
        == f"{env.hub.api_url}/repositories/{env.repo.id}/issues?state=all"
    )
    assert [issue["title"] for issue in (await bot.get(redirect.headers["location"])).json()] == [
        "Prices"
    ]
    assert (await bot.post(f"{REPO}/issues", json={"title": "x"})).status_code == 307
    created = await bot.post(
        f"{REPO}/issues/1/comments", json={"body": "On it"}, follow_redirects=True
    )
    assert (created.status_code, len(env.repo.issues[1].comments)) == (201, 1)
    assert (await app.get(f"{REPO}/installation", follow_redirects=True)).json()[
        "id"
    ] == env.installation
    assert (await env.run_git("ls-remote", env.build_address(token))).returncode == 0
    assert (await env.push_branch("fix", {"a.txt": "a"}, token)) == env.repo.heads["fix"]

    env.hub.add_repo("acme/shop", collaborators={})
    assert (await bot.get(REPO)).json()["full_name"] == "acme/shop"


async def test_a_private_repository_that_moved_is_hidden_from_strangers(
    env: HubEnvironment,
) -> None:
    env.hub.add_repo("acme/vault", collaborators={"mia": "admin"}, private=True)
    mia = env.create_client(env.mia.token)
    eve = env.create_client(env.eve.token)
    await mia.patch("/repos/acme/vault", json={"name": "safe"})
    assert (await mia.get("/repos/acme/vault")).status_code == 301
    assert read_error(await eve.get("/repos/acme/vault"), 404) == "Not Found"


async def test_an_archived_repository_is_read_and_not_written(env: HubEnvironment) -> None:
    env.hub.world.set_role(env.repo, "mia", "admin")
    token = await env.create_token()
    bot = env.create_client(token)
    mia = env.create_client(env.mia.token)
    rob = env.create_client(env.rob.token)
    pull = await env.open_pull(bot, token, draft=True)
    assert read_error(await rob.patch(REPO, json={"archived": True}), 403)
    assert (await mia.patch(REPO, json={"archived": True})).json()["archived"] is True
    message = "Repository was archived so is read-only."
    assert read_error(await bot.post(f"{REPO}/issues", json={"title": "x"}), 403) == message
    assert read_error(await mia.put(f"{REPO}/pulls/1/merge"), 403) == message
    ready = (
        "mutation($id: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $id}) {"
        " clientMutationId } }"
    )
    answer = await bot.post(
        "../graphql", json={"query": ready, "variables": {"id": pull["node_id"]}}
    )
    assert answer.json()["errors"][0]["message"] == message
    refused = await env.run_git(
        "push", env.build_address(token), "fix:other", folder=env.folder / "work"
    )
    assert "read-only" in refused.stderr
    assert (await bot.get(f"{REPO}/pulls/1")).status_code == 200
    assert (await mia.patch(REPO, json={"archived": False})).status_code == 200
    assert (await bot.post(f"{REPO}/issues", json={"title": "x"})).status_code == 201


async def test_the_events_of_an_issue_tell_who_did_what(env: HubEnvironment) -> None:
    mia = env.create_client(env.mia.token)
    await mia.post(f"{REPO}/issues", json={"title": "Prices", "labels": ["osiris"]})
    await mia.delete(f"{REPO}/issues/1/labels/osiris")
    await mia.patch(f"{REPO}/issues/1", json={"state": "closed"})
    events = (await mia.get(f"{REPO}/issues/1/events")).json()
    assert [(event["event"], event["actor"]["login"]) for event in events] == [
        ("labeled", "mia"),
        ("unlabeled", "mia"),
        ("closed", "mia"),
    ]
    assert events[1]["label"]["name"] == "osiris"


async def test_a_deleted_branch_closes_its_pull_request(env: HubEnvironment) -> None:
    token = await env.create_token()
    await env.open_pull(env.create_client(token), token)
    mia = env.create_client(env.mia.token)
    assert (await mia.delete(f"{REPO}/git/refs/heads/fix")).status_code == 204
    closed = (await mia.get(f"{REPO}/issues/1")).json()
    assert (closed["state"], closed["closed_by"]["login"]) == ("closed", "mia")
    assert (
        read_error(await mia.delete(f"{REPO}/git/refs/heads/fix"), 422)
        == "Reference does not exist"
    )


async def test_what_did_not_change_since_is_said_for_nothing(env: HubEnvironment) -> None:
    bot = await env.create_bot_client()
    other = await env.create_bot_client()
    issue = env.hub.world.open_issue(env.repo, env.mia, "Prices")
    url = f"{REPO}/issues?state=all&sort=updated&since=2020-01-01T00:00:00Z"
    first = await bot.get(url)
    remaining = int(first.headers["x-ratelimit-remaining"])
    unchanged = await bot.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (
        unchanged.status_code,
        unchanged.content,
        int(unchanged.headers["x-ratelimit-remaining"]),
    ) == (
        304,
        b"",
        remaining,
    )
    assert (
        await other.get(url, headers={"If-None-Match": first.headers["etag"]})
    ).status_code == 200
    env.clock.now += 10
    env.hub.world.open_issue(env.repo, env.mia, "Sizes")
    env.clock.now += 10
    env.hub.world.add_comment(issue, env.mia, "Soon?")
    changed = await bot.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert [issue["title"] for issue in changed.json()] == ["Prices", "Sizes"]
    assert int(changed.headers["x-ratelimit-remaining"]) == remaining - 2


# ── installations ──


async def test_a_suspended_installation_can_do_nothing_and_hears_nothing(
    env: HubEnvironment,
) -> None:
    token = await env.create_token()
    bot = env.create_client(token)
    app = env.create_client(env.create_app_jwt())
    url = f"/app/installations/{env.installation}"
    assert (await app.put(f"{url}/suspended")).status_code == 204
    assert (
        read_error(await app.post(f"{url}/access_tokens", json={}), 403)
        == "This installation has been suspended"
    )
    assert "suspended your access" in read_error(await bot.get(REPO), 403)
    assert (await app.get(f"{REPO}/installation")).json()["suspended_at"] is not None
    refused = await env.run_git(
        "push", env.build_address(token), "HEAD:main", folder=env.folder / "hub/repos/acme/shop.git"
    )
    assert "403" in refused.stderr
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    assert (await app.delete(f"{url}/suspended")).status_code == 204
    assert (await bot.get(REPO)).status_code == 200
    assert await env.list_events() == [
        "installation.created",
        "installation.suspend",
        "installation.unsuspend",
    ]


async def test_an_app_that_was_taken_off_is_unknown_with_every_token_it_had(
    env: HubEnvironment,
) -> None:
    bot = await env.create_bot_client()
    app = env.create_client(env.create_app_jwt())
    assert (await app.delete(f"/app/installations/{env.installation}")).status_code == 204
    assert read_error(await app.get(f"{REPO}/installation"), 404) == "Not Found"
    assert read_error(await bot.get(REPO), 401) == "Bad credentials"


async def test_an_hour_has_so_many_requests(env: HubEnvironment) -> None:
    bot = await env.create_bot_client()
    assert int((await bot.get(REPO)).headers["x-ratelimit-remaining"]) == 4999
    env.hub.rates.set_remaining("installation", env.installation, 1, seconds=60)
    assert (await bot.get(REPO)).headers["x-ratelimit-remaining"] == "0"
    refused = await bot.get(REPO)
    assert read_error(refused, 403).startswith("API rate limit exceeded for installation ID")
    assert int(refused.headers["x-ratelimit-reset"]) == int(env.clock.now + 60)
    assert (await bot.get("/rate_limit")).json()["resources"]["core"]["remaining"] == 0
    assert (await env.create_client(env.mia.token).get(REPO)).status_code == 200
    env.clock.now += 60
    assert (await bot.get(REPO)).headers["x-ratelimit-remaining"] == "4999"


# ── lost and late webhooks ──


async def test_a_webhook_may_come_twice_late_or_never(env: HubEnvironment) -> None:
    await env.hub.wait_until_sent()
    released = asyncio.Event()

    async def misdeliver(delivery: Delivery, send: PendingDelivery) -> None:
        title = b"twice late never lost".split()[len(env.repo.issues) - 1]
        if title == b"twice":
            await send()
            await send()
        elif title == b"late":
            send.defer_until(released.wait())
        elif title == b"lost":
            send.drop()

    env.hub.hooks.interceptors.append(misdeliver)
    before = len(env.app.deliveries)
    for title in ("twice", "late", "never", "lost"):
        env.hub.world.open_issue(env.repo, env.mia, title)
        await asyncio.sleep(0)
        while any(delivery.status == "pending" for delivery in env.app.deliveries):
            await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await env.hub.wait_until_sent()
    released.set()
    await env.hub.wait_until_sent()
    assert [body["issue"]["title"] for _, body in env.receiver.deliveries[1:]] == [
        "twice",
        "twice",
        "late",
    ]
    recorded = [
        (delivery.status_code, delivery.delivered is not None)
        for delivery in env.app.deliveries[before:]
    ]
    assert recorded == [(202, True), (202, True), (502, True)]


async def test_interceptors_of_webhooks_stand_one_behind_the_other(env: HubEnvironment) -> None:
    await env.hub.wait_until_sent()
    calls = []

    async def outer_interceptor(delivery: Delivery, send: PendingDelivery) -> None:
        calls.append("outer")
        await send()

    async def inner_interceptor(delivery: Delivery, send: PendingDelivery) -> None:
        calls.append("inner")
        await send()

    env.hub.hooks.interceptors[:] = [outer_interceptor, inner_interceptor]
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    assert (await env.list_events())[-1] == "issues.opened"
    assert calls == ["outer", "inner"]


async def test_a_bug_of_an_interceptor_is_not_hidden(env: HubEnvironment) -> None:
    await env.hub.wait_until_sent()

    async def raise_error(delivery: Delivery, send: PendingDelivery) -> None:
        raise ZeroDivisionError

    env.hub.hooks.interceptors.append(raise_error)
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    with pytest.raises(ZeroDivisionError):
        await env.hub.wait_until_sent()
