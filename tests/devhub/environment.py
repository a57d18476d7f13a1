"""A hub with a repository, people and an app, a receiver of its webhooks, and methods to use
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
    """The hub's clock; it stands still until a test changes `now`."""

    now: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now


@dataclass
class Receiver:
    """A real HTTP server that receives webhooks and checks their signatures."""

    url: str = ""
    status: int = 202
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    deliveries: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)

    async def receive(self, request: Request) -> Response:
        body = await request.body()
        for name, kind in (
            ("x-hub-signature-256", hashlib.sha256),
            ("x-hub-signature", hashlib.sha1),
        ):
            expected = hmac.new(SECRET.encode(), body, kind).hexdigest()
            assert request.headers[name] == f"{kind().name}={expected}"
        self.deliveries.append((dict(request.headers), json.loads(body)))
        return Response(status_code=self.status)

    @property
    def event_names(self) -> list[str]:
        """The deliveries so far, as event.action."""
        return [
            ".".join(filter(None, (head["x-github-event"], body.get("action"))))
            for head, body in self.deliveries
        ]

    def get_last_payload(self, name: str) -> dict[str, Any]:
        return next(
            body
            for event_name, (_, body) in reversed(
                list(zip(self.event_names, self.deliveries, strict=True))
            )
            if event_name == name
        )


class QuietServer(uvicorn.Server):
    """A uvicorn server without signal handlers; it ends when its receiver stops."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event) -> None:
        super().__init__(config)
        self.stopping = stopping

    async def main_loop(self) -> None:
        await self.stopping.wait()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def start_receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    listener = socket.create_server(("127.0.0.1", 0))
    receiver.url = f"http://127.0.0.1:{listener.getsockname()[1]}/hooks"
    app = Starlette(routes=[Route("/hooks", receiver.receive, methods=["POST"])])
    server = QuietServer(
        uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1),
        receiver.stopping,
    )
    server_task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield receiver
    finally:
        receiver.stopping.set()
        await server_task
        listener.close()


@dataclass
class HubEnvironment:
    """The hub under test, and everything in it."""

    hub: Hub
    clock: HubClock
    receiver: Receiver
    folder: Path
    repo: Repo
    app: App
    installation: int
    mia: User
    rob: User
    eve: User
    clients: list[httpx.AsyncClient] = field(default_factory=list)

    def create_client(self, token: str = "") -> httpx.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.AsyncClient(base_url=self.hub.api_url, headers=headers, trust_env=False)
        self.clients.append(client)
        return client

    def create_app_jwt(self, **claims: Any) -> str:
        now = int(time.time())
        all_claims = {"iat": now - 60, "exp": now + 540, "iss": str(self.app.id)} | claims
        return jwt.encode(all_claims, self.app.private_key, algorithm="RS256")

    async def create_token(self, **restrictions: Any) -> str:
        url = f"/app/installations/{self.installation}/access_tokens"
        answer = await self.create_client(self.create_app_jwt()).post(url, json=restrictions)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])

    async def create_bot_client(self, **restrictions: Any) -> httpx.AsyncClient:
        return self.create_client(await self.create_token(**restrictions))

    async def list_events(self) -> list[str]:
        await self.hub.wait_until_sent()
        return self.receiver.event_names

    # ── git, as every user uses it ──

    def build_address(self, token: str, repo: str = "acme/shop") -> str:
        scheme, _, rest = self.hub.url.partition("://")
        return f"{scheme}://x-access-token:{token}@{rest}/{repo}.git"

    async def run_git(
        self, *args: str, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = ["git", "-c", "user.name=Mia", "-c", "user.email=mia@example.com", *args]
        env = {
            "PATH": "/usr/bin:/bin",
            "GIT_TERMINAL_PROMPT": "0",
            "HOME": str(self.folder),
            "LC_ALL": "C.UTF-8",
        }
        return await asyncio.to_thread(
            subprocess.run,
            command,
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )

    async def push_branch(self, name: str, files: dict[str, str | bytes | None], token: str) -> str:
        """Push a commit with these files (None: removed) to a branch, and return its sha."""
        work = self.folder / "work"
        if not work.exists():
            await self.run_git("clone", "-q", self.build_address(token), str(work))
        await self.run_git("checkout", "-q", "-B", name, folder=work)
        for path, content in files.items():
            target = work / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                target.unlink()
            else:
                target.write_bytes(content.encode() if isinstance(content, str) else content)
        await self.run_git("add", "-A", folder=work)
        await self.run_git("commit", "-q", "-m", f"Work on {name}", folder=work)
        result = await self.run_git("push", "-q", self.build_address(token), name, folder=work)
        assert result.returncode == 0, result.stderr
        return (await self.run_git("rev-parse", "HEAD", folder=work)).stdout.strip()

    async def open_pull(
        self, client: httpx.AsyncClient, token: str, **fields: Any
    ) -> dict[str, Any]:
        """Open a pull request that changes a line of the cart."""
        changed_file = FILES["shop/cart.py"].replace("sum(prices)", "round(sum(prices), 2)")
        await self.push_branch("fix", {"shop/cart.py": changed_file}, token)
        body = {"title": "Round", "head": "fix", "base": "main", "body": "Closes #1"} | fields
        answer = await client.post("/repos/acme/shop/pulls", json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())
