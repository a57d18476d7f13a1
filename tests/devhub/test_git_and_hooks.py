"""Pushes over HTTP, the webhooks they cause, redelivery, checks, and requests that are interfered
with."""

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
    token = await env.token()
    await env.branch("fix", {"a.txt": "a"}, token)
    work = env.place / "work"
    reader = await env.token(permissions={"contents": "read"})
    for secret, words in (
        (reader, "403"),
        (env.eve.token, "403"),
        ("ghs_none", "Authentication failed"),
    ):
        refused = await env.git("push", env.address(secret), "fix:other", at=work)
        assert words in refused.stderr
    assert (await env.git("ls-remote", env.address(reader))).returncode == 0
    assert (await env.git("push", env.address(env.mia.token), "fix:other", at=work)).returncode == 0
    assert sorted(env.repo.heads) == ["fix", "main", "other"]
    bare = env.hub.url + "/acme/shop.git/info/refs?service=git-receive-pack"
    async with httpx.AsyncClient(trust_env=False) as nobody:
        answer = await nobody.get(bare)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (
            401,
            'Basic realm="GitHub"',
        )
        assert (
            await nobody.get(env.hub.url + "/acme/none.git/info/refs?service=git-upload-pack")
        ).status_code == 401


async def test_a_private_repository_is_cloned_only_by_those_who_see_it(
    env: HubEnvironment,
) -> None:
    env.hub.add_repo(
        "acme/vault", files={"gold.txt": "gold"}, collaborators={"mia": "read"}, private=True
    )
    own = await env.git(
        "clone", "-q", env.address(env.mia.token, "acme/vault"), str(env.place / "own")
    )
    assert own.returncode == 0
    for secret in (env.eve.token, await env.token(), "wrong"):
        refused = await env.git(
            "clone", "-q", env.address(secret, "acme/vault"), str(env.place / "no")
        )
        assert refused.returncode != 0


async def test_a_large_push_and_a_gzipped_request_arrive_whole(env: HubEnvironment) -> None:
    token = await env.token()
    content = bytes(range(256)) * 20_000
    sha = await env.branch("big", {f"{n}.bin": content + bytes([n]) for n in range(3)}, token)
    assert env.repo.git.read_file(sha, "2.bin") == content + b"\x02"
    body = gzip.compress(f"0032want {sha}\n00000009done\n".encode())
    headers = {"Content-Type": "application/x-git-upload-pack-request", "Content-Encoding": "gzip"}
    async with httpx.AsyncClient(trust_env=False) as nobody:
        answer = await nobody.post(
            f"{env.hub.url}/acme/shop.git/git-upload-pack", content=body, headers=headers
        )
    assert answer.status_code == 200
    assert b"PACK" in answer.content


async def test_a_push_moves_the_pull_request_and_tells_it(env: HubEnvironment) -> None:
    token = await env.token()
    bot = env.client(token)
    pull = await env.pull(bot, token)
    line = {"path": "shop/cart.py", "line": 5, "body": "Rename this"}
    review = {"event": "COMMENT", "comments": [line]}
    assert (
        await env.client(env.mia.token).post(f"{REPO}/pulls/1/reviews", json=review)
    ).status_code == 200
    cart = (env.place / "work/shop/cart.py").read_text()
    head = await env.branch("fix", {"shop/cart.py": "# the cart\n" + cart}, token)
    assert (await bot.get(f"{REPO}/pulls/1")).json()["head"]["sha"] == head
    assert (await bot.get(f"{REPO}/pulls/1/comments")).json()[0]["line"] == 6
    assert (await env.events())[-2:] == ["push", "pull_request.synchronize"]
    told = env.receiver.last("pull_request.synchronize")
    assert (told["before"], told["after"]) == (pull["head"]["sha"], head)
    push = env.receiver.last("push")
    assert (push["ref"], push["commits"][0]["modified"]) == ("refs/heads/fix", ["shop/cart.py"])
    await env.git("push", "-q", env.address(token), ":fix", at=env.place / "work")
    assert (await env.events())[-2:] == ["push", "pull_request.closed"]


async def test_a_failed_delivery_is_recorded_and_sent_again_under_its_own_name(
    env: HubEnvironment,
) -> None:
    env.receiver.status = 500
    env.hub.world.open_issue(env.repo, env.mia, "Prices")
    await env.hub.wait_until_sent()
    app = env.client(env.app_jwt())
    (listed, _) = (await app.get("/app/hook/deliveries")).json()
    assert (listed["event"], listed["status_code"], listed["redelivery"]) == ("issues", 500, False)
    env.receiver.status = 202
    url = f"/app/hook/deliveries/{listed['id']}"
    assert (await app.post(f"{url}/attempts")).status_code == 202
    await env.hub.wait_until_sent()
    first, second = env.receiver.got[-2:]
    assert first[0]["x-github-delivery"] == second[0]["x-github-delivery"] == listed["guid"]
    assert first[1] == second[1]
    newest = (await app.get("/app/hook/deliveries?per_page=1")).json()[0]
    assert (newest["guid"], newest["status_code"], newest["redelivery"]) == (
        listed["guid"],
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
    env: HubEnvironment, place: Path, code: int | None, conclusion: str
) -> None:
    ran: list[tuple[Path, str, str]] = []

    async def run_check(path: Path, sha: str, command: str) -> tuple[int | None, str]:
        ran.append((path, sha, command))
        return code, "x" * 70_000 + "end"

    async with serve_hub(place / "other", run_check=run_check) as hub:
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
        sha = await env.branch("fix", {"a.txt": "a"}, mia.token)
        await hub.wait_until_checked()
        await hub.wait_until_sent()
        assert ran == [(repo.git.path, sha, "make test")]
        (run,) = repo.checks
        assert (run.name, run.status, run.conclusion, run.app.slug) == (
            "ci",
            "completed",
            conclusion,
            "devhub-actions",
        )
        assert len(run.output["text"] or "") == 60_000
    assert env.receiver.names[-3:] == [
        "check_run.created",
        "check_run.completed",
        "check_suite.completed",
    ]


async def test_a_check_with_no_place_to_run_in_fails_with_the_reason(
    env: HubEnvironment, place: Path
) -> None:
    async def run_check(path: Path, sha: str, command: str) -> tuple[int | None, str]:
        raise Refused("there is no safe sandbox on this machine")

    async with serve_hub(place / "other", run_check=run_check) as hub:
        env.hub = hub
        mia = hub.add_user("mia")
        files = {".github/devhub-ci.yml": "command: make test\n"}
        repo = hub.add_repo("acme/shop", files=files, collaborators={"mia": "write"})
        await env.branch("fix", {"a.txt": "a"}, mia.token)
        await hub.wait_until_checked()
    (run,) = repo.checks
    assert (run.conclusion, run.output["text"]) == (
        "failure",
        "there is no safe sandbox on this machine",
    )


async def test_interceptors_see_fail_and_cut_every_request(env: HubEnvironment) -> None:
    mia = env.client(env.mia.token)
    seen: list[str] = []

    async def count(request: Request, forward) -> Response:
        seen.append(request.url.path)
        return await forward()

    async def fail(request: Request, forward) -> Response:
        return JSONResponse({"message": "Bad Gateway"}, 502)

    async def lose(request: Request, forward) -> Response:
        await forward()
        return TruncatedResponse()

    env.hub.interceptors[:] = [count, fail]
    assert (await mia.post(f"{REPO}/issues", json={"title": "x"})).status_code == 502
    assert env.repo.issues == {}
    env.hub.interceptors[:] = [count, lose]
    with pytest.raises(httpx.RemoteProtocolError):
        await mia.post(f"{REPO}/issues", json={"title": "x"})
    assert list(env.repo.issues) == [1]
    env.hub.interceptors[:] = [count]
    await env.git("ls-remote", env.address(env.mia.token))
    assert "/acme/shop.git/info/refs" in seen


class Watching:
    """Notes each exchange with the hub's own answer, and each webhook."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.sent: list[tuple[str, int]] = []

    def on_exchange(self, exchange: ApiExchange) -> None:
        self.seen.append(
            (exchange.request.method, exchange.answer.status_code if exchange.answer else 0)
        )

    def on_delivery(self, delivery: Delivery) -> None:
        self.sent.append((delivery.event, delivery.status_code))


async def test_a_watcher_sees_what_the_hub_itself_answered(env: HubEnvironment) -> None:
    mia = env.client(env.mia.token)
    watching = Watching()

    async def fail(request: Request, forward) -> Response:
        return JSONResponse({"message": "Bad Gateway"}, 502)

    async def lose(request: Request, forward) -> Response:
        await forward()
        return JSONResponse({"message": "Bad Gateway"}, 502)

    await env.hub.wait_until_sent()
    env.hub.observers.append(watching)
    try:
        await mia.post(f"{REPO}/issues", json={"title": "x"})
        await env.hub.wait_until_sent()
        for interceptor in (fail, lose):
            env.hub.interceptors[:] = [interceptor]
            await mia.get(f"{REPO}/issues")
        env.hub.interceptors.clear()
        await env.git("ls-remote", env.address(env.mia.token))
    finally:
        env.hub.observers.remove(watching)
    assert watching.seen == [("POST", 201), ("GET", 0), ("GET", 200)]
    assert watching.sent == [("issues", 202)]


async def test_an_existing_repository_is_imported_with_its_history(
    env: HubEnvironment, place: Path
) -> None:
    source = place / "source"
    source.mkdir()
    await env.git("init", "-q", "-b", "trunk", at=source)
    for number in range(2):
        (source / "a.txt").write_text(str(number))
        await env.git("add", "-A", at=source)
        await env.git("commit", "-q", "-m", f"Step {number}", at=source)
    await env.git("branch", "aside", at=source)
    repo = env.hub.add_repo(
        "acme/old", import_from=(source, "HEAD"), collaborators={"mia": "admin"}
    )
    assert (repo.default_branch, list(repo.heads)) == ("main", ["main"])
    assert [commit.message for commit in repo.git.list_history("main")] == ["Step 1", "Step 0"]
    assert repo.git.path == place / "hub/repos/acme/old.git"
    modes = {path.stat().st_mode & 0o005 for path in repo.git.path.rglob("*") if path.is_dir()}
    assert modes == {0o005}


async def test_many_requests_at_once_are_all_answered(env: HubEnvironment) -> None:
    mia = env.client(env.mia.token)
    wishes = (mia.post(f"{REPO}/issues", json={"title": f"Issue {number}"}) for number in range(20))
    answers = await asyncio.gather(*wishes)
    assert sorted(answer.json()["number"] for answer in answers) == list(range(1, 21))
