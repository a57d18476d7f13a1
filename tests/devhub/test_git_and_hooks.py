"""Pushes over HTTP, their webhooks, redelivery, checks, and requests with interceptors."""

import asyncio
import gzip
from pathlib import Path

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris.core.errors import Refused
from osiris.devhub.models import Delivery
from osiris.devhub.observers import ApiExchange
from osiris.devhub.server import TruncatedResponse, serve_hub
from tests.devhub.environment import HubEnvironment

REPO = "/repos/acme/shop"


async def test_only_those_who_may_write_push(env: HubEnvironment) -> None:
    token = await env.create_token()
    await env.push_branch("fix", {"a.txt": "a"}, token)
    work = env.folder / "work"
    reader = await env.create_token(permissions={"contents": "read"})
    for secret, message in (
        (reader, "403"),
        (env.eve.token, "403"),
        ("ghs_none", "Authentication failed"),
    ):
        refused = await env.run_git("push", env.build_address(secret), "fix:other", folder=work)
        assert message in refused.stderr
    assert (await env.run_git("ls-remote", env.build_address(reader))).returncode == 0
    assert (
        await env.run_git("push", env.build_address(env.mia.token), "fix:other", folder=work)
    ).returncode == 0
    assert sorted(env.repo.heads) == ["fix", "main", "other"]
    url = env.hub.url + "/acme/shop.git/info/refs?service=git-receive-pack"
    async with httpx.AsyncClient(trust_env=False) as anonymous:
        answer = await anonymous.get(url)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (
            401,
            'Basic realm="GitHub"',
        )
        assert (
            await anonymous.get(env.hub.url + "/acme/none.git/info/refs?service=git-upload-pack")
        ).status_code == 401


async def test_a_private_repository_is_cloned_only_by_those_who_see_it(
    env: HubEnvironment,
) -> None:
    env.hub.add_repo(
        "acme/vault", files={"gold.txt": "gold"}, collaborators={"mia": "read"}, private=True
    )
    clone = await env.run_git(
        "clone", "-q", env.build_address(env.mia.token, "acme/vault"), str(env.folder / "own")
    )
    assert clone.returncode == 0
    for secret in (env.eve.token, await env.create_token(), "wrong"):
        refused = await env.run_git(
            "clone", "-q", env.build_address(secret, "acme/vault"), str(env.folder / "no")
        )
        assert refused.returncode != 0


async def test_a_large_push_and_a_gzipped_request_arrive_whole(env: HubEnvironment) -> None:
    token = await env.create_token()
    content = bytes(range(256)) * 20_000
    sha = await env.push_branch("big", {f"{n}.bin": content + bytes([n]) for n in range(3)}, token)
    assert env.repo.git.read_file(sha, "2.bin") == content + b"\x02"
    body = gzip.compress(f"0032want {sha}\n00000009done\n".encode())
    headers = {"Content-Type": "application/x-git-upload-pack-request", "Content-Encoding": "gzip"}
    async with httpx.AsyncClient(trust_env=False) as anonymous:
        answer = await anonymous.post(
            f"{env.hub.url}/acme/shop.git/git-upload-pack", content=body, headers=headers
        )
    assert answer.status_code == 200
    assert b"PACK" in answer.content


async def test_a_push_moves_the_pull_request_and_tells_it(env: HubEnvironment) -> None:
    token = await env.create_token()
    bot = env.create_client(token)
    pull = await env.open_pull(bot, token)
    line = {"path": "shop/cart.py", "line": 5, "body": "Rename this"}
    review = {"event": "COMMENT", "comments": [line]}
    assert (
        await env.create_client(env.mia.token).post(f"{REPO}/pulls/1/reviews", json=review)
    ).status_code == 200
    cart = (env.folder / "work/shop/cart.py").read_text()
    head = await env.push_branch("fix", {"shop/cart.py": "# the cart\n" + cart}, token)
    assert (await bot.get(f"{REPO}/pulls/1")).json()["head"]["sha"] == head
    assert (await bot.get(f"{REPO}/pulls/1/comments")).json()[0]["line"] == 6
    assert (await env.list_events())[-2:] == ["push", "pull_request.synchronize"]
    payload = env.receiver.get_last_payload("pull_request.synchronize")
    assert (payload["before"], payload["after"]) == (pull["head"]["sha"], head)
    push = env.receiver.get_last_payload("push")
    assert (push["ref"], push["commits"][0]["modified"]) == ("refs/heads/fix", ["shop/cart.py"])
    await env.run_git("push", "-q", env.build_address(token), ":fix", folder=env.folder / "work")
    assert (await env.list_events())[-2:] == ["push", "pull_request.closed"]


async def test_a_failed_delivery_is_recorded_and_sent_again_under_its_own_name(
    env: HubEnvironment,
) -> None:
    env.receiver.status = 500
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    await env.hub.wait_until_sent()
    app = env.create_client(env.create_app_jwt())
    (delivery, _) = (await app.get("/app/hook/deliveries")).json()
    assert (delivery["event"], delivery["status_code"], delivery["redelivery"]) == (
        "issues",
        500,
        False,
    )
    env.receiver.status = 202
    url = f"/app/hook/deliveries/{delivery['id']}"
    assert (await app.post(f"{url}/attempts")).status_code == 202
    await env.hub.wait_until_sent()
    first, second = env.receiver.deliveries[-2:]
    assert first[0]["x-github-delivery"] == second[0]["x-github-delivery"] == delivery["guid"]
    assert first[1] == second[1]
    newest = (await app.get("/app/hook/deliveries?per_page=1")).json()[0]
    assert (newest["guid"], newest["status_code"], newest["redelivery"]) == (
        delivery["guid"],
        202,
        True,
    )
    assert (await app.get(url)).json()["request"]["payload"]["issue"]["title"] == "Prices"


async def test_a_receiver_that_is_gone_is_a_recorded_failure(env: HubEnvironment) -> None:
    env.app.webhook_url = "http://127.0.0.1:1/hooks"
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    await env.hub.wait_until_sent()
    last = env.app.deliveries[-1]
    assert (last.status_code, last.status) == (502, "failed to connect to host")


@pytest.mark.parametrize(
    ("code", "conclusion"), [(0, "success"), (1, "failure"), (None, "failure")]
)
async def test_a_pushed_commit_is_checked(
    env: HubEnvironment, folder: Path, code: int | None, conclusion: str
) -> None:
    checks: list[tuple[Path, str, str]] = []

    async def run_check(path: Path, sha: str, command: str) -> tuple[int | None, str]:
        checks.append((path, sha, command))
        return code, "x" * 70_000 + "end"

    async with serve_hub(folder / "other", run_check=run_check) as hub:
        env.hub = hub
        mia = hub.add_user("mia")
        files = {".github/devhub-ci.yml": "command: make test\n"}
        repo = hub.add_repo("acme/shop", files=files, collaborators={"mia": "write"})
        app = hub.add_app(
            slug="osiris",
            webhook_url=env.receiver.url,
            webhook_secret="a webhook secret",
            permissions={"checks": "read", "contents": "read"},
            events=["check_run", "check_suite"],
        )
        hub.install_app(app, "acme/shop")
        sha = await env.push_branch("fix", {"a.txt": "a"}, mia.token)
        await hub.wait_until_checked()
        await hub.wait_until_sent()
        assert checks == [(repo.git.path, sha, "make test")]
        (run,) = repo.checks
        assert (run.name, run.status, run.conclusion, run.app.slug) == (
            "ci",
            "completed",
            conclusion,
            "devhub-actions",
        )
        assert len(run.output["text"] or "") == 60_000
    assert env.receiver.event_names[-3:] == [
        "check_run.created",
        "check_run.completed",
        "check_suite.completed",
    ]


async def test_a_check_with_no_place_to_run_in_fails_with_the_reason(
    env: HubEnvironment, folder: Path
) -> None:
    async def run_check(path: Path, sha: str, command: str) -> tuple[int | None, str]:
        raise Refused("there is no safe sandbox on this machine")

    async with serve_hub(folder / "other", run_check=run_check) as hub:
        env.hub = hub
        mia = hub.add_user("mia")
        files = {".github/devhub-ci.yml": "command: make test\n"}
        repo = hub.add_repo("acme/shop", files=files, collaborators={"mia": "write"})
        await env.push_branch("fix", {"a.txt": "a"}, mia.token)
        await hub.wait_until_checked()
    (run,) = repo.checks
    assert (run.conclusion, run.output["text"]) == (
        "failure",
        "there is no safe sandbox on this machine",
    )


async def test_interceptors_see_fail_and_cut_every_request(env: HubEnvironment) -> None:
    mia = env.create_client(env.mia.token)
    paths: list[str] = []

    async def record_path(request: Request, forward) -> Response:
        paths.append(request.url.path)
        return await forward()

    async def fail_request(request: Request, forward) -> Response:
        return JSONResponse({"message": "Bad Gateway"}, 502)

    async def lose_answer(request: Request, forward) -> Response:
        await forward()
        return TruncatedResponse()

    env.hub.interceptors[:] = [record_path, fail_request]
    assert (await mia.post(f"{REPO}/issues", json={"title": "x"})).status_code == 502
    assert env.repo.issues == {}
    env.hub.interceptors[:] = [record_path, lose_answer]
    with pytest.raises(httpx.RemoteProtocolError):
        await mia.post(f"{REPO}/issues", json={"title": "x"})
    assert list(env.repo.issues) == [1]
    env.hub.interceptors[:] = [record_path]
    await env.run_git("ls-remote", env.build_address(env.mia.token))
    assert "/acme/shop.git/info/refs" in paths


class RecordingObserver:
    """An observer that records the hub's own answers, and the webhooks."""

    def __init__(self) -> None:
        self.exchanges: list[tuple[str, int]] = []
        self.deliveries: list[tuple[str, int]] = []

    def on_exchange(self, exchange: ApiExchange) -> None:
        self.exchanges.append(
            (exchange.request.method, exchange.answer.status_code if exchange.answer else 0)
        )

    def on_delivery(self, delivery: Delivery) -> None:
        self.deliveries.append((delivery.event, delivery.status_code))


async def test_a_watcher_sees_what_the_hub_itself_answered(env: HubEnvironment) -> None:
    mia = env.create_client(env.mia.token)
    observer = RecordingObserver()

    async def fail_request(request: Request, forward) -> Response:
        return JSONResponse({"message": "Bad Gateway"}, 502)

    async def lose_answer(request: Request, forward) -> Response:
        await forward()
        return JSONResponse({"message": "Bad Gateway"}, 502)

    await env.hub.wait_until_sent()
    env.hub.observers.append(observer)
    try:
        await mia.post(f"{REPO}/issues", json={"title": "x"})
        await env.hub.wait_until_sent()
        for interceptor in (fail_request, lose_answer):
            env.hub.interceptors[:] = [interceptor]
            await mia.get(f"{REPO}/issues")
        env.hub.interceptors.clear()
        await env.run_git("ls-remote", env.build_address(env.mia.token))
    finally:
        env.hub.observers.remove(observer)
    assert observer.exchanges == [("POST", 201), ("GET", 0), ("GET", 200)]
    assert observer.deliveries == [("issues", 202)]


async def test_an_existing_repository_is_imported_with_its_history(
    env: HubEnvironment, folder: Path
) -> None:
    source = folder / "source"
    source.mkdir()
    await env.run_git("init", "-q", "-b", "trunk", folder=source)
    for number in range(2):
        (source / "a.txt").write_text(str(number))
        await env.run_git("add", "-A", folder=source)
        await env.run_git("commit", "-q", "-m", f"Step {number}", folder=source)
    await env.run_git("branch", "aside", folder=source)
    repo = env.hub.add_repo(
        "acme/old", import_from=(source, "HEAD"), collaborators={"mia": "admin"}
    )
    assert (repo.default_branch, list(repo.heads)) == ("main", ["main"])
    assert [commit.message for commit in repo.git.list_history("main")] == ["Step 1", "Step 0"]
    assert repo.git.path == folder / "hub/repos/acme/old.git"
    modes = {path.stat().st_mode & 0o005 for path in repo.git.path.rglob("*") if path.is_dir()}
    assert modes == {0o005}


async def test_many_requests_at_once_are_all_answered(env: HubEnvironment) -> None:
    mia = env.create_client(env.mia.token)
    requests = (
        mia.post(f"{REPO}/issues", json={"title": f"Issue {number}"}) for number in range(20)
    )
    answers = await asyncio.gather(*requests)
    assert sorted(answer.json()["number"] for answer in answers) == list(range(1, 21))
