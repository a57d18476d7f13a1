"""The answers and webhooks are what GitHub's own description says they are, by the models of its
real client."""

from collections.abc import AsyncIterator

import githubkit_schemas.latest.webhooks as _  # noqa: F401  (imported once, so that no single test pays for it)
import pytest
from githubkit import AppAuthStrategy, GitHub
from githubkit import webhooks as kit_webhooks
from githubkit.exception import RequestFailed

from tests.devhub.environment import HubEnvironment

OF = {"owner": "acme", "repo": "shop"}


@pytest.fixture
async def kit(env: HubEnvironment) -> AsyncIterator[GitHub]:
    strategy = AppAuthStrategy(env.app.id, env.app.private_key)
    app = GitHub(
        strategy,
        base_url=f"{env.hub.api_url}/",
        auto_retry=False,
        http_cache=False,
        trust_env=False,
    )
    async with app, app.with_auth(app.auth.as_installation(env.installation)) as github:
        yield github


async def test_every_answer_validates_against_githubs_description(
    env: HubEnvironment, kit: GitHub
) -> None:
    pull = await _conversation(env, kit)
    rest, number = kit.rest, pull.number
    head = pull.head.sha
    run = (
        await rest.checks.async_create(**OF, name="Osiris", head_sha=head, status="in_progress")
    ).parsed_data
    answers = [
        await rest.checks.async_get(**OF, check_run_id=run.id),
        await rest.checks.async_update(
            **OF,
            check_run_id=run.id,
            conclusion="success",
            output={"title": "ok", "summary": "fine"},
        ),
        await rest.checks.async_list_for_ref(**OF, ref=head),
        await rest.repos.async_get(**OF),
        await rest.repos.async_get_branch(**OF, branch="fix"),
        await rest.repos.async_get_commit(**OF, ref=head),
        await rest.repos.async_get_content(**OF, path="shop/cart.py"),
        await rest.repos.async_get_content(**OF, path="shop"),
        await rest.repos.async_compare_commits(**OF, basehead=f"main...{head}"),
        await rest.repos.async_get_collaborator_permission_level(**OF, username="mia"),
        await rest.git.async_get_ref(**OF, ref="heads/main"),
        await rest.issues.async_get(**OF, issue_number=1),
        await rest.issues.async_list_for_repo(**OF, state="all"),
        await rest.issues.async_list_comments(**OF, issue_number=1),
        await rest.issues.async_list_events(**OF, issue_number=1),
        await rest.issues.async_list_labels_on_issue(**OF, issue_number=1),
        await rest.pulls.async_list(**OF, state="all"),
        await rest.pulls.async_get(**OF, pull_number=number),
        await rest.pulls.async_list_files(**OF, pull_number=number),
        await rest.pulls.async_list_commits(**OF, pull_number=number),
        await rest.pulls.async_list_reviews(**OF, pull_number=number),
        await rest.pulls.async_list_review_comments(**OF, pull_number=number),
        await rest.apps.async_list_repos_accessible_to_installation(),
        await rest.users.async_get_by_username("mia"),
    ]
    for answer in answers:
        assert answer.parsed_data


async def _conversation(env: HubEnvironment, kit: GitHub):
    """An issue with a label, a comment and reactions, and a pull request with a review and a
    reply."""
    rest = kit.rest
    await rest.issues.async_create(**OF, title="Prices", labels=["osiris"])
    comment = (
        await rest.issues.async_create_comment(**OF, issue_number=1, body="On it")
    ).parsed_data
    await rest.issues.async_update_comment(**OF, comment_id=comment.id, body="Done")
    await rest.reactions.async_create_for_issue_comment(
        **OF, comment_id=comment.id, content="rocket"
    )
    token = await env.token()
    await env.pull(env.client(token), token)
    mia = env.client(env.mia.token)
    line = {"path": "shop/cart.py", "line": 2, "body": "Use Decimal"}
    review = {"event": "REQUEST_CHANGES", "body": "Not yet", "comments": [line]}
    assert (await mia.post("/repos/acme/shop/pulls/2/reviews", json=review)).status_code == 200
    (top,) = (await rest.pulls.async_list_review_comments(**OF, pull_number=2)).parsed_data
    replied = await rest.pulls.async_create_reply_for_review_comment(
        **OF, pull_number=2, comment_id=top.id, body="I will"
    )
    assert replied.parsed_data.in_reply_to_id == top.id
    return (await rest.pulls.async_get(**OF, pull_number=2)).parsed_data


@pytest.mark.long
async def test_every_webhook_validates_against_githubs_description(
    env: HubEnvironment, kit: GitHub
) -> None:
    pull = await _conversation(env, kit)
    rest = kit.rest
    await rest.checks.async_create(
        **OF, name="Osiris", head_sha=pull.head.sha, conclusion="success"
    )
    mia = env.client(env.mia.token)
    review = (await mia.get("/repos/acme/shop/pulls/2/reviews")).json()[0]
    dismissal = {"message": "settled"}
    await mia.put(f"/repos/acme/shop/pulls/2/reviews/{review['id']}/dismissals", json=dismissal)
    await rest.pulls.async_update(**OF, pull_number=2, title="Round prices")
    await rest.issues.async_remove_label(**OF, issue_number=1, name="osiris")
    await rest.issues.async_update(**OF, issue_number=1, state="closed", state_reason="not_planned")
    await rest.issues.async_update(**OF, issue_number=1, state="open", title="Other")
    await rest.pulls.async_update(**OF, pull_number=2, state="closed")
    await rest.pulls.async_update(**OF, pull_number=2, state="open")
    await rest.pulls.async_merge(**OF, pull_number=2)
    names = set(await env.events())
    assert names >= {
        "push",
        "pull_request_review.dismissed",
        "check_suite.completed",
        "issues.edited",
    }
    for head, body in dict(zip(env.receiver.names, env.receiver.got, strict=True)).values():
        assert kit_webhooks.parse_obj(head["x-github-event"], body)


async def test_every_webhook_about_where_an_app_may_work_validates(env: HubEnvironment) -> None:
    hub = env.hub
    mia = env.client(env.mia.token)
    hub.world.set_role(env.repo, "mia", "admin")
    hub.add_repo("acme/open", collaborators={})
    hub.install_app(env.app, "acme/open")
    hub.remove_repos(env.app, "acme/open")
    for change in ({"archived": True}, {"archived": False}, {"name": "store"}):
        assert (
            await mia.patch("/repos/acme/shop", json=change, follow_redirects=True)
        ).status_code == 200
    hub.add_repo("globex/other", collaborators={})
    hub.install_app(env.app, "globex/other")
    assert (
        await mia.post("/repos/acme/store/transfer", json={"new_owner": "globex"})
    ).status_code == 202
    hub.install_app(env.app, "globex/store")
    assert (await mia.delete("/repos/globex/store")).status_code == 204
    app = env.client(env.app_jwt())
    url = f"/app/installations/{env.installation}"
    assert (await app.put(f"{url}/suspended")).status_code == 204
    assert (await app.delete(f"{url}/suspended")).status_code == 204
    assert (await app.delete(url)).status_code == 204
    told = await env.events()
    assert [one for one in told if one != "installation.created"] == [
        "installation_repositories.added",
        "installation_repositories.removed",
        "repository.archived",
        "repository.unarchived",
        "repository.renamed",
        "installation_repositories.removed",
        "installation_repositories.added",
        "repository.deleted",
        "installation.suspend",
        "installation.unsuspend",
        "installation.deleted",
    ]
    for head, body in zip(env.receiver.names, env.receiver.got, strict=True):
        assert kit_webhooks.parse_obj(body[0]["x-github-event"], body[1]), head


async def test_graphql_through_the_real_client_reads_threads_reacts_to_a_review_and_resolves(
    env: HubEnvironment, kit: GitHub
) -> None:
    await _conversation(env, kit)
    query = """query($owner: String!, $name: String!, $number: Int!) {
      viewer { login }
      repository(owner: $owner, name: $name) {
      pullRequest(number: $number) { id isDraft reviewThreads(first: 100) {
        nodes {
          id isResolved path line comments(first: 50) { nodes { databaseId body } } } } } } }"""
    found = await kit.async_graphql(query, {"owner": "acme", "name": "shop", "number": 2})
    assert found["viewer"]["login"] == "osiris[bot]"
    (thread,) = found["repository"]["pullRequest"]["reviewThreads"]["nodes"]
    assert (thread["isResolved"], thread["path"], thread["line"]) == (False, "shop/cart.py", 2)
    assert [comment["body"] for comment in thread["comments"]["nodes"]] == ["Use Decimal", "I will"]

    review = env.repo.pulls[2].reviews[0]
    react = (
        "mutation($id: ID!) { addReaction(input: {subjectId: $id, content: EYES}) { reaction {"
        " content } } }"
    )
    assert (await kit.async_graphql(react, {"id": review.node_id}))["addReaction"]["reaction"][
        "content"
    ] == "EYES"
    assert [(one.user.login, one.content) for one in review.reactions] == [("osiris[bot]", "eyes")]
    resolve = (
        "mutation($id: ID!) { resolveReviewThread(input: {threadId: $id}) { thread { isResolved"
        " } } }"
    )
    await kit.async_graphql(resolve, {"id": thread["id"]})
    assert env.repo.pulls[2].threads[0].resolved_by is env.app.bot
    node = await kit.async_graphql(
        "query($id: ID!) { node(id: $id) { ... on PullRequest { number } } }",
        {"id": env.repo.pulls[2].node_id},
    )
    assert node["node"]["number"] == 2


async def test_the_real_client_sees_a_refusal_with_its_reason(
    env: HubEnvironment, kit: GitHub
) -> None:
    with pytest.raises(RequestFailed) as refused:
        await kit.rest.pulls.async_create(**OF, title="x", head="nowhere", base="main")
    assert refused.value.response.status_code == 422
    assert refused.value.response.json()["errors"] == [
        {"resource": "PullRequest", "field": "head", "code": "invalid"}
    ]
