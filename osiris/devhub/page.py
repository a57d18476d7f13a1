"""The review page: a person's view of the hub in a browser, rendered here; it works without
scripts."""

import hmac
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from osiris.devhub import form_actions, markdown, page_models, pulls, reviews
from osiris.devhub.auth import NOBODY, Caller
from osiris.devhub.errors import ApiError, not_found_error
from osiris.devhub.models import Issue, Repo, User
from osiris.devhub.payloads.issues import format_time

if TYPE_CHECKING:
    from osiris.devhub.server import Hub

THING = re.compile(
    r"/(?P<owner>[^/]+)/(?P<name>[^/]+)/(?P<kind>issues|pull)/(?P<number>\d+)(?:/(?P<rest>[a-z-]+))?/?"
)
REPO = re.compile(r"/(?P<owner>[^/_][^/]*)/(?P<name>[^/]+)(?:/(?P<rest>issues))?/?")
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self';"
    " base-uri 'none'; "
)
HEADERS = {
    "Content-Security-Policy": POLICY + "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TYPES = {"css": "text/css", "js": "text/javascript"}

_templates = Environment(
    loader=PackageLoader("osiris.devhub"),
    autoescape=select_autoescape(),
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.filters |= {"words": markdown.render_html, "iso": format_time}


async def answer_page(hub: "Hub", request: Request) -> Response:
    response = await _answer_path(hub, request)
    response.headers.update(HEADERS)
    return response


async def _answer_path(hub: "Hub", request: Request) -> Response:
    path = request.url.path
    if path == "/_enter":
        return _sign_in(hub, request)
    if path == "/favicon.ico":
        return Response(status_code=204)
    if path.startswith("/_static/"):
        return _serve_static(path.removeprefix("/_static/"))
    who = _identify_caller(hub, request)
    try:
        if request.method == "POST":
            _check_origin(hub, request)
            return await _handle_form(hub, request, who)
        return _render_path(hub, path, who, {})
    except ApiError as denied:
        return _render_page(hub, who, "sorry.html", status=denied.status, error=denied.sentence)


# ── signing in ──


def _get_cookie_name(hub: "Hub") -> str:
    # browsers share cookies between the ports of one host
    return "devhub_" + hub.url.rpartition(":")[2]


def _find_person(hub: "Hub", key: str) -> User | None:
    people = [user for user in hub.world.users.values() if user.type == "User"]
    return next(
        (user for user in people if hmac.compare_digest(user.key.encode(), key.encode())), None
    )


def _identify_caller(hub: "Hub", request: Request) -> Caller:
    user = _find_person(hub, request.cookies.get(_get_cookie_name(hub), ""))
    return Caller(user=user) if user else NOBODY


def _sign_in(hub: "Hub", request: Request) -> Response:
    key = request.query_params.get("key", "")
    to = request.query_params.get("to", "/")
    if _find_person(hub, key) is None:
        return _render_page(
            hub,
            NOBODY,
            "sorry.html",
            status=403,
            error="This sign-in address is not valid on this hub.",
        )
    inside = to.startswith("/") and not to.startswith(("//", "/\\"))
    response = RedirectResponse(to if inside else "/", 303)
    response.set_cookie(_get_cookie_name(hub), key, httponly=True, samesite="strict", path="/")
    return response


def _check_origin(hub: "Hub", request: Request) -> None:
    """Raise ApiError unless a form was sent from a page of this hub."""
    host = hub.url.removeprefix("http://")
    if request.headers.get("origin") != hub.url or request.headers.get("host") != host:
        raise ApiError(403, "This form did not come from this hub's own page.")


# ── pages ──


def _render_page(
    hub: "Hub", who: Caller, template: str, *, status: int = 200, **facts: Any
) -> Response:
    text = _templates.get_template(template).render(
        hub=hub, world=hub.world, viewer=who.user, **facts
    )
    return HTMLResponse(text, status)


def _serve_static(name: str) -> Response:
    if name == "code.css":
        return Response(page_models.build_code_css(), media_type="text/css")
    source = {"hub.css": "hub.css", "hub.js": "hub.js"}.get(name)
    if source is None:
        return Response("Not Found", 404, media_type="text/plain")
    return Response(
        (files("osiris.devhub") / "static" / source).read_bytes(),
        media_type=TYPES[name.rpartition(".")[2]],
    )


def _find_visible_repo(hub: "Hub", who: Caller, owner: str, name: str) -> Repo:
    repo = hub.world.get_repo(f"{owner}/{name}")
    if not who.can_see(repo):
        raise not_found_error()
    return repo


def _render_path(
    hub: "Hub", path: str, who: Caller, extra: dict[str, Any], status: int = 200
) -> Response:
    if path == "/":
        seen = [repo for repo in hub.world.repos.values() if who.can_see(repo)]
        return _render_page(hub, who, "home.html", status=status, repos=seen, **extra)
    if match := THING.fullmatch(path):
        repo = _find_visible_repo(hub, who, match["owner"], match["name"])
        issue = hub.world.get_issue(repo, int(match["number"]))
        if bool(issue.pull) != (match["kind"] == "pull"):
            kind = "pull" if issue.pull else "issues"
            return RedirectResponse(f"/{repo.full_name}/{kind}/{issue.number}", 303)
        return _render_issue(hub, who, issue, match["rest"] or "", extra, status)
    if match := REPO.fullmatch(path):
        repo = _find_visible_repo(hub, who, match["owner"], match["name"])
        return _render_page(hub, who, "repo.html", status=status, repo=repo, **extra)
    raise not_found_error()


def _render_issue(
    hub: "Hub", who: Caller, issue: Issue, tab: str, extra: dict[str, Any], status: int
) -> Response:
    facts = {
        "repo": issue.repo,
        "issue": issue,
        "story": page_models.build_timeline(issue),
        "may": form_actions.list_allowed_actions(who, issue),
    } | extra
    if issue.pull is None:
        return _render_page(hub, who, "issue.html", status=status, **facts)
    pull = issue.pull
    clean = pulls.is_mergeable(pull)
    facts |= {
        "pull": pull,
        "tab": "files" if tab == "files" else "talk",
        "files": page_models.build_diff(pull, who.user) if tab == "files" else [],
        "changes": pulls.list_changes(pull),
        "checks": page_models.list_latest_checks(pull),
        "merge_state": pulls.get_merge_state(pull, clean),
        "decided": reviews.list_latest_states(pull.reviews),
        "pending": reviews.find_pending(pull, who.user) if who.user else None,
    }
    return _render_page(hub, who, "pull.html", status=status, **facts)


# ── actions ──


async def _handle_form(hub: "Hub", request: Request, who: Caller) -> Response:
    """Run the action of a form and show the page again; after a refusal with its sentence and the
    typed text."""
    path = request.url.path
    form = await request.form()
    if who.user is None:
        raise ApiError(401, "You are not signed in: open the address the hub gave you.")
    if match := THING.fullmatch(path):
        repo = _find_visible_repo(hub, who, match["owner"], match["name"])
        issue = hub.world.get_issue(repo, int(match["number"]))
        return _apply_action(hub, who, issue, match["rest"] or "", form)
    if (match := REPO.fullmatch(path)) and match["rest"]:
        repo = _find_visible_repo(hub, who, match["owner"], match["name"])
        try:
            issue = form_actions.open_issue(hub.world, who, repo, form_actions.read_texts(form))
        except ApiError as denied:
            return _render_path(
                hub,
                path,
                who,
                {"error": denied.sentence, "typed": form_actions.read_texts(form)},
                denied.status,
            )
        return RedirectResponse(f"/{repo.full_name}/issues/{issue.number}", 303)
    raise not_found_error()


def _apply_action(hub: "Hub", who: Caller, issue: Issue, action: str, form: FormData) -> Response:
    texts = form_actions.read_texts(form)
    talk = f"/{issue.repo.full_name}/{'pull' if issue.pull else 'issues'}/{issue.number}"
    back = f"{talk}/files" if issue.pull and texts.get("tab") == "files" else talk
    try:
        anchor = form_actions.run_action(hub.world, who, issue, action, texts)
    except ApiError as denied:
        return _render_path(
            hub, back, who, {"error": denied.sentence, "typed": texts}, denied.status
        )
    done = talk if action == "review" else back  # a submitted review is read in the conversation
    return RedirectResponse(done + (f"#{anchor}" if anchor else ""), 303)
