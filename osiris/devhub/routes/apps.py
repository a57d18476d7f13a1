"""REST for an app itself (by JWT), its tokens and deliveries, and for who is asking."""

from starlette.responses import Response

from osiris.devhub.errors import Denied, not_found
from osiris.devhub.models import Delivery, Installation
from osiris.devhub.payloads import apps, issues
from osiris.devhub.payloads.issues import Json
from osiris.devhub.routes.request import Call, Table, answer

table = Table()


def _installation(call: Call) -> Installation:
    found = call.world.installations.get(call.params["id"])
    if found is None or found.app is not call.app:
        raise not_found()
    return found


@table.on("GET", "/app")
async def app(call: Call) -> Response:
    count = sum(installation.app is call.app for installation in call.world.installations.values())
    return answer(issues.app(call.world, call.app) | {"installations_count": count})


@table.on("GET", "/app/installations")
async def installations(call: Call) -> Response:
    mine = [one for one in call.world.installations.values() if one.app is call.app]
    return call.paged(mine, lambda one: apps.installation(call.world, one))


@table.on("GET", "/app/installations/{id:int}")
async def installation(call: Call) -> Response:
    return answer(apps.installation(call.world, _installation(call)))


@table.on("PUT", "/app/installations/{id:int}/suspended")
async def suspended(call: Call) -> Response:
    call.hub.suspend(_installation(call))
    return Response(status_code=204)


@table.on("DELETE", "/app/installations/{id:int}/suspended")
async def unsuspended(call: Call) -> Response:
    call.hub.unsuspend(_installation(call))
    return Response(status_code=204)


@table.on("DELETE", "/app/installations/{id:int}")
async def uninstalled(call: Call) -> Response:
    call.hub.remove(_installation(call))
    return Response(status_code=204)


@table.on("GET", "/repos/{owner}/{repo}/installation")
async def repo_installation(call: Call) -> Response:
    repo = call.world.repo(f"{call.params['owner']}/{call.params['repo']}")
    found = call.world.installation_of(call.app, repo)
    if found is None:
        raise not_found()
    return answer(apps.installation(call.world, found))


@table.on("POST", "/app/installations/{id:int}/access_tokens")
async def access_token(call: Call) -> Response:
    grant = call.hub.keyring.grant(
        _installation(call),
        permissions=call.get("permissions", dict),
        names=call.get("repositories", list, []),
        ids=call.get("repository_ids", list, []),
    )
    body: Json = {
        "token": grant.token,
        "expires_at": issues.iso(grant.expires),
        "permissions": dict(grant.permissions),
        "repository_selection": "selected",
    }
    if grant.narrowed:
        body["repositories"] = [issues.repository(call.world, repo) for repo in grant.repos]
    return answer(body, 201)


@table.on("GET", "/installation/repositories")
async def installation_repositories(call: Call) -> Response:
    if call.who.grant is None:
        raise Denied(403, "You must authenticate with an installation access token in order to list repositories.")
    shape = lambda repo: issues.repository(call.world, repo)  # noqa: E731
    return call.paged(call.who.grant.repos, shape, "repositories", repository_selection="selected")


# ── deliveries ──


@table.on("GET", "/app/hook/deliveries")
async def deliveries(call: Call) -> Response:
    """Newest first; `cursor` is the id of the last one seen."""
    size = min(int(call.query("per_page") or 30), 100)
    cursor = call.query("cursor")
    newest = [one for one in reversed(call.app.deliveries) if one.delivered is not None]
    rest = [one for one in newest if not cursor.isdigit() or one.id < int(cursor)]
    shown = rest[:size]
    more = (
        f'<{call.hub.api_url}/app/hook/deliveries?per_page={size}&cursor={shown[-1].id}>; rel="next"' if shown else ""
    )
    headers = {"Link": more} if len(rest) > size else None
    return answer([apps.delivery(one) for one in shown], headers=headers)


def _delivery(call: Call) -> Delivery:
    found = next((one for one in call.app.deliveries if one.id == call.params["id"]), None)
    if found is None:
        raise not_found()
    return found


@table.on("GET", "/app/hook/deliveries/{id:int}")
async def delivery(call: Call) -> Response:
    return answer(apps.full_delivery(_delivery(call)))


@table.on("POST", "/app/hook/deliveries/{id:int}/attempts")
async def redeliver(call: Call) -> Response:
    call.hub.hooks.redeliver(_delivery(call))
    return answer({}, 202)


# ── who and what ──


@table.on("GET", "/user")
async def me(call: Call) -> Response:
    if call.who.app is not None:
        raise Denied(403, "Resource not accessible by integration")
    return answer(issues.public_user(call.world, call.by))


@table.on("GET", "/users/{login}")
async def user(call: Call) -> Response:
    return answer(issues.public_user(call.world, call.world.user(call.params["login"])))


@table.on("GET", "/rate_limit")
async def rate_limit(call: Call) -> Response:
    """Looking costs nothing."""
    resources = {name: call.hub.rates.left(call.who, name) for name in ("core", "search", "graphql")}
    return answer({"resources": resources, "rate": resources["core"]})


@table.on("GET", "/versions")
async def versions(call: Call) -> Response:
    return answer(["2022-11-28", "2026-03-10"])
