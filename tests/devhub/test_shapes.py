"""The shape of answers and webhooks: the models of GitHub's real client accept them."""

from collections.abc import AsyncIterator

import githubkit_schemas.latest.webhooks as _  # noqa: F401  (imported here, so that no test needs the time for it)
import pytest
from githubkit import AppAuthStrategy, GitHub
from githubkit import webhooks as kit_webhooks
from githubkit.exception import RequestFailed

from osiris.playground.users import Person
from tests.devhub.environment import HubEnvironment

REPO_ARGS = {"owner": "acme", "repo": "shop"}


@pytest.fixture
async def client(env: HubEnvironment) -> AsyncIterator[GitHub]:
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
    env: HubEnvironment, client: GitHub
) -> None:
    pull = await _create_conversation(env, client)
    api, number = client.rest, pull.number
    sha = pull.head.sha
    check_run = (
        await api.checks.async_create(
            **REPO_ARGS, name="Osiris", head_sha=sha, status="in_progress"
        )
    ).parsed_data
    answers = [
        await api.checks.async_get(**REPO_ARGS, check_run_id=check_run.id),
        await api.checks.async_update(
            **REPO_ARGS,
            check_run_id=check_run.id,
            conclusion="success",
            output={"title": "ok", "summary": "fine"},
        ),
        await api.checks.async_list_for_ref(**REPO_ARGS, ref=sha),
        await api.repos.async_get(**REPO_ARGS),
        await api.repos.async_get_branch(**REPO_ARGS, branch="fix"),
        await api.repos.async_get_commit(**REPO_ARGS, ref=sha),
        await api.repos.async_get_content(**REPO_ARGS, path="shop/cart.py"),
        await api.repos.async_get_content(**REPO_ARGS, path="shop"),
        await api.repos.async_compare_commits(**REPO_ARGS, basehead=f"main...{sha}"),
        await api.repos.async_get_collaborator_permission_level(**REPO_ARGS, username="mia"),
        await api.git.async_get_ref(**REPO_ARGS, ref="heads/main"),
        await api.issues.async_get(**REPO_ARGS, issue_number=1),
        await api.issues.async_list_for_repo(**REPO_ARGS, state="all"),
        await api.issues.async_list_comments(**REPO_ARGS, issue_number=1),
        await api.issues.async_list_events(**REPO_ARGS, issue_number=1),
        await api.issues.async_list_labels_on_issue(**REPO_ARGS, issue_number=1),
        await api.pulls.async_list(**REPO_ARGS, state="all"),
        await api.pulls.async_get(**REPO_ARGS, pull_number=number),
        await api.pulls.async_list_files(**REPO_ARGS, pull_number=number),
        await api.pulls.async_list_commits(**REPO_ARGS, pull_number=number),
        await api.pulls.async_list_reviews(**REPO_ARGS, pull_number=number),
        await api.pulls.async_list_review_comments(**REPO_ARGS, pull_number=number),
        await api.pulls.async_list_comments_for_review(
            **REPO_ARGS, pull_number=number, review_id=env.repo.pulls[number].reviews[0].id
        ),
        await api.apps.async_list_repos_accessible_to_installation(),
        await api.users.async_get_by_username("mia"),
    ]
    for answer in answers:
        assert answer.parsed_data


async def _create_conversation(env: HubEnvironment, client: GitHub):
    """Create an issue with a label, a comment and reactions, and a pull request with a review and a
    reply."""
    api = client.rest
    await api.issues.async_create(**REPO_ARGS, title="Prices", labels=["osiris"])
    comment = (
        await api.issues.async_create_comment(**REPO_ARGS, issue_number=1, body="On it")
    ).parsed_data
    await api.issues.async_update_comment(**REPO_ARGS, comment_id=comment.id, body="Done")
    await api.reactions.async_create_for_issue_comment(
        **REPO_ARGS, comment_id=comment.id, content="rocket"
    )
    token = await env.create_token()
    await env.open_pull(env.create_client(token), token)
    mia = env.create_client(env.mia.token)
    line = {"path": "shop/cart.py", "start_line": 1, "line": 2, "body": "Use Decimal"}
    review = {"event": "REQUEST_CHANGES", "body": "Not yet", "comments": [line]}
    assert (await mia.post("/repos/acme/shop/pulls/2/reviews", json=review)).status_code == 200
    (first_comment,) = (
        await api.pulls.async_list_review_comments(**REPO_ARGS, pull_number=2)
    ).parsed_data
    reply = await api.pulls.async_create_reply_for_review_comment(
        **REPO_ARGS, pull_number=2, comment_id=first_comment.id, body="I will"
    )
    assert reply.parsed_data.in_reply_to_id == first_comment.id
    return (await api.pulls.async_get(**REPO_ARGS, pull_number=2)).parsed_data


@pytest.mark.long
async def test_every_webhook_validates_against_githubs_description(
    env: HubEnvironment, client: GitHub
) -> None:
    pull = await _create_conversation(env, client)
    api = client.rest
    await api.checks.async_create(
        **REPO_ARGS, name="Osiris", head_sha=pull.head.sha, conclusion="success"
    )
    mia = env.create_client(env.mia.token)
    review = (await mia.get("/repos/acme/shop/pulls/2/reviews")).json()[0]
    dismissal = {"message": "settled"}
    await mia.put(f"/repos/acme/shop/pulls/2/reviews/{review['id']}/dismissals", json=dismissal)
    await api.pulls.async_update(**REPO_ARGS, pull_number=2, title="Round prices")
    await api.issues.async_remove_label(**REPO_ARGS, issue_number=1, name="osiris")
    await api.issues.async_update(
        **REPO_ARGS, issue_number=1, state="closed", state_reason="not_planned"
    )
    await api.issues.async_update(**REPO_ARGS, issue_number=1, state="open", title="Other")
    await api.pulls.async_update(**REPO_ARGS, pull_number=2, state="closed")
    await api.pulls.async_update(**REPO_ARGS, pull_number=2, state="open")
    await api.pulls.async_merge(**REPO_ARGS, pull_number=2)
    names = set(await env.list_events())
    assert names >= {
        "push",
        "pull_request_review.dismissed",
        "check_suite.completed",
        "issues.edited",
    }
    for head, body in dict(
        zip(env.receiver.event_names, env.receiver.deliveries, strict=True)
    ).values():
        assert kit_webhooks.parse_obj(head["x-github-event"], body)


async def test_every_webhook_about_locks_transfers_and_comments_on_files_validates(
    env: HubEnvironment, client: GitHub
) -> None:
    pull = await _create_conversation(env, client)
    env.hub.world.set_role(env.repo, "mia", "admin")
    env.hub.add_repo("acme/store", collaborators={"mia": "write"})
    env.hub.install_app(env.app, "acme/store")
    async with Person(env.hub.api_url, "mia", env.mia.token, "acme/shop") as mia:
        await mia.add_file_comment(pull.number, "shop/cart.py", "No tests")
        issue = await mia.file_issue("Sizes")
        for number in (issue, pull.number):
            await mia.lock_issue(number, "resolved")
            await mia.unlock_issue(number)
        await mia.transfer_issue(issue, "acme/store")
        await mia.delete_issue(await mia.file_issue("Colours"))
    assert set(await env.list_events()) >= {
        "issues.locked",
        "issues.unlocked",
        "issues.transferred",
        "issues.deleted",
        "pull_request.locked",
        "pull_request.unlocked",
    }
    for head, body in env.receiver.deliveries:
        assert kit_webhooks.parse_obj(head["x-github-event"], body)


async def test_every_webhook_about_where_an_app_may_work_validates(env: HubEnvironment) -> None:
    hub = env.hub
    mia = env.create_client(env.mia.token)
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
    app = env.create_client(env.create_app_jwt())
    url = f"/app/installations/{env.installation}"
    assert (await app.put(f"{url}/suspended")).status_code == 204
    assert (await app.delete(f"{url}/suspended")).status_code == 204
    assert (await app.delete(url)).status_code == 204
    events = await env.list_events()
    assert [event for event in events if event != "installation.created"] == [
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
    for head, body in zip(env.receiver.event_names, env.receiver.deliveries, strict=True):
        assert kit_webhooks.parse_obj(body[0]["x-github-event"], body[1]), head


async def test_graphql_through_the_real_client_reads_threads_reacts_to_a_review_and_resolves(
    env: HubEnvironment, client: GitHub
) -> None:
    await _create_conversation(env, client)
    query = """query($owner: String!, $name: String!, $number: Int!) {
      viewer { login }
      repository(owner: $owner, name: $name) {
      pullRequest(number: $number) { id isDraft reviewThreads(first: 100) {
        nodes {
          id isResolved path line comments(first: 50) { nodes { databaseId body } } } } } } }"""
    data = await client.async_graphql(query, {"owner": "acme", "name": "shop", "number": 2})
    assert data["viewer"]["login"] == "osiris[bot]"
    (thread,) = data["repository"]["pullRequest"]["reviewThreads"]["nodes"]
    assert (thread["isResolved"], thread["path"], thread["line"]) == (False, "shop/cart.py", 2)
    assert [comment["body"] for comment in thread["comments"]["nodes"]] == ["Use Decimal", "I will"]

    review = env.repo.pulls[2].reviews[0]
    add_reaction = (
        "mutation($id: ID!) { addReaction(input: {subjectId: $id, content: EYES}) { reaction {"
        " content } } }"
    )
    assert (await client.async_graphql(add_reaction, {"id": review.node_id}))["addReaction"][
        "reaction"
    ]["content"] == "EYES"
    assert [(reaction.user.login, reaction.content) for reaction in review.reactions] == [
        ("osiris[bot]", "eyes")
    ]
    resolve = (
        "mutation($id: ID!) { resolveReviewThread(input: {threadId: $id}) { thread { isResolved"
        " } } }"
    )
    await client.async_graphql(resolve, {"id": thread["id"]})
    assert env.repo.pulls[2].threads[0].resolved_by is env.app.bot
    node = await client.async_graphql(
        "query($id: ID!) { node(id: $id) { ... on PullRequest { number } } }",
        {"id": env.repo.pulls[2].node_id},
    )
    assert node["node"]["number"] == 2


async def test_the_real_client_sees_a_refusal_with_its_reason(
    env: HubEnvironment, client: GitHub
) -> None:
    with pytest.raises(RequestFailed) as refused:
        await client.rest.pulls.async_create(**REPO_ARGS, title="x", head="nowhere", base="main")
    assert refused.value.response.status_code == 422
    assert refused.value.response.json()["errors"] == [
        {"resource": "PullRequest", "field": "head", "code": "invalid"}
    ]
