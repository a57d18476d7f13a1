"""The hub: a loopback server with REST, GraphQL, git and the review page for one world."""

import hashlib
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from osiris.config.http_server import serve_app
from osiris.devhub import administration, graphql, installations, page, persistence
from osiris.devhub.auth import Caller, TokenStore
from osiris.devhub.ci import CheckRunner, RunCheck
from osiris.devhub.errors import ApiError, ApiMoved, ApiRateLimited, not_found_error
from osiris.devhub.git_http import GitHttp, is_git_path
from osiris.devhub.models import App, Installation, Repo, User
from osiris.devhub.observers import ApiExchange, HubObserver
from osiris.devhub.rate_limits import ApiRateLimits
from osiris.devhub.routes import apps, checks, code, issues, pulls
from osiris.devhub.routes.request import (
    ApiRequest,
    build_error_response,
    build_redirect,
    join_tables,
    read_json,
    redirect_moved,
)
from osiris.devhub.tokens import KeyPair
from osiris.devhub.webhook_sender import WebhookSender
from osiris.devhub.world import World

API = "/api/v3"
TABLE = join_tables([apps.table, issues.table, pulls.table, checks.table, code.table])
Forward = Callable[[], Awaitable[Response]]
RequestInterceptor = Callable[[Request, Forward], Awaitable[Response]]


class TruncatedResponse(Response):
    """A response for interceptors that breaks off in the middle of the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{", "more_body": True})


class Hub:
    """A running hub; `world` is its state, and the methods here set it up."""

    observers: ClassVar[list[HubObserver]] = []
    """The observers of every hub of this process."""

    def __init__(
        self, data_dir: Path, url: str, clock: Callable[[], float], run_check: RunCheck | None
    ) -> None:
        self.world = World(data_dir, clock)
        self.world.url = self.url = url
        self.api_url = url + API
        self.interceptors: list[RequestInterceptor] = []
        self.token_store = TokenStore(world=self.world)
        self.rates = ApiRateLimits(clock)
        self.hooks = WebhookSender(self.world, self.observers)
        self.ci = CheckRunner(self.world, run_check) if run_check else None
        self._git = GitHttp(self.world, self.token_store)
        self._world_file: Path | None = None

    def open_saved(self, path: Path) -> bool:
        """Keep the world in a file from now on. Return whether the file contained a world, which
        the hub then uses."""
        self._world_file = path
        return persistence.load_world(self.world, path)

    def save(self) -> None:
        """Write the world to its file, if it has one. Requests that may change the world do this
        automatically."""
        if self._world_file is not None:
            persistence.save_world(self.world, self._world_file)

    # ── setting up ──

    def add_user(self, login: str) -> User:
        return self.world.add_user(login)

    def add_repo(
        self,
        full_name: str,
        *,
        files: Mapping[str, bytes | str] | None = None,
        import_from: tuple[Path, str] | None = None,
        collaborators: Mapping[str, str],
        private: bool = False,
    ) -> Repo:
        return self.world.add_repo(
            full_name,
            files=files,
            import_from=import_from,
            collaborators=collaborators,
            private=private,
        )

    def add_app(
        self,
        *,
        slug: str,
        webhook_url: str,
        webhook_secret: str,
        permissions: Mapping[str, str],
        events: Sequence[str],
        keys: KeyPair | None = None,
    ) -> App:
        return installations.add_app(
            self.world,
            slug=slug,
            webhook_url=webhook_url,
            webhook_secret=webhook_secret,
            permissions=permissions,
            events=events,
            keys=keys,
        )

    def install_app(self, app: App, *repos: str) -> int:
        """Install the app on repositories of one owner. Return the id of the installation."""
        before = {id: list(one.repos) for id, one in self.world.installations.items()}
        chosen = [self.world.get_repo(name) for name in repos]
        installation = installations.install_app(self.world, app, chosen)
        if installation.id not in before:
            self.hooks.queue_installation(installation, "created")
        elif added := [repo for repo in installation.repos if repo not in before[installation.id]]:
            self.hooks.queue_repositories(installation, added=added)
        return installation.id

    def get_installation(self, app: App, full_name: str) -> Installation:
        """Return the app's installation on a repository."""
        found = installations.find_installation(self.world, app, self.world.get_repo(full_name))
        if found is None:
            raise not_found_error()
        return found

    def remove_repos(self, app: App, *repos: str) -> None:
        """Remove these repositories from the app's installations."""
        for name in repos:
            repo = self.world.get_repo(name)
            installation = self.get_installation(app, name)
            if installations.narrow_installation(installation, repo):
                self.hooks.queue_repositories(installation, removed=[repo])

    def remove_installation(self, installation: Installation) -> None:
        """Remove an app from an account."""
        installations.uninstall_app(self.world, installation)
        self.hooks.queue_installation(installation, "deleted")

    def suspend_installation(self, installation: Installation, by: User | None = None) -> None:
        """Suspend an app on an account."""
        installations.suspend_installation(self.world, installation, by)
        self.hooks.queue_installation(installation, "suspend")

    def unsuspend_installation(self, installation: Installation) -> None:
        installations.unsuspend_installation(installation)
        self.hooks.queue_installation(installation, "unsuspend")

    def transfer_repo(self, full_name: str, owner: str, by: User | None = None) -> Repo:
        """Transfer a repository to another account, on which no app is installed for it."""
        repo = self.world.get_repo(full_name)
        new = self.world.add_user(owner, type="Organization")
        for installation in administration.transfer_repo(self.world, repo, by or new, new):
            self.hooks.queue_repositories(installation, removed=[repo])
        return repo

    def build_sign_in_url(self, login: str, path: str) -> str:
        """Return a URL that signs this person in on this hub, and then shows `path`."""
        user = self.world.get_user(login)
        return f"{self.url}/_enter?key={quote(user.key)}&to={quote(path)}"

    async def resend_webhooks(self) -> None:
        """Send again the webhooks that no app accepted, because the hub or the app was not
        running."""
        await self.wait_until_sent()
        for app in self.world.apps.values():
            last = {delivery.guid: delivery for delivery in app.deliveries}
            for delivery in last.values():
                if not 200 <= delivery.status_code < 300:
                    self.hooks.redeliver(delivery)
        await self.wait_until_sent()

    async def wait_until_sent(self) -> None:
        """Wait until every queued webhook was sent, and those that these caused."""
        await self.hooks.wait_until_sent()

    async def wait_until_checked(self) -> None:
        """Wait until every pushed commit has been checked."""
        if self.ci is not None:
            await self.ci.wait_until_checked()

    async def close(self) -> None:
        if self.ci is not None:
            await self.ci.close()
        await self.hooks.close()

    # ── requests ──

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            if not self.observers or not request.url.path.startswith("/api/"):
                response = await self._run_interceptors(
                    request, list(self.interceptors), lambda: self._answer_request(request)
                )
            else:
                response = await self._answer_observed(request)
        except (
            ClientDisconnect
        ):  # the client ended in the middle of the request, so nothing was done
            return
        if request.method != "GET":
            self.save()  # before the answer: nothing that was answered may be lost
        await response(scope, receive, send)

    async def _answer_observed(self, request: Request) -> Response:
        """Answer a request, and pass it to the observers with the hub's own answer; a bug is a
        500."""
        exchange = ApiExchange(request=request, body=await request.body())

        async def record_answer() -> Response:
            exchange.answer = Response(status_code=500)
            exchange.answer = await self._answer_request(request)
            return exchange.answer

        try:
            return await self._run_interceptors(request, list(self.interceptors), record_answer)
        finally:
            for observer in self.observers:
                observer.on_exchange(exchange)

    async def _run_interceptors(
        self, request: Request, interceptors: list[RequestInterceptor], last: Forward
    ) -> Response:
        if not interceptors:
            return await last()
        first, *rest = interceptors

        async def forward(*_: object) -> Response:
            return await self._run_interceptors(request, rest, last)

        return await first(request, forward)

    async def _answer_request(self, request: Request) -> Response:
        path = request.url.path
        if is_git_path(path):
            return await self._git.answer_request(request)
        if not path.startswith("/api/"):
            return await page.answer_page(self, request)
        try:
            who = self.token_store.identify_caller(request.headers.get("authorization", ""))
        except ApiError as denied:
            return self._add_date(build_error_response(denied))
        return self._add_date(await self._answer_api(request, who))

    async def _answer_api(self, request: Request, who: Caller) -> Response:
        """Answer a REST or GraphQL request and count it for the rate limit, except a 304."""
        path = request.url.path.removeprefix(API)
        resource = "graphql" if path == "/api/graphql" else "core"
        try:
            if path != "/rate_limit":
                self.rates.check_limit(who, resource)
            if resource == "graphql":
                response = await graphql.answer_query(request, self.world, who)
            else:
                response = _apply_etag(request, await self._answer_rest(request, path, who))
        except ApiMoved as moved:
            response = build_redirect(request, moved.url)
        except ApiError as denied:
            response = build_error_response(denied)
            if isinstance(denied, ApiRateLimited):
                response.headers.update(denied.headers)
                return response
        free = response.status_code == 304 or path == "/rate_limit"
        response.headers.update(self.rates.count_request(who, resource, 0 if free else 1))
        return response

    def _add_date(self, response: Response) -> Response:
        response.headers["Date"] = formatdate(self.world.now(), usegmt=True)
        return response

    async def _answer_rest(self, request: Request, path: str, who: Caller) -> Response:
        if (redirect := redirect_moved(self, request, path, who)) is not None:
            return redirect
        found = TABLE.find_handler(request.method, self._resolve_repository_id(path))
        if found is None:
            raise not_found_error()
        handler, params = found
        body = await read_json(request)
        return await handler(
            ApiRequest(hub=self, request=request, who=who, params=params, body=body)
        )

    def _resolve_repository_id(self, path: str) -> str:
        """Return a path that names a repository by its id, as redirects do, as a path with its
        name."""
        if (match := re.match(r"/repositories/(\d+)(?=/|$)", path)) is None:
            return path
        repo = next((repo for repo in self.world.repos.values() if repo.id == int(match[1])), None)
        if repo is None:
            raise not_found_error()
        return f"/repos/{repo.full_name}{path[match.end() :]}"


def _apply_etag(request: Request, response: Response) -> Response:
    """Add GitHub's ETag, which differs for each token; answer 304 when the caller already has this
    answer."""
    if request.method != "GET" or response.status_code != 200:
        return response
    seen = request.headers.get("authorization", "").encode() + bytes(response.body)
    etag = f'W/"{hashlib.sha256(seen).hexdigest()}"'
    if etag in request.headers.get("if-none-match", ""):
        response = Response(status_code=304)
    response.headers["ETag"] = etag
    return response


@asynccontextmanager
async def serve_hub(
    data_dir: Path,
    *,
    port: int = 0,
    clock: Callable[[], float] = time.time,
    run_check: RunCheck | None = None,
) -> AsyncIterator[Hub]:
    """Run a hub on a loopback port until the block ends."""
    listener = socket.create_server(("127.0.0.1", port))
    hub = Hub(data_dir, f"http://127.0.0.1:{listener.getsockname()[1]}", clock, run_check)
    try:
        async with serve_app(hub, listener, grace=1):
            yield hub
    finally:
        await hub.close()
