"""A hub with a repository, people, an app and somebody who listens to it, with the hands to use
them."""

import asyncio
import hashlib
import hmac
import json
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from osiris.devhub.models import App, Repo, User
from osiris.devhub.server import Hub

SECRET = "a webhook secret"
EVENTS = (
    "issues",
    "issue_comment",
    "pull_request",
    "pull_request_review",
    "pull_request_review_comment",
    "pull_request_review_thread",
    "push",
    "check_run",
    "check_suite",
    "repository",
)
PERMISSIONS = {"contents": "write", "issues": "write", "pull_requests": "write", "checks": "write"}
FILES = {
    "README.md": "# Shop\n",
    "shop/cart.py": (
        "def total(prices):\n    return sum(prices)\n\n\ndef count(prices):\n    return"
        " len(prices)\n"
    ),
}


@dataclass
class HubClock:
    """The hub's time; it stands still until a test moves it."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


@dataclass
class Receiver:
    """A real HTTP server that takes webhooks and checks their signatures."""

    url: str = ""
    status: int = 202
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    got: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        body = await request.body()
        for name, kind in (
            ("x-hub-signature-256", hashlib.sha256),
            ("x-hub-signature", hashlib.sha1),
        ):
            wanted = hmac.new(SECRET.encode(), body, kind).hexdigest()
            assert request.headers[name] == f"{kind().name}={wanted}"
        self.got.append((dict(request.headers), json.loads(body)))
        return Response(status_code=self.status)

    @property
    def names(self) -> list[str]:
        """What arrived, as "event.action"."""
        return [
            ".".join(filter(None, (head["x-github-event"], body.get("action"))))
            for head, body in self.got
        ]

    def last(self, name: str) -> dict[str, Any]:
        return next(
            body
            for found, (_, body) in reversed(list(zip(self.names, self.got, strict=True)))
            if found == name
        )


class QuietServer(uvicorn.Server):
    """uvicorn without signals, that ends when its receiver leaves."""

    def __init__(self, config: uvicorn.Config, leaving: asyncio.Event) -> None:
        super().__init__(config)
        self.leaving = leaving

    async def main_loop(self) -> None:
        await self.leaving.wait()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    listener = socket.create_server(("127.0.0.1", 0))
    receiver.url = f"http://127.0.0.1:{listener.getsockname()[1]}/hooks"
    app = Starlette(routes=[Route("/hooks", receiver.take, methods=["POST"])])
    server = QuietServer(
        uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1),
        receiver.leaving,
    )
    running = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield receiver
    finally:
        receiver.leaving.set()
        await running
        listener.close()


@dataclass
class HubEnvironment:
    """The hub under test with what stands on it."""

    hub: Hub
    clock: HubClock
    receiver: Receiver
    place: Path
    repo: Repo
    app: App
    installation: int
    mia: User
    rob: User
    eve: User
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def client(self, token: str = "") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.AsyncClient(base_url=self.hub.api_url, headers=headers, trust_env=False)
        self.clients.append(client)
        return client

    def app_jwt(self, **claims: Any) -> str:
        now = int(time.time())
        wanted = {"iat": now - 60, "exp": now + 540, "iss": str(self.app.id)} | claims
        return jwt.encode(wanted, self.app.private_key, algorithm="RS256")

    async def token(self, **narrow: Any) -> str:
        url = f"/app/installations/{self.installation}/access_tokens"
        answer = await self.client(self.app_jwt()).post(url, json=narrow)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    async def bot(self, **narrow: Any) -> httpx.AsyncClient:
        return self.client(await self.token(**narrow))

    async def events(self) -> list[str]:
        await self.hub.wait_until_sent()
        return self.receiver.names

    # ── git, as anybody uses it ──

    def address(self, token: str, repo: str = "acme/shop") -> str:
        scheme, _, rest = self.hub.url.partition("://")
        return f"{scheme}://x-access-token:{token}@{rest}/{repo}.git"

    async def git(self, *args: str, at: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = ["git", "-c", "user.name=Mia", "-c", "user.email=mia@example.com", *args]
        env = {
            "PATH": "/usr/bin:/bin",
            "GIT_TERMINAL_PROMPT": "0",
            "HOME": str(self.place),
            "LC_ALL": "C.UTF-8",
        }
        return await asyncio.to_thread(
            subprocess.run, command, cwd=at, env=env, capture_output=True, text=True, check=False
        )

    async def branch(self, name: str, files: dict[str, str | bytes | None], token: str) -> str:
        """Push a commit with these files (None: removed) on a branch; gives its sha."""
        work = self.place / "work"
        if not work.exists():
            await self.git("clone", "-q", self.address(token), str(work))
        await self.git("checkout", "-q", "-B", name, at=work)
        for path, content in files.items():
            target = work / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                target.unlink()
            else:
                target.write_bytes(content.encode() if isinstance(content, str) else content)
        await self.git("add", "-A", at=work)
        await self.git("commit", "-q", "-m", f"Work on {name}", at=work)
        pushed = await self.git("push", "-q", self.address(token), name, at=work)
        assert pushed.returncode == 0, pushed.stderr
        return (await self.git("rev-parse", "HEAD", at=work)).stdout.strip()

    async def pull(self, client: httpx.AsyncClient, token: str, **more: Any) -> dict[str, Any]:
        """A pull request that changes a line of the cart."""
        changed = FILES["shop/cart.py"].replace("sum(prices)", "round(sum(prices), 2)")
        await self.branch("fix", {"shop/cart.py": changed}, token)
        body = {"title": "Round", "head": "fix", "base": "main", "body": "Closes #1"} | more
        answer = await client.post("/repos/acme/shop/pulls", json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())
