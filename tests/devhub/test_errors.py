"""The hub says no where GitHub does, in GitHub's words and numbers."""

import asyncio
import time

import httpx
import jwt
import pytest

from osiris.devhub.tokens import generate_key_pair
from tests.devhub.environment import HubEnvironment

REPO = "/repos/acme/shop"


def said(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["status"] == str(status)
    first = (body.get("errors") or [body["message"]])[0]
    return str(
        first
        if isinstance(first, str)
        else first.get("message") or f"{first['field']} {first['code']}"
    )


async def test_tokens_end_after_an_hour_of_the_hubs_clock(env: HubEnvironment) -> None:
    token = await env.token()
    bot = env.client(token)
    env.clock.now += 3599
    assert (await bot.get(REPO)).status_code == 200
    env.clock.now += 1
    assert said(await bot.get(REPO), 401) == "Bad credentials"
    refused = await env.git(
        "push", env.address(token), "HEAD:main", at=env.place / "hub/repos/acme/shop.git"
    )
    assert "Authentication failed" in refused.stderr
    assert said(await env.client("ghs_made_up").get(REPO), 401) == "Bad credentials"
    assert (await (await env.bot()).get(REPO)).status_code == 200


async def test_a_token_reaches_only_its_repositories_and_permissions(env: HubEnvironment) -> None:
    env.hub.add_repo("acme/vault", collaborators={"mia": "admin"}, private=True)
    env.hub.add_repo("acme/open", collaborators={})
    env.hub.install_app(env.app, "acme/vault")
    reader = await env.bot(repositories=["shop"], permissions={"issues": "read"})
    assert (await reader.get(f"{REPO}/issues")).status_code == 200
    refusal = "Resource not accessible by integration"
    assert said(await reader.post(f"{REPO}/issues", json={"title": "x"}), 403) == refusal
    assert said(await reader.get("/repos/acme/vault"), 404) == "Not Found"
    assert said(await reader.post("/repos/acme/open/issues", json={"title": "x"}), 403) == refusal
    wide = await env.bot()
    assert (await wide.get("/repos/acme/vault")).status_code == 200
    listed = (await wide.get("/installation/repositories")).json()
    assert [one["full_name"] for one in listed["repositories"]] == ["acme/shop", "acme/vault"]
    url = f"/app/installations/{env.installation}/access_tokens"
    app = env.client(env.app_jwt())
    assert "repository" in said(await app.post(url, json={"repositories": ["open"]}), 422)
    more = {"permissions": {"workflows": "write"}}
    assert "not granted" in said(await app.post(url, json=more), 422)
    assert said(await app.post("/app/installations/1/access_tokens"), 404) == "Not Found"


async def test_who_dies_in_the_middle_of_asking_changes_nothing_and_leaves_no_traceback(
    env: HubEnvironment, caplog: pytest.LogCaptureFixture
) -> None:
    api = httpx.URL(env.hub.api_url)
    bot = await env.bot()
    head = (
        f"POST {api.path}{REPO}/issues HTTP/1.1\r\nHost: x\r\nAuthorization:"
        f" {bot.headers['authorization']}\r\n"
    )
    _, asking = await asyncio.open_connection(api.host, api.port)
    asking.write(f'{head}Content-Length: 200\r\n\r\n{{"title": "x"'.encode())
    await asking.drain()
    assert (await bot.get(REPO)).status_code == 200  # by now the hub is reading the other request
    asking.close()
    await asking.wait_closed()
    assert (await bot.get(f"{REPO}/issues")).json() == []
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "claims",
    [{"exp": 1}, {"exp": 4_000_000_000}, {"iat": 4_000_000_000}, {"exp": None}, {"iat": None}],
)
async def test_an_app_signs_in_only_with_a_fresh_token(
    env: HubEnvironment, claims: dict[str, int]
) -> None:
    assert (await env.client(env.app_jwt()).get("/app")).json()["slug"] == "osiris"
    assert (await env.client(env.app_jwt(iss=env.app.client_id)).get("/app")).status_code == 200
    assert (await env.client(env.app_jwt(**claims)).get("/app")).status_code == 401


async def test_an_app_signs_in_only_with_its_own_key(env: HubEnvironment) -> None:
    now = int(time.time())
    claims = {"iat": now, "exp": now + 60, "iss": str(env.app.id)}
    forged = jwt.encode(claims, generate_key_pair().private, algorithm="RS256")
    assert (await env.client(forged).get("/app")).status_code == 401
    unsigned = jwt.encode(claims, "", algorithm="none")
    assert (await env.client(unsigned).get("/app")).status_code == 401


async def test_pull_requests_that_make_no_sense_are_refused(env: HubEnvironment) -> None:
    token = await env.token()
    bot = env.client(token)
    await env.pull(bot, token)
    wish = {"title": "x", "head": "fix", "base": "main"}
    exists = "A pull request already exists for acme:fix."
    assert said(await bot.post(f"{REPO}/pulls", json=wish), 422) == exists
    assert (
        said(await bot.post(f"{REPO}/pulls", json=wish | {"head": "nowhere"}), 422)
        == "head invalid"
    )
    same = await bot.post(f"{REPO}/pulls", json=wish | {"head": "main"})
    assert said(same, 422) == "No commits between main and main"
    assert "wasn't supplied" in said(await bot.post(f"{REPO}/pulls", json={"title": "x"}), 422)
    for event in ("APPROVE", "REQUEST_CHANGES"):
        own = await bot.post(
            f"{REPO}/pulls/2/reviews" if 2 in env.repo.pulls else f"{REPO}/pulls/1/reviews",
            json={"event": event, "body": "fine"},
        )
        assert "your own pull request" in said(own, 422)
    outside = {
        "event": "COMMENT",
        "comments": [{"path": "shop/cart.py", "line": 400, "body": "here"}],
    }
    mia = env.client(env.mia.token)
    assert "part of the diff" in said(await mia.post(f"{REPO}/pulls/1/reviews", json=outside), 422)


async def test_a_conflict_is_seen_and_not_merged(env: HubEnvironment) -> None:
    token = await env.token()
    bot = env.client(token)
    await env.pull(bot, token)
    work = env.place / "work"
    await env.git("checkout", "-q", "main", at=work)
    await env.branch("main", {"shop/cart.py": "def total(prices):\n    return 0\n"}, token)
    pull = (await bot.get(f"{REPO}/pulls/1")).json()
    assert (pull["mergeable"], pull["mergeable_state"]) == (False, "dirty")
    assert said(await bot.put(f"{REPO}/pulls/1/merge"), 405) == "Pull Request is not mergeable"
    assert (await bot.get(f"{REPO}/pulls/1/merge")).status_code == 404


async def test_people_do_what_their_role_allows(env: HubEnvironment) -> None:
    env.hub.add_repo("acme/vault", collaborators={"mia": "write"}, private=True)
    mia, rob, eve = (env.client(one.token) for one in (env.mia, env.rob, env.eve))
    nobody = env.client()
    assert (await eve.post(f"{REPO}/issues", json={"title": "x", "labels": ["osiris"]})).json()[
        "labels"
    ] == []
    assert said(await eve.post(f"{REPO}/issues/1/labels", json={"labels": ["osiris"]}), 403)
    assert (await rob.post(f"{REPO}/issues/1/labels", json=["osiris"])).status_code == 200
    token = await env.token()
    await env.pull(env.client(token), token)
    assert said(await rob.put(f"{REPO}/pulls/2/merge"), 403)
    assert (
        said(await nobody.post(f"{REPO}/issues", json={"title": "x"}), 401)
        == "Requires authentication"
    )
    assert (await nobody.get(f"{REPO}/issues/1")).status_code == 200
    assert said(await eve.get("/repos/acme/vault"), 404) == "Not Found"
    roles = {}
    for login in ("mia", "rob", "eve"):
        found = (await mia.get(f"{REPO}/collaborators/{login}/permission")).json()
        roles[login] = (found["permission"], found["role_name"])
    assert roles == {
        "mia": ("write", "maintain"),
        "rob": ("read", "triage"),
        "eve": ("read", "read"),
    }
    hidden = (await mia.get("/repos/acme/vault/collaborators/eve/permission")).json()
    assert (hidden["permission"], hidden["role_name"]) == ("none", "none")
    assert said(await mia.post(f"{REPO}/check-runs", json={"name": "x", "head_sha": "0" * 40}), 403)


async def test_words_have_limits_and_types(env: HubEnvironment) -> None:
    mia = env.client(env.mia.token)
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    url = f"{REPO}/issues/1/comments"
    assert (await mia.post(url, json={"body": "x" * 65_536})).status_code == 201
    assert "too long" in said(await mia.post(url, json={"body": "x" * 65_537}), 422)
    assert "not a string" in said(await mia.post(url, json={"body": 5}), 422)
    assert said(await mia.post(url, content=b"{"), 400) == "Problems parsing JSON"
    assert said(await mia.get("/nowhere"), 404) == "Not Found"
    comment = env.repo.issues[1].comments[0]
    reactions = f"{REPO}/issues/comments/{comment.id}/reactions"
    answers = [await mia.post(reactions, json={"content": "eyes"}) for _ in range(2)]
    assert [one.status_code for one in answers] == [201, 200]
    assert said(await mia.post(reactions, json={"content": "shrug"}), 422)


async def test_lists_come_in_pages(env: HubEnvironment) -> None:
    for number in range(5):
        env.hub.world.open_issue(env.repo, env.mia, f"Issue {number}")
    mia = env.client(env.mia.token)
    url = f"{REPO}/issues?per_page=2"
    seen = []
    while url:
        answer = await mia.get(url)
        seen += [issue["number"] for issue in answer.json()]
        url = answer.links.get("next", {}).get("url", "")
    assert seen == [5, 4, 3, 2, 1]


async def test_graphql_refuses_in_its_own_shape(env: HubEnvironment) -> None:
    token = await env.token()
    pull = await env.pull(env.client(token), token, draft=True)
    ready = (
        "mutation($id: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $id}) {"
        " clientMutationId } }"
    )
    reader = await env.bot(permissions={"pull_requests": "read"})
    for client, id, kind in ((reader, pull["node_id"], "FORBIDDEN"), (reader, "PR_x", "NOT_FOUND")):
        answer = await client.post("../graphql", json={"query": ready, "variables": {"id": id}})
        assert answer.status_code == 200
        assert answer.json()["errors"][0]["type"] == kind
    assert env.repo.pulls[1].draft
    assert (
        await env.client().post("../graphql", json={"query": "{ viewer { login } }"})
    ).status_code == 401
