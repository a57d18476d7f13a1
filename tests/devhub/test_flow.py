"""The whole workflow, from an issue to a merged pull request, with an app and two people."""

from tests.devhub.environment import FILES, HubEnvironment


async def test_an_issue_becomes_a_reviewed_and_merged_pull_request(env: HubEnvironment) -> None:
    mia = env.create_client(env.mia.token)
    bot_token = await env.create_token()
    bot = env.create_client(bot_token)
    repo = "/repos/acme/shop"
    created = await mia.post(
        f"{repo}/issues", json={"title": "Prices", "body": "round them", "labels": ["osiris"]}
    )
    assert created.status_code == 201
    assert (await bot.post(f"{repo}/issues/1/comments", json={"body": "On it"})).status_code == 201

    pull = await env.open_pull(bot, bot_token, draft=True)
    assert (pull["number"], pull["draft"], pull["mergeable"], pull["mergeable_state"]) == (
        2,
        True,
        True,
        "draft",
    )
    assert (pull["changed_files"], pull["additions"], pull["deletions"], pull["commits"]) == (
        1,
        1,
        1,
        1,
    )
    assert pull["user"]["login"] == "osiris[bot]"

    line = {"path": "shop/cart.py", "line": 2, "side": "RIGHT", "body": "Use Decimal"}
    request = {"event": "REQUEST_CHANGES", "body": "Not yet", "comments": [line]}
    review = (await mia.post(f"{repo}/pulls/2/reviews", json=request)).json()
    assert review["state"] == "CHANGES_REQUESTED"
    (comment,) = (await bot.get(f"{repo}/pulls/2/comments")).json()
    assert comment["pull_request_review_id"] == review["id"]
    assert (comment["path"], comment["line"], comment["position"]) == ("shop/cart.py", 2, 3)
    assert comment["diff_hunk"].endswith("+    return round(sum(prices), 2)")

    fixed_file = FILES["shop/cart.py"].replace("sum(prices)", "Decimal(sum(prices))")
    head = await env.push_branch("fix", {"shop/cart.py": fixed_file}, bot_token)
    outdated = (await bot.get(f"{repo}/pulls/2/comments")).json()[0]
    assert (outdated["line"], outdated["original_line"], outdated["position"]) == (None, 2, None)

    assert (await mia.post(f"{repo}/pulls/2/reviews", json={"event": "APPROVE"})).json()[
        "commit_id"
    ] == head
    assert (await bot.put(f"{repo}/pulls/2/merge")).status_code == 405
    mark_ready = (
        "mutation($id: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $id}) {"
        " clientMutationId } }"
    )
    answer = await bot.post(
        "../graphql", json={"query": mark_ready, "variables": {"id": pull["node_id"]}}
    )
    assert "errors" not in answer.json()
    assert (await bot.put(f"{repo}/pulls/2/merge", json={"sha": "0" * 40})).status_code == 409
    merged = await bot.put(f"{repo}/pulls/2/merge", json={"sha": head})
    assert merged.json()["merged"] is True
    assert env.repo.issues[1].state_reason == "completed"
    assert env.repo.git.read_file("main", "shop/cart.py") == fixed_file.encode()
    assert await env.list_events() == [
        "installation.created",
        "issues.opened",
        "issues.labeled",
        "issue_comment.created",
        "push",
        "pull_request.opened",
        "pull_request_review.submitted",
        "pull_request_review_comment.created",
        "push",
        "pull_request.synchronize",
        "pull_request_review.submitted",
        "pull_request.ready_for_review",
        "pull_request.closed",
        "issues.closed",
        "push",
    ]
