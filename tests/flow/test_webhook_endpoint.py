"""The webhook endpoint, the health pages, and their answers to bad input."""

import hashlib
import hmac
import json

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris.bootstrap import Timeouts
from tests.flow.conftest import REPO, FlowEnvironment, Start


def sign_delivery(
    env: FlowEnvironment, body: bytes, kind: str = "issues", id: str = "d-1"
) -> dict[str, str]:
    """Return the headers with which GitHub sends a delivery."""
    secret = env.playground.settings.github_webhook_secret.get_secret_value().encode()
    digest = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return {
        "X-Hub-Signature-256": f"sha256={digest}",
        "X-GitHub-Event": kind,
        "X-GitHub-Delivery": id,
        "Content-Type": "application/json",
    }


async def post_delivery(
    env: FlowEnvironment, body: bytes, headers: dict[str, str]
) -> httpx.Response:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{env.playground.settings.osiris_port}"
    ) as http:
        return await http.post("/webhooks/github", content=body, headers=headers)


async def get_page(env: FlowEnvironment, path: str) -> httpx.Response:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{env.playground.settings.osiris_port}"
    ) as http:
        return await http.get(path)


LABEL_PAYLOAD = {
    "action": "labeled",
    "issue": {"number": 1, "title": "T", "body": None},
    "label": {"name": "osiris"},
    "repository": {"full_name": REPO},
    "sender": {"login": "alice", "type": "User"},
}


async def test_an_unsigned_or_tampered_webhook_is_401_and_leaves_no_trace(start: Start):
    async with start() as env:
        body = json.dumps(LABEL_PAYLOAD).encode()
        valid_headers = sign_delivery(env, body)
        for headers in (
            {},
            {**valid_headers, "X-Hub-Signature-256": "sha256=00"},
            {**valid_headers, "X-Hub-Signature-256": "ü"},
        ):
            headers = {k: v.encode("utf-8") for k, v in headers.items()}
            assert (await post_delivery(env, body, headers)).status_code == 401
        assert (await post_delivery(env, body + b" ", valid_headers)).status_code == 401
        await env.wait_until_settled()
        assert await env.osiris.read_models.list_tasks() == []
        assert not await env.osiris.read_models.is_handled("github", "d-1")


async def test_a_delivery_that_is_too_deep_to_be_read_is_given_up_and_holds_nobody_up(start: Start):
    async with start(timeouts=Timeouts(pauses=(0.02,))) as env:
        body = b'{"action": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        assert (await post_delivery(env, body, sign_delivery(env, body))).status_code == 202
        await env.bring_to_review()
        [failure] = await env.list_failures()
        assert failure.id == "d-1"


async def test_a_webhook_that_sends_forms_is_refused_with_what_to_change(start: Start):
    async with start() as env:
        env.playground.app.webhook_content_type = "form"
        await env.file_labelled_issue()
        await env.wait_until_settled()
        refused = next(
            delivery
            for delivery in env.playground.app.deliveries
            if json.loads(delivery.body).get("action") == "labeled"
        )
        assert (refused.event, refused.status_code) == ("issues", 415)
        assert "set the webhook's content type to application/json" in refused.response_body
        assert await env.osiris.read_models.list_tasks() == []
        env.playground.app.webhook_content_type = "json"
        env.playground.hub.hooks.redeliver(refused)
        await env.wait_until_settled()
        assert (await env.get_task()).state == "review"


async def test_a_good_delivery_is_202_and_a_duplicate_as_well(start: Start):
    async with start() as env:
        body = b'{"zen": "Keep it simple."}'
        for _ in range(2):
            response = await post_delivery(env, body, sign_delivery(env, body, "ping"))
            assert (response.status_code, response.json()) == (202, {"delivery": "d-1"})
        await env.wait_until_settled()
        assert await env.list_failures() == []


async def test_malformed_json_under_a_good_signature_is_kept_and_shown_as_failed(
    start: Start, run_cli
):
    async with start() as env:
        for n, body in enumerate(
            (b"{not json", b"[]", b'{"action": "labeled"}', b'{"issue": 3}', b"\xff\xfe")
        ):
            assert (
                await post_delivery(env, body, sign_delivery(env, body, id=f"bad-{n}"))
            ).status_code == 202
        await env.wait_until_settled()
        assert {failure.id for failure in await env.list_failures()} == {
            f"bad-{n}" for n in range(5)
        }
        data_folder = str(env.playground.settings.osiris_data_dir)
        code, out, _ = await run_cli("task", "list", "--failed", OSIRIS_DATA_DIR=data_folder)
        assert (code, "bad-3" in out, "not what GitHub sends as issues" in out) == (0, True, True)


@pytest.mark.long
async def test_a_delivery_that_was_given_up_is_taken_up_when_it_is_redelivered(start: Start):
    async with start() as env:
        issue = await env.alice.file_issue("add subtracts")
        is_suspended: list[bool] = [True]

        async def refuse_token(request: Request, forward) -> Response:
            is_refused = is_suspended and request.url.path.endswith("access_tokens")
            return JSONResponse({"message": "suspended"}, 403) if is_refused else await forward()

        env.playground.hub.interceptors.append(refuse_token)
        await env.alice.add_label(issue)
        await env.wait_until_settled()
        [failure] = await env.list_failures()
        is_suspended.clear()
        [delivery] = [d for d in env.playground.app.deliveries if d.guid == failure.id]
        await post_delivery(env, delivery.body, delivery.request_headers)
        await env.wait_until_settled()
        assert (await env.list_failures(), (await env.get_task()).state) == ([], "review")


async def test_a_delivery_without_githubs_headers_is_400_and_a_huge_one_413(start: Start):
    async with start() as env:
        body = b"{}"
        headers = sign_delivery(env, body)
        del headers["X-GitHub-Delivery"]
        assert (await post_delivery(env, body, headers)).status_code == 400
        huge = b" " * (25 * 1024 * 1024 + 1)
        assert (await post_delivery(env, huge, sign_delivery(env, huge))).status_code == 413


async def test_unknown_events_are_taken_and_ignored(start: Start):
    async with start() as env:
        for n, kind in enumerate(("star", "watch", "brand_new_event", "issues")):
            body = json.dumps({**LABEL_PAYLOAD, "action": "pinned"}).encode()
            assert (
                await post_delivery(env, body, sign_delivery(env, body, kind, f"u-{n}"))
            ).status_code == 202
        await env.wait_until_settled()
        assert (await env.list_failures(), await env.osiris.read_models.list_tasks()) == ([], [])


async def test_a_label_where_the_app_is_not_installed_is_no_failure(start: Start):
    async with start() as env:
        env.playground.hub.world.installations.clear()
        body = json.dumps(LABEL_PAYLOAD).encode()
        assert (await post_delivery(env, body, sign_delivery(env, body))).status_code == 202
        await env.wait_until_settled()
        assert await env.osiris.read_models.is_handled("github", "d-1")
        assert (await env.list_failures(), await env.osiris.read_models.list_tasks()) == ([], [])


async def test_the_health_pages_say_what_is_missing(start: Start):
    async with start() as env:
        assert (await get_page(env, "/healthz")).json() == {"ok": True}
        response = await get_page(env, "/readyz")
        assert (response.status_code, response.json()) == (200, {"ready": True, "missing": []})


async def test_the_same_delivery_sent_again_by_github_changes_nothing(start: Start):
    async with start() as env:
        issue, _ = await env.bring_to_review()
        state_before = [await env.list_bot_comments(issue), await env.get_task()]
        async with httpx.AsyncClient() as http:
            for delivery in list(env.playground.app.deliveries):
                url = f"http://127.0.0.1:{env.playground.settings.osiris_port}/webhooks/github"
                response = await http.post(
                    url, content=delivery.body, headers=delivery.request_headers
                )
                assert response.status_code == 202
        await env.wait_until_settled()
        assert [await env.list_bot_comments(issue), await env.get_task()] == state_before
        assert len(await env.alice.list_pulls()) == 1


@pytest.mark.long
async def test_the_doctor_sees_the_app_its_permissions_and_the_last_webhook(
    start: Start, run_cli, folder
):
    async with start() as env:
        await env.bring_to_review()
        settings = env.playground.settings
        (folder / "key.pem").write_text(settings.private_key)
        environ = {
            "GITHUB_APP_ID": settings.github_app_id,
            "GITHUB_PRIVATE_KEY_FILE": str(folder / "key.pem"),
            "GITHUB_WEBHOOK_SECRET": settings.github_webhook_secret.get_secret_value(),
            "GITHUB_API_URL": settings.github_api_url,
            "GITHUB_URL": settings.github_url,
            "OSIRIS_DATA_DIR": str(settings.osiris_data_dir),
            "OSIRIS_MODEL": settings.osiris_model,
        }
        code, out, err = await run_cli("doctor", **environ)
        assert (code, err) == (0, ""), out
        for line in (
            "ok   GitHub App: osiris",
            "ok   permissions",
            "ok   webhook format",
            "ok   webhooks: the last one (",
            f"ok   model {settings.osiris_model}",
        ):
            assert line in out
        env.playground.app.webhook_content_type = "form"
        code, out, _ = await run_cli("doctor", **environ)
        assert (code, "FAIL webhook format: the App sends form" in out) == (1, True)
        env.playground.app.permissions.pop("checks")
        code, out, _ = await run_cli("doctor", **environ)
        assert (code, "FAIL permissions: checks: write" in out) == (1, True)
