"""A request to the REST API as its handlers see it, and the table of the handlers."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from re import Pattern
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from osiris.devhub.auth import Caller
from osiris.devhub.errors import ApiError, ApiMoved, not_found_error, validation_error
from osiris.devhub.models import App, Issue, Pull, Repo, User
from osiris.devhub.payloads.issues import Json
from osiris.devhub.world import World

if TYPE_CHECKING:
    from osiris.devhub.server import Hub

DOCUMENTATION = "https://docs.github.com/rest"
NAMES = {str: "a string", bool: "a boolean", int: "an integer", list: "an array", dict: "an object"}


def build_response(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return JSONResponse(body, status, headers)


def redirect_moved(hub: "Hub", request: Request, path: str, who: Caller) -> Response | None:
    """Return the redirect for a repository's old name, for callers that may see the repository.

    Of an app's own requests only the one for its installation is redirected: an app itself sees no
    repository.
    """
    _, repos, owner, name, *rest = [*path.split("/"), "", "", ""]
    repo = hub.world.moved.get(f"{owner}/{name}".lower()) if repos == "repos" else None
    if repo is None or not (who.can_see(repo) or path.endswith("/installation")):
        return None
    tail = "/".join(["", *rest]).rstrip("/")
    url = f"{hub.api_url}/repositories/{repo.id}{tail}"
    query = f"?{request.url.query}" if request.url.query else ""
    return build_redirect(request, url + query)


def build_redirect(request: Request, url: str) -> Response:
    """Return GitHub's redirect to another URL, which keeps the method of a write."""
    body = {
        "message": "Moved Permanently",
        "url": url,
        "documentation_url": f"{DOCUMENTATION}#http-redirects",
    }
    return build_response(body, 301 if request.method == "GET" else 307, {"Location": url})


def build_error_response(denied: ApiError) -> Response:
    """Return an error in GitHub's form."""
    body: Json = {
        "message": str(denied),
        "documentation_url": DOCUMENTATION,
        "status": str(denied.status),
    }
    return JSONResponse(body | ({"errors": denied.errors} if denied.errors else {}), denied.status)


@dataclass(kw_only=True)
class ApiRequest:
    """A request, its caller, and the resources that its path names (missing ones are 404s)."""

    hub: "Hub"
    request: Request
    who: Caller
    params: Mapping[str, Any]
    body: Any

    @property
    def world(self) -> World:
        return self.hub.world

    @property
    def account(self) -> User:
        return self.who.account

    @property
    def by_app(self) -> App | None:
        return self.who.app

    @property
    def app(self) -> App:
        """The app that signed this request with its key."""
        if self.who.app is None or self.who.user is not None:
            raise ApiError(401, "A JSON web token could not be decoded")
        return self.who.app

    @cached_property
    def repo(self) -> Repo:
        repo = self.world.get_repo(f"{self.params['owner']}/{self.params['repo']}")
        if not self.who.can_see(repo):
            raise not_found_error()
        return repo

    @cached_property
    def issue(self) -> Issue:
        """The issue of the path. Raise ApiMoved when it was transferred to a repository that the
        caller may see."""
        number = self.params["number"]
        moved = self.world.moved_issues.get((self.repo.id, number))
        if moved is not None and self.who.can_see(moved.repo):
            raise ApiMoved(self._build_moved_url(number, moved))
        return self.world.get_issue(self.repo, number)

    def _build_moved_url(self, number: int, moved: Issue) -> str:
        tail = self.request.url.path.partition(f"/issues/{number}")[2]
        query = f"?{self.request.url.query}" if self.request.url.query else ""
        return f"{self.hub.api_url}/repositories/{moved.repo.id}/issues/{moved.number}{tail}{query}"

    @cached_property
    def pull(self) -> Pull:
        pull = self.repo.pulls.get(self.params["number"])
        if pull is None:
            raise not_found_error()
        return pull

    def require_permission(self, *needs: str, role: str = "read") -> None:
        self.who.require_permission(self.repo, *needs, role=role)

    def require_on_issue(self, issue: Issue, level: str, role: str = "read") -> None:
        """Raise ApiError unless the caller may access an issue. For the conversation of a pull
        request either permission is enough."""
        also = [f"pull_requests:{level}"] if issue.pull else []
        self.who.require_permission(self.repo, f"issues:{level}", *also, role=role)

    def require_unlocked(self, issue: Issue, what: str = "comment") -> None:
        self.who.require_unlocked(issue, what)

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """Return a field of the body, which must have this type or be absent."""
        value = self.body.get(name) if isinstance(self.body, dict) else None
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            sentence = f"For 'properties/{name}', {json.dumps(value)} is not {NAMES[kind]}."
            raise validation_error(f"Invalid request.\n\n{sentence}")
        return value

    def get_text(self, name: str, default: str = "") -> str:
        return str(self.get(name, str, default))

    def get_optional_text(self, name: str) -> str | None:
        """Return a text of the body, or None when it is absent. As on GitHub, null and "" are not
        absent but empty."""
        if not isinstance(self.body, dict) or name not in self.body:
            return None
        return self.get_text(name)

    def get_required_text(self, name: str) -> str:
        if not isinstance(self.body, dict) or self.body.get(name) is None:
            sentence = f'"{name}" wasn\'t supplied.'
            raise validation_error(f"Invalid request.\n\n{sentence}")
        return self.get_text(name)

    def get_query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def build_page(
        self, items: Iterable[Any], shape: Callable[[Any], Json], key: str = "", **more: Any
    ) -> Response:
        """Return one page of a list with GitHub's Link header; with `key` the list is wrapped
        together with its total count."""
        everything = list(items)
        size = min(max(_parse_number(self.get_query("per_page"), 30), 1), 100)
        page = max(_parse_number(self.get_query("page"), 1), 1)
        shown = [shape(item) for item in everything[(page - 1) * size : page * size]]
        body = {"total_count": len(everything), **more, key: shown} if key else shown
        link = self._format_links(page, max(1, -(-len(everything) // size)))
        return build_response(body, headers={"Link": link} if link else None)

    def _format_links(self, page: int, last: int) -> str:
        wanted = [("prev", page - 1), ("next", page + 1), ("last", last), ("first", 1)]
        shown = wanted[1:3] if page == 1 else [wanted[0], wanted[3]] if page >= last else wanted
        return ", ".join(
            f'<{self._build_page_url(number)}>; rel="{rel}"' for rel, number in shown if last > 1
        )

    def _build_page_url(self, page: int) -> str:
        query = dict(self.request.query_params) | {"page": str(page)}
        return f"{self.hub.url}{self.request.url.path}?{urlencode(query)}"


def _parse_number(text: str, default: int) -> int:
    return int(text) if text.isdigit() else default


Handler = Callable[[ApiRequest], Awaitable[Response]]
Decorator = Callable[[Handler], Handler]


@dataclass
class RouteTable:
    """A table of handlers by method and path."""

    rows: list[tuple[str, Pattern[str], Any, Handler]] = field(default_factory=list)

    def route(self, method: str, path: str) -> Decorator:
        pattern, _, convertors = compile_path(path)

        def register_handler(handler: Handler) -> Handler:
            self.rows.append((method, pattern, convertors, handler))
            return handler

        return register_handler

    def find_handler(self, method: str, path: str) -> tuple[Handler, dict[str, Any]] | None:
        for wanted, pattern, convertors, handler in self.rows:
            if wanted == method and (match := pattern.match(path)):
                return handler, {
                    name: convertors[name].convert(text) for name, text in match.groupdict().items()
                }
        return None


def join_tables(tables: Sequence[RouteTable]) -> RouteTable:
    return RouteTable([row for table in tables for row in table.rows])


async def read_json(request: Request) -> Any:
    raw = await request.body()
    if not raw:
        return {}
    try:
        return json.loads(raw)
    except ValueError:
        raise ApiError(400, "Problems parsing JSON") from None
