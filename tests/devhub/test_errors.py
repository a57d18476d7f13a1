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


async def test_tokens_end_after_an_hour_of_the_hubs_clock(stage: HubEnvironment) -> None:
    token = await stage.token()
    bot = stage.client(token)
    stage.clock.now += 3599
    assert (await bot.get(REPO)).status_code == 200
    stage.clock.now += 1
    assert said(await bot.get(REPO), 401) == "Bad credentials"
    refused = await stage.git(
        "push", stage.address(token), "HEAD:main", at=stage.place / "hub/repos/acme/shop.git"
    )
    assert "Authentication failed" in refused.stderr
    assert said(await stage.client("ghs_made_up").get(REPO), 401) == "Bad credentials"
    assert (await (await stage.bot()).get(REPO)).status_code == 200


async def test_a_token_reaches_only_its_repositories_and_permissions(stage: HubEnvironment) -> None:
    stage.hub.add_repo("acme/vault", collaborators={"mia": "admin"}, private=True)
    stage.hub.add_repo("acme/open", collaborators={})
    stage.hub.install_app(stage.app, "acme/vault")
    reader = await stage.bot(repositories=["shop"], permissions={"issues": "read"})
    assert (await reader.get(f"{REPO}/issues")).status_code == 200
    refusal = "Resource not accessible by integration"
    assert said(await reader.post(f"{REPO}/issues", json={"title": "x"}), 403) == refusal
    assert said(await reader.get("/repos/acme/vault"), 404) == "Not Found"
    assert said(await reader.post("/repos/acme/open/issues", json={"title": "x"}), 403) == refusal
    wide = await stage.bot()
    assert (await wide.get("/repos/acme/vault")).status_code == 200
    listed = (await wide.get("/installation/repositories")).json()
    assert [one["full_name"] for one in listed["repositories"]] == ["acme/shop", "acme/vault"]
    url = f"/app/installations/{stage.installation}/access_tokens"
    app = stage.client(stage.app_jwt())
    assert "repository" in said(await app.post(url, json={"repositories": ["open"]}), 422)
    more = {"permissions": {"workflows": "write"}}
    assert "not granted" in said(await app.post(url, json=more), 422)
    assert said(await app.post("/app/installations/1/access_tokens"), 404) == "Not Found"


async def test_who_dies_in_the_middle_of_asking_changes_nothing_and_leaves_no_traceback(
    stage: HubEnvironment, caplog: pytest.LogCaptureFixture
) -> None:
    api = httpx.URL(stage.hub.api_url)
    bot = await stage.bot()
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
    stage: HubEnvironment, claims: dict[str, int]
) -> None:
    assert (await stage.client(stage.app_jwt()).get("/app")).json()["slug"] == "osiris"
    assert (
        await stage.client(stage.app_jwt(iss=stage.app.client_id)).get("/app")
    ).status_code == 200
    assert (await stage.client(stage.app_jwt(**claims)).get("/app")).status_code == 401


async def test_an_app_signs_in_only_with_its_own_key(stage: HubEnvironment) -> None:
    now = int(time.time())
    claims = {"iat": now, "exp": now + 60, "iss": str(stage.app.id)}
    forged = jwt.encode(claims, generate_key_pair().private, algorithm="RS256")
    assert (await stage.client(forged).get("/app")).status_code == 401
    unsigned = jwt.encode(claims, "", algorithm="none")
    assert (await stage.client(unsigned).get("/app")).status_code == 401


async def test_pull_requests_that_make_no_sense_are_refused(stage: HubEnvironment) -> None:
    token = await stage.token()
    bot = stage.client(token)
    await stage.pull(bot, token)
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
            f"{REPO}/pulls/2/reviews" if 2 in stage.repo.pulls else f"{REPO}/pulls/1/reviews",
            json={"event": event, "body": "fine"},
        )
        assert "your own pull request" in said(own, 422)
    outside = {
        "event": "COMMENT",
        "comments": [{"path": "shop/cart.py", "line": 400, "body": "here"}],
    }
    mia = stage.client(stage.mia.token)
    assert "part of the diff" in said(await mia.post(f"{REPO}/pulls/1/reviews", json=outside), 422)


async def test_a_conflict_is_seen_and_not_merged(stage: HubEnvironment) -> None:
    token = await stage.token()
    bot = stage.client(token)
    await stage.pull(bot, token)
    work = stage.place / "work"
    await stage.git("checkout", "-q", "main", at=work)
    await stage.branch("main", {"shop/cart.py": "def total(prices):\n    return 0\n"}, token)
    pull = (await bot.get(f"{REPO}/pulls/1")).json()
    assert (pull["mergeable"], pull["mergeable_state"]) == (False, "dirty")
    assert said(await bot.put(f"{REPO}/pulls/1/merge"), 405) == "Pull Request is not mergeable"
    assert (await bot.get(f"{REPO}/pulls/1/merge")).status_code == 404


async def test_people_do_what_their_role_allows(stage: HubEnvironment) -> None:
    stage.hub.add_repo("acme/vault", collaborators={"mia": "write"}, private=True)
    mia, rob, eve = (stage.client(one.token) for one in (stage.mia, stage.rob, stage.eve))
    nobody = stage.client()
    assert (await eve.post(f"{REPO}/issues", json={"title": "x", "labels": ["osiris"]})).json()[
        "labels"
    ] == []
    assert said(await eve.post(f"{REPO}/issues/1/labels", json={"labels": ["osiris"]}), 403)
    assert (await rob.post(f"{REPO}/issues/1/labels", json=["osiris"])).status_code == 200
    token = await stage.token()
    await stage.pull(stage.client(token), token)
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


async def test_words_have_limits_and_types(stage: HubEnvironment) -> None:
    mia = stage.client(stage.mia.token)
    stage.hub.world.open_issue(stage.repo, stage.mia, "Prices")
    url = f"{REPO}/issues/1/comments"
    assert (await mia.post(url, json={"body": "x" * 65_536})).status_code == 201
    assert "too long" in said(await mia.post(url, json={"body": "x" * 65_537}), 422)
    assert "not a string" in said(await mia.post(url, json={"body": 5}), 422)
    assert said(await mia.post(url, content=b"{"), 400) == "Problems parsing JSON"
    assert said(await mia.get("/nowhere"), 404) == "Not Found"
    comment = stage.repo.issues[1].comments[0]
    reactions = f"{REPO}/issues/comments/{comment.id}/reactions"
    answers = [await mia.post(reactions, json={"content": "eyes"}) for _ in range(2)]
    assert [one.status_code for one in answers] == [201, 200]
    assert said(await mia.post(reactions, json={"content": "shrug"}), 422)


async def test_lists_come_in_pages(stage: HubEnvironment) -> None:
    for number in range(5):
        stage.hub.world.open_issue(stage.repo, stage.mia, f"Issue {number}")
    mia = stage.client(stage.mia.token)
    url = f"{REPO}/issues?per_page=2"
    seen = []
    while url:
        answer = await mia.get(url)
        seen += [issue["number"] for issue in answer.json()]
        url = answer.links.get("next", {}).get("url", "")
    assert seen == [5, 4, 3, 2, 1]


async def test_graphql_refuses_in_its_own_shape(stage: HubEnvironment) -> None:
    token = await stage.token()
    pull = await stage.pull(stage.client(token), token, draft=True)
    ready = (
        "mutation($id: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $id}) {"
        " clientMutationId } }"
    )
    reader = await stage.bot(permissions={"pull_requests": "read"})
    for client, id, kind in ((reader, pull["node_id"], "FORBIDDEN"), (reader, "PR_x", "NOT_FOUND")):
        answer = await client.post("../graphql", json={"query": ready, "variables": {"id": id}})
        assert answer.status_code == 200
        assert answer.json()["errors"][0]["type"] == kind
    assert stage.repo.pulls[1].draft
    assert (
        await stage.client().post("../graphql", json={"query": "{ viewer { login } }"})
    ).status_code == 401
