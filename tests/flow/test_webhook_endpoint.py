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
    secret = env.playground.settings.github_webhook_secret.get_secret_value().encode()
    digest = hmac.new(secret, body, hashlib.sha256).hexdigest()
    return {
        "X-Hub-Signature-256": f"sha256={digest}",
        "X-GitHub-Event": kind,
        "X-GitHub-Delivery": id,
        "Content-Type": "application/json",
    }


async def post(env: FlowEnvironment, body: bytes, headers: dict[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{env.playground.settings.osiris_port}"
    ) as http:
        return await http.post("/webhooks/github", content=body, headers=headers)


async def get(env: FlowEnvironment, path: str) -> httpx.Response:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{env.playground.settings.osiris_port}"
    ) as http:
        return await http.get(path)


LABELLED = {
    "action": "labeled",
    "issue": {"number": 1, "title": "T", "body": None},
    "label": {"name": "osiris"},
    "repository": {"full_name": REPO},
    "sender": {"login": "alice", "type": "User"},
}


async def test_an_unsigned_or_tampered_webhook_is_401_and_leaves_no_trace(start: Start):
    async with start() as env:
        body = json.dumps(LABELLED).encode()
        good = sign_delivery(env, body)
        for headers in (
            {},
            {**good, "X-Hub-Signature-256": "sha256=00"},
            {**good, "X-Hub-Signature-256": "ü"},
        ):
            headers = {k: v.encode("utf-8") for k, v in headers.items()}
            assert (await post(env, body, headers)).status_code == 401
        assert (await post(env, body + b" ", good)).status_code == 401
        await env.wait_until_settled()
        assert await env.osiris.read_models.list_tasks() == []
        assert not await env.osiris.read_models.is_handled("github", "d-1")


async def test_a_delivery_that_is_too_deep_to_be_read_is_given_up_and_holds_nobody_up(start: Start):
    async with start(timeouts=Timeouts(pauses=(0.02,))) as env:
        body = b'{"action": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        assert (await post(env, body, sign_delivery(env, body))).status_code == 202
        await env.bring_to_review()
        [failure] = await env.failures()
        assert failure.id == "d-1"


async def test_a_good_delivery_is_202_and_a_duplicate_as_well(start: Start):
    async with start() as env:
        body = b'{"zen": "Keep it simple."}'
        for _ in range(2):
            answer = await post(env, body, sign_delivery(env, body, "ping"))
            assert (answer.status_code, answer.json()) == (202, {"delivery": "d-1"})
        await env.wait_until_settled()
        assert await env.failures() == []


async def test_malformed_json_under_a_good_signature_is_kept_and_shown_as_failed(
    start: Start, command
):
    async with start() as env:
        for n, body in enumerate(
            (b"{not json", b"[]", b'{"action": "labeled"}', b'{"issue": 3}', b"\xff\xfe")
        ):
            assert (
                await post(env, body, sign_delivery(env, body, id=f"bad-{n}"))
            ).status_code == 202
        await env.wait_until_settled()
        assert {failure.id for failure in await env.failures()} == {f"bad-{n}" for n in range(5)}
        data = str(env.playground.settings.osiris_data_dir)
        code, out, _ = await command("task", "list", "--failed", OSIRIS_DATA_DIR=data)
        assert (code, "bad-3" in out, "not what GitHub sends as issues" in out) == (0, True, True)


@pytest.mark.long
async def test_a_delivery_that_was_given_up_is_taken_up_when_it_is_redelivered(start: Start):
    async with start() as env:
        issue = await env.alice.file_issue("add subtracts")
        down: list[bool] = [True]

        async def refuse(request: Request, forward) -> Response:
            suspended = down and request.url.path.endswith("access_tokens")
            return JSONResponse({"message": "suspended"}, 403) if suspended else await forward()

        env.playground.hub.interceptors.append(refuse)
        await env.alice.add_label(issue)
        await env.wait_until_settled()
        [failure] = await env.failures()
        down.clear()
        [delivery] = [d for d in env.playground.app.deliveries if d.guid == failure.id]
        await post(env, delivery.body, delivery.request_headers)
        await env.wait_until_settled()
        assert (await env.failures(), (await env.task()).state) == ([], "review")


async def test_a_delivery_without_githubs_headers_is_400_and_a_huge_one_413(start: Start):
    async with start() as env:
        body = b"{}"
        headers = sign_delivery(env, body)
        del headers["X-GitHub-Delivery"]
        assert (await post(env, body, headers)).status_code == 400
        huge = b" " * (25 * 1024 * 1024 + 1)
        assert (await post(env, huge, sign_delivery(env, huge))).status_code == 413


async def test_unknown_events_are_taken_and_ignored(start: Start):
    async with start() as env:
        for n, kind in enumerate(("star", "watch", "brand_new_event", "issues")):
            body = json.dumps({**LABELLED, "action": "pinned"}).encode()
            assert (
                await post(env, body, sign_delivery(env, body, kind, f"u-{n}"))
            ).status_code == 202
        await env.wait_until_settled()
        assert (await env.failures(), await env.osiris.read_models.list_tasks()) == ([], [])


async def test_a_label_where_the_app_is_not_installed_is_no_failure(start: Start):
    async with start() as env:
        env.playground.hub.world.installations.clear()
        body = json.dumps(LABELLED).encode()
        assert (await post(env, body, sign_delivery(env, body))).status_code == 202
        await env.wait_until_settled()
        assert await env.osiris.read_models.is_handled("github", "d-1")
        assert (await env.failures(), await env.osiris.read_models.list_tasks()) == ([], [])


async def test_the_health_pages_say_what_is_missing(start: Start):
    async with start() as env:
        assert (await get(env, "/healthz")).json() == {"ok": True}
        ready = await get(env, "/readyz")
        assert (ready.status_code, ready.json()) == (200, {"ready": True, "missing": []})


async def test_the_same_delivery_sent_again_by_github_changes_nothing(start: Start):
    async with start() as env:
        issue, _ = await env.bring_to_review()
        before = [await env.list_bot_comments(issue), await env.task()]
        async with httpx.AsyncClient() as http:
            for delivery in list(env.playground.app.deliveries):
                address = f"http://127.0.0.1:{env.playground.settings.osiris_port}/webhooks/github"
                sent = await http.post(
                    address, content=delivery.body, headers=delivery.request_headers
                )
                assert sent.status_code == 202
        await env.wait_until_settled()
        assert [await env.list_bot_comments(issue), await env.task()] == before
        assert len(await env.alice.list_pulls()) == 1


@pytest.mark.long
async def test_the_doctor_sees_the_app_its_permissions_and_the_last_webhook(
    start: Start, command, place
):
    async with start() as env:
        await env.bring_to_review()
        settings = env.playground.settings
        (place / "key.pem").write_text(settings.private_key)
        environ = {
            "GITHUB_APP_ID": settings.github_app_id,
            "GITHUB_PRIVATE_KEY_FILE": str(place / "key.pem"),
            "GITHUB_WEBHOOK_SECRET": settings.github_webhook_secret.get_secret_value(),
            "GITHUB_API_URL": settings.github_api_url,
            "GITHUB_URL": settings.github_url,
            "OSIRIS_DATA_DIR": str(settings.osiris_data_dir),
            "OSIRIS_MODEL": settings.osiris_model,
        }
        code, out, err = await command("doctor", **environ)
        assert (code, err) == (0, ""), out
        for line in (
            "ok   GitHub App: osiris",
            "ok   permissions",
            "ok   webhooks: the last one (",
            f"ok   model {settings.osiris_model}",
        ):
            assert line in out
        env.playground.app.permissions.pop("checks")
        code, out, _ = await command("doctor", **environ)
        assert (code, "FAIL permissions: checks: write" in out) == (1, True)
