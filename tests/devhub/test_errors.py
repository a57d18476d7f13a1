"""Refusals: the hub refuses what GitHub refuses, with GitHub's messages and status codes."""

import asyncio
import time

import httpx
import jwt
import pytest

from osiris.devhub.tokens import generate_key_pair
from tests.devhub.environment import HubEnvironment

REPO = "/repos/acme/shop"


def read_error(answer: httpx.Response, status: int) -> str:
    """Assert that an answer is an error with this status, and return its message."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body["status"] == str(status)
    error = (body.get("errors") or [body["message"]])[0]
    return str(
        error
        if isinstance(error, str)
        else error.get("message") or f"{error['field']} {error['code']}"
    )


async def test_tokens_end_after_an_hour_of_the_hubs_clock(env: HubEnvironment) -> None:
    token = await env.create_token()
    bot = env.create_client(token)
    env.clock.now += 3599
    assert (await bot.get(REPO)).status_code == 200
    env.clock.now += 1
    assert read_error(await bot.get(REPO), 401) == "Bad credentials"
    refused = await env.run_git(
        "push", env.build_address(token), "HEAD:main", folder=env.folder / "hub/repos/acme/shop.git"
    )
    assert "Authentication failed" in refused.stderr
    assert read_error(await env.create_client("ghs_made_up").get(REPO), 401) == "Bad credentials"
    assert (await (await env.create_bot_client()).get(REPO)).status_code == 200


async def test_a_token_reaches_only_its_repositories_and_permissions(env: HubEnvironment) -> None:
    env.hub.add_repo("acme/vault", collaborators={"mia": "admin"}, private=True)
    env.hub.add_repo("acme/open", collaborators={})
    env.hub.install_app(env.app, "acme/vault")
    reader = await env.create_bot_client(repositories=["shop"], permissions={"issues": "read"})
    assert (await reader.get(f"{REPO}/issues")).status_code == 200
    refusal = "Resource not accessible by integration"
    assert read_error(await reader.post(f"{REPO}/issues", json={"title": "x"}), 403) == refusal
    assert read_error(await reader.get("/repos/acme/vault"), 404) == "Not Found"
    assert (
        read_error(await reader.post("/repos/acme/open/issues", json={"title": "x"}), 403)
        == refusal
    )
    all_access = await env.create_bot_client()
    assert (await all_access.get("/repos/acme/vault")).status_code == 200
    answer = (await all_access.get("/installation/repositories")).json()
    assert [repo["full_name"] for repo in answer["repositories"]] == ["acme/shop", "acme/vault"]
    url = f"/app/installations/{env.installation}/access_tokens"
    app = env.create_client(env.create_app_jwt())
    assert "repository" in read_error(await app.post(url, json={"repositories": ["open"]}), 422)
    body = {"permissions": {"workflows": "write"}}
    assert "not granted" in read_error(await app.post(url, json=body), 422)
    assert read_error(await app.post("/app/installations/1/access_tokens"), 404) == "Not Found"


async def test_who_dies_in_the_middle_of_asking_changes_nothing_and_leaves_no_traceback(
    env: HubEnvironment, caplog: pytest.LogCaptureFixture
) -> None:
    api = httpx.URL(env.hub.api_url)
    bot = await env.create_bot_client()
    head = (
        f"POST {api.path}{REPO}/issues HTTP/1.1\r\nHost: x\r\nAuthorization:"
        f" {bot.headers['authorization']}\r\n"
    )
    _, writer = await asyncio.open_connection(api.host, api.port)
    writer.write(f'{head}Content-Length: 200\r\n\r\n{{"title": "x"'.encode())
    await writer.drain()
    assert (
        await bot.get(REPO)
    ).status_code == 200  # meanwhile the hub is reading the other request
    writer.close()
    await writer.wait_closed()
    assert (await bot.get(f"{REPO}/issues")).json() == []
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "claims",
    [{"exp": 1}, {"exp": 4_000_000_000}, {"iat": 4_000_000_000}, {"exp": None}, {"iat": None}],
)
async def test_an_app_signs_in_only_with_a_fresh_token(
    env: HubEnvironment, claims: dict[str, int]
) -> None:
    assert (await env.create_client(env.create_app_jwt()).get("/app")).json()["slug"] == "osiris"
    assert (
        await env.create_client(env.create_app_jwt(iss=env.app.client_id)).get("/app")
    ).status_code == 200
    assert (await env.create_client(env.create_app_jwt(**claims)).get("/app")).status_code == 401


async def test_an_app_signs_in_only_with_its_own_key(env: HubEnvironment) -> None:
    now = int(time.time())
    claims = {"iat": now, "exp": now + 60, "iss": str(env.app.id)}
    forged = jwt.encode(claims, generate_key_pair().private, algorithm="RS256")
    assert (await env.create_client(forged).get("/app")).status_code == 401
    unsigned = jwt.encode(claims, "", algorithm="none")
    assert (await env.create_client(unsigned).get("/app")).status_code == 401


async def test_pull_requests_that_make_no_sense_are_refused(env: HubEnvironment) -> None:
    token = await env.create_token()
    bot = env.create_client(token)
    await env.open_pull(bot, token)
    body = {"title": "x", "head": "fix", "base": "main"}
    message = "A pull request already exists for acme:fix."
    assert read_error(await bot.post(f"{REPO}/pulls", json=body), 422) == message
    assert (
        read_error(await bot.post(f"{REPO}/pulls", json=body | {"head": "nowhere"}), 422)
        == "head invalid"
    )
    same_branch = await bot.post(f"{REPO}/pulls", json=body | {"head": "main"})
    assert read_error(same_branch, 422) == "No commits between main and main"
    assert "wasn't supplied" in read_error(
        await bot.post(f"{REPO}/pulls", json={"title": "x"}), 422
    )
    for event in ("APPROVE", "REQUEST_CHANGES"):
        own_review = await bot.post(
            f"{REPO}/pulls/2/reviews" if 2 in env.repo.pulls else f"{REPO}/pulls/1/reviews",
            json={"event": event, "body": "fine"},
        )
        assert "your own pull request" in read_error(own_review, 422)
    outside_diff = {
        "event": "COMMENT",
        "comments": [{"path": "shop/cart.py", "line": 400, "body": "here"}],
    }
    mia = env.create_client(env.mia.token)
    assert "part of the diff" in read_error(
        await mia.post(f"{REPO}/pulls/1/reviews", json=outside_diff), 422
    )


async def test_a_conflict_is_seen_and_not_merged(env: HubEnvironment) -> None:
    token = await env.create_token()
    bot = env.create_client(token)
    await env.open_pull(bot, token)
    work = env.folder / "work"
    await env.run_git("checkout", "-q", "main", folder=work)
    await env.push_branch("main", {"shop/cart.py": "def total(prices):\n    return 0\n"}, token)
    pull = (await bot.get(f"{REPO}/pulls/1")).json()
    assert (pull["mergeable"], pull["mergeable_state"]) == (False, "dirty")
    assert (
        read_error(await bot.put(f"{REPO}/pulls/1/merge"), 405) == "Pull Request is not mergeable"
    )
    assert (await bot.get(f"{REPO}/pulls/1/merge")).status_code == 404


async def test_people_do_what_their_role_allows(env: HubEnvironment) -> None:
    env.hub.add_repo("acme/vault", collaborators={"mia": "write"}, private=True)
    mia, rob, eve = (env.create_client(user.token) for user in (env.mia, env.rob, env.eve))
    anonymous = env.create_client()
    assert (await eve.post(f"{REPO}/issues", json={"title": "x", "labels": ["osiris"]})).json()[
        "labels"
    ] == []
    assert read_error(await eve.post(f"{REPO}/issues/1/labels", json={"labels": ["osiris"]}), 403)
    assert (await rob.post(f"{REPO}/issues/1/labels", json=["osiris"])).status_code == 200
    token = await env.create_token()
    await env.open_pull(env.create_client(token), token)
    assert read_error(await rob.put(f"{REPO}/pulls/2/merge"), 403)
    assert (
        read_error(await anonymous.post(f"{REPO}/issues", json={"title": "x"}), 401)
        == "Requires authentication"
    )
    assert (await anonymous.get(f"{REPO}/issues/1")).status_code == 200
    assert read_error(await eve.get("/repos/acme/vault"), 404) == "Not Found"
    roles = {}
    for login in ("mia", "rob", "eve"):
        answer = (await mia.get(f"{REPO}/collaborators/{login}/permission")).json()
        roles[login] = (answer["permission"], answer["role_name"])
    assert roles == {
        "mia": ("write", "maintain"),
        "rob": ("read", "triage"),
        "eve": ("read", "read"),
    }
    hidden = (await mia.get("/repos/acme/vault/collaborators/eve/permission")).json()
    assert (hidden["permission"], hidden["role_name"]) == ("none", "none")
    assert read_error(
        await mia.post(f"{REPO}/check-runs", json={"name": "x", "head_sha": "0" * 40}), 403
    )


async def test_words_have_limits_and_types(env: HubEnvironment) -> None:
    mia = env.create_client(env.mia.token)
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    url = f"{REPO}/issues/1/comments"
    assert (await mia.post(url, json={"body": "x" * 65_536})).status_code == 201
    assert "too long" in read_error(await mia.post(url, json={"body": "x" * 65_537}), 422)
    assert "not a string" in read_error(await mia.post(url, json={"body": 5}), 422)
    assert read_error(await mia.post(url, content=b"{"), 400) == "Problems parsing JSON"
    assert read_error(await mia.get("/nowhere"), 404) == "Not Found"
    comment = env.repo.issues[1].comments[0]
    reactions = f"{REPO}/issues/comments/{comment.id}/reactions"
    answers = [await mia.post(reactions, json={"content": "eyes"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert read_error(await mia.post(reactions, json={"content": "shrug"}), 422)


async def test_lists_come_in_pages(env: HubEnvironment) -> None:
    for number in range(5):
        env.hub.world.open_issue(env.repo, env.mia, f"Issue {number}")
    mia = env.create_client(env.mia.token)
    url = f"{REPO}/issues?per_page=2"
    numbers = []
    while url:
        answer = await mia.get(url)
        numbers += [issue["number"] for issue in answer.json()]
        url = answer.links.get("next", {}).get("url", "")
    assert numbers == [5, 4, 3, 2, 1]


async def test_graphql_refuses_in_its_own_shape(env: HubEnvironment) -> None:
    token = await env.create_token()
    pull = await env.open_pull(env.create_client(token), token, draft=True)
    mark_ready = (
        "mutation($id: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $id}) {"
        " clientMutationId } }"
    )
    reader = await env.create_bot_client(permissions={"pull_requests": "read"})
    for client, id, kind in ((reader, pull["node_id"], "FORBIDDEN"), (reader, "PR_x", "NOT_FOUND")):
        answer = await client.post(
            "../graphql", json={"query": mark_ready, "variables": {"id": id}}
        )
        assert answer.status_code == 200
        assert answer.json()["errors"][0]["type"] == kind
    assert env.repo.pulls[1].draft
    assert (
        await env.create_client().post("../graphql", json={"query": "{ viewer { login } }"})
    ).status_code == 401
